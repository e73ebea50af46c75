"""Calls put together from one speaker's utterances: neutral, angry, neutral, with noise between.

An utterance is one emotion from end to end, a call is not: how soon a change is told, how often the
label changes where nothing does, and what is said of noise alone can only be asked of such calls.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from streamer.arrays import Samples
from streamer.card import Card
from streamer.events import Emotion, Event, Speech, Turn
from train.conditions import active_power, sound
from train.corpora import LABELS, SAMPLE_RATE, Utterance, read_samples
from train.listening import listen, scorer_of

STRETCHES = ("neutral", "angry", "neutral")
EMOTIONAL = tuple(label for label in LABELS if label != "neutral")
STRETCH_S = 8.0
"""A stretch of one emotion goes on until it has lasted so long, if the speaker said as much."""

_PAUSE_S = (0.2, 0.8)  # either side of the hang-over: some pauses end a turn, some do not
_NOISE_S = 3.0
_NOISE_DB = -10.0  # of a noise stretch, against the speech
_FLOOR_DB = -50.0  # of what is never quite silent


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of a spliced call: an emotion's, or ``noise``."""

    label: str
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One emotion event: when it could be known, what was shown, its scores in LABELS' order."""

    time_s: float
    label: str
    scores: tuple[float, ...]
    turn: int


@dataclass(frozen=True, kw_only=True)
class SplicedTask:
    """One speaker's utterances, or none where noises alone are to be heard, and who hears them."""

    model: Path
    card: Card
    utterances: tuple[Utterance, ...]
    noises: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class SplicedCall:
    """What became of one call. ``said`` is each turn's label, ``onsets_s`` where turns began."""

    speaker_id: str
    parts: tuple[Part, ...]
    shown: tuple[Shown, ...]
    said: tuple[str, ...]
    onsets_s: tuple[float, ...]


def can_splice(utterances: Sequence[Utterance]) -> bool:
    """Tell whether a speaker said enough: two neutral utterances and an angry one."""
    labels = [utterance.label for utterance in utterances]
    return labels.count("neutral") >= 2 and labels.count("angry") >= 1


def hear_spliced(task: SplicedTask) -> SplicedCall:
    """Make a call of one speaker, or of noises alone, and play it through the session."""
    if task.utterances:
        samples, parts = splice(task.utterances, task.noises)
        speaker_id = task.utterances[0].speaker_id
    else:
        quiet = np.zeros(SAMPLE_RATE, np.float32)
        samples = np.concatenate([part for path in task.noises for part in (sound(path), quiet)])
        parts, speaker_id = _noise_parts(task.noises, len(quiet)), ""
    (events,) = listen(scorer_of(task.model), task.card, [samples])
    return read_call(events, parts, speaker_id, task.card)


def _noise_parts(noises: Sequence[Path], num_quiet: int) -> list[Part]:
    parts, start = [], 0
    for path in noises:
        parts.append(_part("noise", start, start + len(sound(path))))
        start += len(sound(path)) + num_quiet
    return parts


def read_call(
    events: Sequence[Event], parts: Sequence[Part], speaker_id: str, card: Card
) -> SplicedCall:
    """Keep what a call's events showed, by the time at which they could be known."""
    shown: list[Shown] = []
    turns = [event for event in events if isinstance(event, Turn)]
    onsets_s = [event.time_s for event in events if isinstance(event, Speech) and event.active]
    for event in events:
        if isinstance(event, Emotion):
            shown.append(
                Shown(
                    time_s=round(event.end_s + card.features.look_ahead_s, 3),
                    label=event.label,
                    scores=tuple(event.scores[label] for label in LABELS),
                    turn=sum(onset_s <= event.end_s for onset_s in onsets_s) - 1,
                )
            )
    return SplicedCall(
        speaker_id=speaker_id,
        parts=tuple(parts),
        shown=tuple(shown),
        said=tuple(turn.label for turn in turns),
        onsets_s=tuple(onsets_s),
    )


def splice(utterances: Sequence[Utterance], noises: Sequence[Path]) -> tuple[Samples, list[Part]]:
    """Put one speaker's utterances together, the same way every time; return where what is."""
    rng = np.random.default_rng(zlib.crc32(utterances[0].speaker_id.encode()))
    waiting = {
        label: [item for item in utterances if item.label == label]
        for label in ("neutral", "angry")
    }
    for members in waiting.values():
        rng.shuffle(members)
    half = (len(waiting["neutral"]) + 1) // 2
    first, last = waiting["neutral"][:half], waiting["neutral"][half:]
    pieces: list[Samples] = []
    parts: list[Part] = []
    length = 0
    for label, members in zip(STRETCHES, (first, waiting["angry"], last), strict=True):
        if pieces and noises:
            noise = _noise(noises, pieces, rng)
            pieces.append(noise)
            parts.append(_part("noise", length, length + len(noise)))
            length += len(noise)
        start = length
        for utterance in members:
            if length - start >= STRETCH_S * SAMPLE_RATE:
                break
            pause = np.zeros(round(rng.uniform(*_PAUSE_S) * SAMPLE_RATE), np.float32)
            pieces += [pause, read_samples(utterance)]
            length += len(pieces[-2]) + len(pieces[-1])
        parts.append(_part(label, start, length))
    pieces.append(np.zeros(SAMPLE_RATE, np.float32))
    samples = np.concatenate(pieces)
    floor = np.sqrt(active_power(samples) * 10.0 ** (_FLOOR_DB / 10.0))
    hiss = rng.normal(0.0, floor, len(samples)).astype(np.float32)
    return np.clip(samples + hiss, -1.0, 1.0), parts


def _noise(noises: Sequence[Path], speech: Sequence[Samples], rng: np.random.Generator) -> Samples:
    noise = sound(noises[int(rng.integers(len(noises)))])
    noise = noise[: round(_NOISE_S * SAMPLE_RATE)]
    power = active_power(np.concatenate(speech)) * 10.0 ** (_NOISE_DB / 10.0)
    quieter: Samples = noise * np.float32(np.sqrt(power / active_power(noise)))
    return quieter


def _part(label: str, start: int, end: int) -> Part:
    return Part(label=label, start_s=start / SAMPLE_RATE, end_s=end / SAMPLE_RATE)


def detection_delay_s(call: SplicedCall) -> float:
    """Seconds from the first speech of the angry stretch to "angry" shown there; inf if never."""
    part = next(part for part in call.parts if part.label == "angry")
    onsets = [onset_s for onset_s in call.onsets_s if part.start_s <= onset_s < part.end_s]
    # Without an onset inside, noise had opened a turn already: the stretch's own start counts.
    onset_s = onsets[0] if onsets else part.start_s
    times = [
        item.time_s
        for item in call.shown
        if onset_s <= item.time_s < part.end_s + 0.5 and item.label == "angry"
    ]
    return times[0] - onset_s if times else float("inf")


def count_flips(call: SplicedCall) -> tuple[int, int]:
    """Changes of the label inside stretches of one emotion: of any kind, and between emotions.

    The first change to the stretch's own emotion is an answer, not a flip. A change from or to
    "uncertain" is of the first kind alone.
    """
    num_any = num_between = 0
    for part in call.parts:
        if part.label == "noise":
            continue
        inside = [item.label for item in call.shown if part.start_s <= item.time_s < part.end_s]
        changes = [(one, other) for one, other in pairwise(inside) if one != other]
        arrivals = [place for place, (_, other) in enumerate(changes) if other == part.label]
        if arrivals and (not inside or inside[0] != part.label):
            del changes[arrivals[0]]
        num_any += len(changes)
        sure = [label for label in inside if label in LABELS]
        between = sum(one != other for one, other in pairwise(sure))
        num_between += between - (bool(sure) and sure[0] != part.label and part.label in sure)
    return num_any, num_between


def minutes_of(call: SplicedCall, *, noise: bool) -> float:
    """Minutes of noise, or of the stretches of one emotion, the pauses in them included."""
    chosen = [part for part in call.parts if (part.label == "noise") == noise]
    return sum(part.end_s - part.start_s for part in chosen) / 60.0


def count_alarms(call: SplicedCall) -> int:
    """How often an emotion comes up on a call of noise: angry, happy or sad, newly shown.

    It is new if the event before it, in the same turn, showed another label, or none was.
    """
    alarms = 0
    before: tuple[int, str] | None = None
    for item in call.shown:
        alarms += item.label in EMOTIONAL and before != (item.turn, item.label)
        before = (item.turn, item.label)
    return alarms
