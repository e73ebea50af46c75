"""Utterances played through the session that serves, and what its events said of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from streamer.arrays import Samples
from streamer.audio import AudioFormat
from streamer.call import Call, CallConfig
from streamer.card import UNCERTAIN, Card
from streamer.events import Emotion, Event, Speech, Turn
from streamer.model import Model
from streamer.smoothing import calibrate
from train.conditions import Surroundings, condition_samples
from train.corpora import LABELS, SAMPLE_RATE, Utterance

NO_ANSWER = len(LABELS)
"""Stands for the answer to an utterance in which the session found no turn: always wrong."""

UNSURE = len(LABELS)
"""Stands for UNCERTAIN among the labels that were shown or said."""

Scorer: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Windows (n, 3, num_ceps, num_frames) to logits (n, num_labels)."""

_FORMAT = AudioFormat(encoding="pcm_f32le", sample_rate=SAMPLE_RATE, channels=1)
_CHUNK_BYTES = round(0.1 * SAMPLE_RATE) * _FORMAT.bytes_per_sample
_BATCH = 64  # windows scored at once
_SMALLEST = 5e-7  # events hold six decimals: what they show as 0 is less than this
_WORDS = (*LABELS, UNCERTAIN)


@dataclass(frozen=True, kw_only=True, eq=False)
class Heard:
    """What the events of one utterance's call said, scores at temperatures of 1.

    Of its m windows: ``window`` and ``smoothed`` (m, num_labels), each one's own and averaged
    scores; ``heard_s`` (m,), seconds of audio since the first onset; ``is_full`` and ``in_turn``
    (m,); ``shown`` (m,), the label as served, UNSURE where it was uncertain. Of its k turns:
    ``turn`` (k, num_labels), ``turn_windows`` (k,), how many it averaged, and ``said`` (k,).
    """

    utterance: Utterance
    window: NDArray[np.float64]
    smoothed: NDArray[np.float64]
    heard_s: NDArray[np.float64]
    is_full: NDArray[np.bool_]
    in_turn: NDArray[np.intp]
    shown: NDArray[np.intp]
    turn: NDArray[np.float64]
    turn_windows: NDArray[np.int64]
    said: NDArray[np.intp]

    @property
    def truth(self) -> int:
        """Index of the utterance's label, which it must have."""
        return LABELS.index(self.utterance.label or "")

    @property
    def answer(self) -> int:
        """Index of the label that all turns together come to, each by its windows' number.

        By its scores, however unsure.
        """
        if not len(self.turn):
            return NO_ANSWER
        return int(np.argmax(self.turn_windows @ self.turn))

    def answer_after(self, seconds: float) -> int:
        """Return what the answer would be, had the call ended so long after the first onset."""
        total = np.zeros(len(LABELS))
        heard = self.heard_s <= seconds
        if not heard.any():
            return NO_ANSWER
        for turn in np.unique(self.in_turn[heard]):
            rows = np.flatnonzero(heard & (self.in_turn == turn))
            full = rows[self.is_full[rows]]
            total += self.window[full].sum(axis=0) if len(full) else self.window[rows[-1]]
        return int(np.argmax(total))


@dataclass(frozen=True, kw_only=True)
class Group:
    """Utterances that one model hears together, served with ``card``, in one condition.

    ``fold`` decides which noises there are.
    """

    model: Path
    card: Card
    fold: int | None
    condition: str
    utterances: tuple[Utterance, ...]
    surroundings: Surroundings = field(default_factory=Surroundings)


@lru_cache(maxsize=8)
def scorer_of(path: Path) -> Scorer:
    """Load a model file under ONNX Runtime, once a process.

    Raises:
        ModelError: it is not such a file.
    """
    model = Model.load(path, provider="cpu")
    return lambda windows: model.score(windows).logits


def listen(score: Scorer, card: Card, audios: Iterable[Samples]) -> list[list[Event]]:
    """Play 16 kHz audios through a call each, as served, and return their events."""
    calls, due = [], []
    for audio in audios:
        call = Call(card, CallConfig(audio=_FORMAT))
        coded = audio.astype("<f4").tobytes()
        for start in range(0, len(coded), _CHUNK_BYTES):
            call.receive(coded[start : start + _CHUNK_BYTES], 0.0)
        call.receive_end(0.0)
        calls.append(call)
        due += [(call, window) for window in call.windows_to_score()]
    for start in range(0, len(due), _BATCH):
        batch = due[start : start + _BATCH]
        logits = score(np.stack([window.features for _, window in batch]))
        for (call, window), row in zip(batch, logits, strict=True):
            call.receive_scores(window, row)
    return [call.events_to_send(0.0) for call in calls]


def hear(group: Group) -> list[Heard]:
    """Play a group's utterances to its model."""
    audios = [
        condition_samples(utterance, group.condition, group.surroundings, group.fold)
        for utterance in group.utterances
    ]
    events_of = listen(scorer_of(group.model), group.card, audios)
    return [
        heard(utterance, events, group.card)
        for utterance, events in zip(group.utterances, events_of, strict=True)
    ]


def heard(utterance: Utterance, events: Sequence[Event], card: Card) -> Heard:
    """Read a call's events; their calibration is undone, as several are to be compared."""
    emotions, in_turn = [], []
    turns: list[Turn] = []
    onset_s = 0.0
    for event in events:
        if isinstance(event, Emotion):
            emotions.append(event)
            in_turn.append(len(turns))
        elif isinstance(event, Turn):
            turns.append(event)
        elif isinstance(event, Speech) and event.active and not turns:
            onset_s = event.time_s
    calibration = card.calibration
    return Heard(
        utterance=utterance,
        window=_table([event.raw for event in emotions], calibration.window),
        smoothed=_table([event.scores for event in emotions], calibration.smoothed),
        heard_s=np.array([heard_s(event, onset_s, card) for event in emotions], np.float64),
        is_full=np.array([not event.warming_up for event in emotions], np.bool_),
        in_turn=np.array(in_turn, np.intp),
        shown=np.array([_WORDS.index(event.label) for event in emotions], np.intp),
        turn=_table([event.scores for event in turns], calibration.turn),
        turn_windows=np.array([event.windows for event in turns], np.int64),
        said=np.array([_WORDS.index(event.label) for event in turns], np.intp),
    )


def heard_s(event: Emotion, onset_s: float, card: Card) -> float:
    """Seconds from an onset to the end of a window, by frame shifts: its last frame is longer."""
    features = card.features
    overlap_s = (features.frame_length - features.frame_shift) / features.sample_rate
    return round(event.end_s - overlap_s - onset_s, 3)


def _table(scores: Sequence[dict[str, float]], temperature: float) -> NDArray[np.float64]:
    rows = np.array([[row[label] for label in LABELS] for row in scores], np.float64)
    rows = np.maximum(rows.reshape(-1, len(LABELS)), _SMALLEST)
    return calibrate(rows, 1.0 / temperature) if len(rows) else rows
