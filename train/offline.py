"""Utterances as a paper would score them: the corpus's own boundaries, no voice activity.

Beside what is streamed these tell what the stream costs. Each file is one turn from its first frame
to its last; its windows, their average and the normalisation's code are those of serving. With
``whole`` the channel's mean is the whole speaker's from the first frame on: no stream knows that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from streamer.arrays import Frames, Samples, WindowFeatures
from streamer.card import Card
from streamer.frontend import FrontEnd, FrontEndConfig
from streamer.normalization import CausalNormalizer
from streamer.smoothing import softmax
from streamer.windows import WindowSchedule, cut_window
from train.corpora import Utterance, read_samples
from train.listening import NO_ANSWER, Group, scorer_of

_STEP_FRAMES = 25
_BATCH = 64
_FOREVER = 10**9


class OfflineAnswer(NamedTuple):
    """Index of the label with causal normalisation, and with the whole speaker's."""

    causal: int
    whole: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Taken:
    """One utterance's frames (n, 3, num_ceps), not normalised, and which of them are speech."""

    speaker_id: str
    frames: Frames
    is_speech: NDArray[np.bool_]


def hear_offline(group: Group) -> list[OfflineAnswer]:
    """Score a group's utterances, clean; it must hold all of each of its speakers."""
    card = group.card
    taken = [_take(item, read_samples(item), card) for item in group.utterances]
    windows: list[WindowFeatures] = []
    owners: list[int] = []
    speakers = {
        speaker: _know_speaker([one for one in taken if one.speaker_id == speaker], card)
        for speaker in sorted({item.speaker_id for item in taken})
    }
    for index, item in enumerate(taken):
        causal = CausalNormalizer(card.normalization) if card.normalization else None
        for place, normalizer in ((index, causal), (index + len(taken), speakers[item.speaker_id])):
            # The speaker's own is known already, and nothing is to move it.
            moves = item.is_speech & (normalizer is causal)
            frames = normalizer.normalize(item.frames, moves) if normalizer else item.frames
            cut = cut_file(frames, card)
            windows += cut
            owners += [place] * len(cut)
    if not windows:
        return [OfflineAnswer(NO_ANSWER, NO_ANSWER) for _ in taken]
    totals = np.zeros((2 * len(taken), len(card.labels)))
    score = scorer_of(group.model)
    for start in range(0, len(windows), _BATCH):
        probabilities = softmax(score(np.stack(windows[start : start + _BATCH])))
        np.add.at(totals, owners[start : start + _BATCH], probabilities)
    answers = np.where(totals.any(axis=1), totals.argmax(axis=1), NO_ANSWER)
    return [OfflineAnswer(int(answers[i]), int(answers[i + len(taken)])) for i in range(len(taken))]


def _take(utterance: Utterance, samples: Samples, card: Card) -> _Taken:
    config = FrontEndConfig(features=card.features, normalization=None, window=card.window)
    shift = card.features.frame_shift
    front_end = FrontEnd(config, history_frames=len(samples) // shift + 8)
    front_end.receive(samples)
    front_end.flush()
    frames, is_speech = front_end.frames(0, front_end.num_frames_computed)
    return _Taken(speaker_id=utterance.speaker_id, frames=frames, is_speech=is_speech)


def _know_speaker(taken: Sequence[_Taken], card: Card) -> CausalNormalizer | None:
    """Make a normaliser that has heard all that a speaker says, none of it for the card's mean."""
    if card.normalization is None:
        return None
    config = replace(card.normalization, prior_frames=0, memory_frames=_FOREVER)
    normalizer = CausalNormalizer(config)
    for item in taken:
        speech = item.frames[item.is_speech]
        normalizer.normalize(speech, np.ones(len(speech), np.bool_))
    return normalizer


def cut_file(frames: Frames, card: Card) -> list[WindowFeatures]:
    """Cut a turn that is a whole file: its full windows, or, having none, one padded."""
    schedule = WindowSchedule(card.window, step_frames=_STEP_FRAMES)
    schedule.open_turn(0, 0)
    spans = schedule.due(len(frames), len(frames))
    last = schedule.close_turn(len(frames))
    spans = [*spans, last] if last else spans
    chosen = [span for span in spans if span.is_full] or spans[-1:]
    return [
        cut_window(frames[span.start_frame : span.end_frame], card.window.num_frames)
        for span in chosen
    ]
