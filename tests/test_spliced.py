from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.made_up_corpus import make_corpus
from tests.test_conditions import write_aux
from train.conditions import Surroundings
from train.corpora import LABELS, SAMPLE_RATE
from train.spliced import (
    Part,
    Shown,
    SplicedCall,
    can_splice,
    count_alarms,
    count_flips,
    detection_delay_s,
    minutes_of,
    splice,
)

PARTS = (
    Part(label="neutral", start_s=0.0, end_s=10.0),
    Part(label="noise", start_s=10.0, end_s=13.0),
    Part(label="angry", start_s=13.0, end_s=23.0),
    Part(label="noise", start_s=23.0, end_s=26.0),
    Part(label="neutral", start_s=26.0, end_s=36.0),
)


def call(shown: dict[float, str], onsets_s: tuple[float, ...] = (0.5, 14.0, 27.0)) -> SplicedCall:
    """Return a call in which these labels were shown at these times."""
    rest = (0.25,) * len(LABELS)
    return SplicedCall(
        speaker_id="c/s",
        parts=PARTS,
        shown=tuple(
            Shown(
                time_s=time_s,
                label=label,
                scores=rest,
                turn=sum(onset_s <= time_s for onset_s in onsets_s) - 1,
            )
            for time_s, label in shown.items()
        ),
        said=(),
        onsets_s=onsets_s,
    )


def test_a_delay_counts_from_the_first_speech_of_the_angry_stretch() -> None:
    shown = {2.0: "angry", 11.0: "angry", 15.1: "neutral", 16.5: "angry", 28.0: "angry"}
    assert detection_delay_s(call(shown)) == pytest.approx(2.5)
    assert detection_delay_s(call({2.0: "angry", 28.0: "angry"})) == math.inf
    assert detection_delay_s(call(shown, onsets_s=(0.5, 12.0, 27.0))) == pytest.approx(3.5)


def test_a_flip_is_a_change_that_nothing_in_the_stretch_explains() -> None:
    steady = {2.0: "neutral", 15.0: "neutral", 15.5: "angry", 28.0: "angry", 29.0: "neutral"}
    assert count_flips(call(steady)) == (0, 0)
    flips = {2.0: "neutral", 3.0: "sad", 4.0: "neutral", 15.5: "angry", 18.0: "happy"}
    assert count_flips(call(flips)) == (3, 3)
    unsure = {2.0: "neutral", 3.0: "uncertain", 4.0: "neutral", 5.0: "uncertain", 6.0: "sad"}
    assert count_flips(call(unsure)) == (4, 1)
    assert count_flips(call({11.0: "sad", 12.0: "angry"})) == (0, 0), "noise is no stretch"


def test_an_alarm_is_an_emotion_newly_shown() -> None:
    shown = {1.0: "neutral", 1.5: "sad", 2.0: "sad", 2.5: "uncertain", 3.0: "sad", 3.5: "angry"}
    assert count_alarms(call(shown)) == 3
    assert count_alarms(call({1.0: "sad", 15.0: "sad"})) == 2, "another turn"
    assert count_alarms(call({1.0: "neutral", 1.5: "uncertain"})) == 0


def test_minutes_are_of_noise_or_of_speech() -> None:
    assert minutes_of(call({}), noise=True) == pytest.approx(0.1)
    assert minutes_of(call({}), noise=False) == pytest.approx(0.5)


def test_a_call_is_neutral_angry_neutral_and_the_same_every_time(tmp_path: Path) -> None:
    utterances = make_corpus(tmp_path / "corpus", num_speakers=1, seconds=(0.5, 0.7, 0.9))
    noises = Surroundings.find(write_aux(tmp_path / "aux")).noises
    samples, parts = splice(utterances, noises)
    again, _ = splice(list(utterances), noises)
    assert np.array_equal(samples, again)
    assert [part.label for part in parts] == ["neutral", "noise", "angry", "noise", "neutral"]
    assert all(one.end_s == other.start_s for one, other in pairwise(parts))
    assert len(samples) == round((parts[-1].end_s + 1.0) * SAMPLE_RATE)
    quiet, loud = (
        np.abs(samples[round(part.start_s * SAMPLE_RATE) : round(part.end_s * SAMPLE_RATE)]).max()
        for part in (parts[0], parts[2])
    )
    assert loud > 2 * quiet, "in this corpus anger is 12 dB louder"
    assert can_splice(utterances)
    assert not can_splice([item for item in utterances if item.label != "angry"])
