"""What a model was trained for: labels, features, window, calibration, data, licence, results.

The card travels in the model file's metadata and decides: an operator can change the step, the
smoothing and the voice activity, never what the network was trained on.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from streamer.errors import CardError, ConfigError
from streamer.features import FeatureConfig
from streamer.normalization import NormalizationConfig
from streamer.windows import WindowConfig

CARD_KEY = "ser_stream_card"
"""Metadata key under which an ONNX file holds its card."""

CARD_VERSION = 1

UNCERTAIN = "uncertain"
"""Said in a label's place where no score is high enough; scores never have it."""


class Calibration(Struct, frozen=True, kw_only=True):
    """Temperatures, from validation speakers, for a window, for smoothed scores, for a turn."""

    window: float = 1.0
    smoothed: float = 1.0
    turn: float = 1.0


class Rejection(Struct, frozen=True, kw_only=True):
    """Calibrated top scores below which the label is UNCERTAIN; 0 is never.

    From the risk-coverage curves of validation speakers, for smoothed scores and for a turn's.
    """

    smoothed: float = 0.0
    turn: float = 0.0


class Corpus(Struct, frozen=True, kw_only=True):
    """Speech that a model was trained on."""

    name: str
    language: str
    speakers: int
    utterances: int
    licence: str


class Card(Struct, frozen=True, kw_only=True):
    """A model's card. ``results`` and ``training`` are for people; everything else is obeyed."""

    version: int = CARD_VERSION
    name: str
    description: str
    labels: tuple[str, ...]
    features: FeatureConfig
    normalization: NormalizationConfig | None
    window: WindowConfig
    calibration: Calibration
    rejection: Rejection = Rejection()
    data: tuple[Corpus, ...]
    licence: str
    training: dict[str, Any] = {}
    results: dict[str, Any] = {}

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one window: (3, num_rows, num_frames)."""
        return (3, self.features.num_rows, self.window.num_frames)


def encode_card(card: Card) -> str:
    """Return the card's JSON."""
    return msgspec.json.encode(card).decode()


def decode_card(text: str | None, origin: str) -> Card:
    """Return the card that a model's metadata holds.

    Raises:
        CardError: there is none, it cannot be read, or it describes what this version cannot serve.
    """
    if not text:
        raise CardError(
            f"{origin} has no card: expected metadata {CARD_KEY!r}, as export_onnx.py writes it"
        )
    try:
        card = msgspec.json.decode(text, type=Card)
    except (msgspec.DecodeError, ConfigError, ValueError, RecursionError) as error:
        raise CardError(f"{origin}: its card cannot be read: {error}") from error
    if card.version != CARD_VERSION:
        raise CardError(f"{origin}: card version {card.version}: expected {CARD_VERSION}")
    if len(set(card.labels)) != len(card.labels) or len(card.labels) < 2:
        raise CardError(f"{origin}: labels {card.labels}: expected two or more different ones")
    if UNCERTAIN in card.labels:
        raise CardError(f"{origin}: labels {card.labels}: expected none called {UNCERTAIN!r}")
    thresholds = (card.rejection.smoothed, card.rejection.turn)
    if not all(0 <= value < 1 for value in thresholds):
        raise CardError(f"{origin}: rejection below {thresholds}: expected 0 or more, less than 1")
    temperatures = (card.calibration.window, card.calibration.smoothed, card.calibration.turn)
    if not all(0.01 <= value <= 100 for value in temperatures):
        raise CardError(f"{origin}: temperatures {temperatures}: expected 0.01 to 100")
    if card.features.sample_rate != 16000:
        raise CardError(f"{origin}: features at {card.features.sample_rate} Hz: expected 16000")
    if card.normalization and len(card.normalization.mean) > card.features.num_rows:
        raise CardError(
            f"{origin}: a normalisation mean of {len(card.normalization.mean)} coefficients: "
            f"expected at most {card.features.num_rows}"
        )
    return card
