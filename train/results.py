"""What ``python -m train evaluate`` finds, as far as a model's card keeps it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
from msgspec import Struct

from streamer.errors import ModelError
from train.config import FitConfig, config_from_dict, config_to_dict

_NOT_THE_RECIPE = ("name", "epochs", "patience", "stop_after", "seed")


class Share(Struct, frozen=True, kw_only=True):
    """Results of some of a corpus's utterances."""

    uar: float
    n: int


class CorpusResults(Struct, frozen=True, kw_only=True):
    """Results of one corpus over all folds' test speakers.

    ``confusion``: rows the truth, columns the answer, labels in the card's order; ``unanswered``:
    utterances of each label in which no turn was found. They count as wrong.
    """

    uar: float
    interval: tuple[float, float]
    wa: float
    n: int
    speakers: int
    confusion: list[list[int]]
    unanswered: list[int]
    gender: dict[str, Share] = {}


class TelephoneResults(Struct, frozen=True, kw_only=True):
    """The same over the telephone."""

    uar: float
    interval: tuple[float, float]


class CalibrationError(Struct, frozen=True, kw_only=True):
    """Expected calibration error at a temperature of 1, and at each fold's own."""

    before: float
    after: float


class FoldResults(Struct, frozen=True, kw_only=True):
    """One fold: its seed, the epoch that was kept, the UAR of each corpus's test speakers."""

    fold: int
    seed: int
    epoch: int
    test: dict[str, float]


class Rate(Struct, frozen=True, kw_only=True):
    """UAR and its 95 % interval."""

    uar: float
    interval: tuple[float, float]


class Offline(Struct, frozen=True, kw_only=True):
    """Points of UAR that streaming costs, and against the whole speaker's mean."""

    gap_points: float
    gap_to_whole_points: float


class Spliced(Struct, frozen=True, kw_only=True):
    """Spliced calls of test speakers; no delay where less than half of the changes were shown."""

    calls: int
    detected: float
    median_delay_s: float | None
    flips_a_minute: float


class Noise(Struct, frozen=True, kw_only=True):
    """Noise alone."""

    minutes: float
    alarms_a_minute: float


class Results(Struct, frozen=True, kw_only=True):
    """What a card keeps of an evaluation; ``ece`` is by kind of score.

    ``mean`` is by condition, ``heard_s`` by the seconds heard since the onset.
    """

    protocol: str
    config: dict[str, Any]
    folds: list[FoldResults]
    corpora: dict[str, CorpusResults]
    telephone: dict[str, TelephoneResults]
    mean: dict[str, float]
    ece: dict[str, CalibrationError]
    command: str = ""
    heard_s: dict[str, Rate] = {}
    offline: Offline | None = None
    spliced: Spliced | None = None
    noise: Noise | None = None


def results_of(results: dict[str, Any]) -> Results | None:
    """Read a card's results, or those of an evaluation; None where there are none.

    Raises:
        ModelError: they are something else.
    """
    if not results:
        return None
    expected = "results: expected those that `python -m train evaluate` writes"
    try:
        converted = msgspec.convert(results, Results)
    except msgspec.ValidationError as error:
        raise ModelError(f"{expected}: {error}") from error
    if set(converted.corpora) != set(converted.telephone):
        raise ModelError(f"{expected}: found one corpus clean or over the telephone alone")
    return converted


def card_results(results: dict[str, Any], config: FitConfig) -> dict[str, Any]:
    """Return what a card keeps of an evaluation of folds that were trained by the same recipe.

    Only the name, the seed and how long to train may differ from ``config``.

    Raises:
        ModelError: they are not an evaluation's results, or are of another recipe.
        ConfigError: their configuration is not one of this version's.
    """
    kept = results_of(results)
    if kept is None:
        return {}
    theirs = config_from_dict(kept.config, "results")
    aligned = replace(theirs, **{name: getattr(config, name) for name in _NOT_THE_RECIPE})
    if aligned != config:
        ours, other = config_to_dict(config), config_to_dict(aligned)
        wrong = ", ".join(name for name in ours if ours[name] != other[name])
        raise ModelError(f"results of another recipe than the checkpoint's ({wrong}): expected one")
    return msgspec.json.decode(msgspec.json.encode(kept), type=dict[str, Any])
