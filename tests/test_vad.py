from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.arrays import Samples
from streamer.errors import ConfigError
from streamer.vad import BLOCK_S, SpeechTracker, VadConfig, VoiceDetector
from tests.golden.synthetic import at_level, hiss, silence, voice

NUM_ONSET = round(VadConfig().onset_s / BLOCK_S)
NUM_HANG_OVER = round(VadConfig().hang_over_s / BLOCK_S)


def decide(audio: Samples, config: VadConfig | None = None) -> list[bool]:
    """Return the detector's decision on every whole block."""
    detector = VoiceDetector(config or VadConfig())
    length = detector.block_length
    return [
        detector.is_speech(audio[start : start + length])
        for start in range(0, len(audio) - length + 1, length)
    ]


def track(flags: list[bool], config: VadConfig | None = None) -> list[tuple[int, int]]:
    """Return the turns of block decisions as (onset, end); one still open ends with the flags."""
    tracker = SpeechTracker(config or VadConfig())
    turns = []
    was_active = False
    for flag in flags:
        changed = tracker.receive(flag)
        assert changed == (tracker.active != was_active)
        was_active = tracker.active
        if changed and not was_active:
            turns.append((tracker.onset_block, tracker.end_block))
    assert tracker.num_blocks == len(flags)
    if was_active:
        tracker.close()
        turns.append((tracker.onset_block, tracker.end_block))
    return turns


# What is speech


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("level_dbfs", [-45.0, -25.0, -3.0])
def test_a_voice_is_speech_from_quiet_to_clipping(level_dbfs: float, seed: int) -> None:
    flags = decide(voice(4.0, level_dbfs, seed))
    # The dips between syllables are 30 dB down: at -45 dBFS one block in ten is lost to them.
    assert sum(flags) >= 0.85 * len(flags)
    ((onset, end),) = track(flags)
    assert onset <= 2 and end >= 195


@pytest.mark.parametrize("corpus", ["ravdess", "emodb", "nemo", "banglaser"])
def test_real_speech_at_45_db_below_full_scale_is_speech(speech_data: Path, corpus: str) -> None:
    with (speech_data / corpus / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"]]
    num_loud = num_quiet = 0
    for row in rows[:: len(rows) // 5]:
        audio, _ = soundfile.read(speech_data / corpus / row["path"], dtype="float32")
        quiet = decide(at_level(audio, -45.0))
        assert track(quiet), row["path"]
        num_quiet += sum(quiet)
        num_loud += sum(decide(at_level(audio, -25.0)))
    # Measured: 85 % of what is speech at a speaking level still is at -45 dBFS (pauses count in
    # neither); without the gain it is far less.
    assert num_quiet >= 0.8 * num_loud


@pytest.mark.parametrize("mode", [0, 1, 2, 3])
def test_silence_and_faint_hiss_are_never_speech(mode: int) -> None:
    config = VadConfig(mode=mode)
    faint = [silence(2.0), *(hiss(2.0, level, seed=7) for level in (-90.0, -70.0))]
    for audio in faint:
        assert not any(decide(audio, config))


def test_nothing_below_the_floor_is_speech() -> None:
    audio = voice(1.0, -30.0)
    assert sum(decide(audio)) > 40
    assert not any(decide(audio, VadConfig(floor_dbfs=-15.0)))


# Turns


def test_speech_of_the_onset_opens_a_turn_at_its_first_block() -> None:
    tracker = SpeechTracker(VadConfig())
    for _ in range(10):
        assert not tracker.receive(False)
    changes = [tracker.receive(True) for _ in range(NUM_ONSET)]
    assert changes == [False] * (NUM_ONSET - 1) + [True]
    assert (tracker.active, tracker.onset_block, tracker.end_block) == (True, 10, 15)


def test_the_hang_over_closes_a_turn_after_its_last_speech_block() -> None:
    tracker = SpeechTracker(VadConfig())
    for _ in range(8):
        tracker.receive(True)
    changes = [tracker.receive(False) for _ in range(NUM_HANG_OVER)]
    assert changes == [False] * (NUM_HANG_OVER - 1) + [True]
    assert (tracker.active, tracker.onset_block, tracker.end_block) == (False, 0, 8)


@pytest.mark.parametrize(
    ("blocks", "turns"),
    [
        ("XXXX", []),
        ("XXXXX", [(0, 5)]),
        (".XX.XXX", [(1, 7)]),  # one block of the onset may be missed
        (".XX..XXX", []),  # two may not
        (".XX..XXXX.", []),
        (".XX..XXXX.X", [(5, 11)]),
        ("X..XXXXX", [(3, 8)]),
        ("XXXXX" + 24 * "." + "X", [(0, 30)]),
        ("XXXXX" + 25 * "." + "X", [(0, 5)]),
        ("XXXXX" + 25 * "." + "XXXXX", [(0, 5), (30, 35)]),
        ("XXXXX" + 25 * "." + "XXXX", [(0, 5)]),  # nothing of the last turn helps the next
    ],
)
def test_turns(blocks: str, turns: list[tuple[int, int]]) -> None:
    assert track([block == "X" for block in blocks]) == turns


@st.composite
def flag_lists(draw: st.DrawFn) -> list[bool]:
    """Runs of speech and of pause, of lengths near the limits."""
    lengths = draw(st.lists(st.integers(1, 8) | st.integers(20, 30), max_size=16))
    first = draw(st.booleans())
    runs = ([first == (number % 2 == 0)] * length for number, length in enumerate(lengths))
    return list(itertools.chain.from_iterable(runs))


@settings(max_examples=200)
@given(
    flags=flag_lists(),
    onset_s=st.sampled_from([0.06, 0.1, 0.3]),
    hang_over_s=st.sampled_from([0.1, 0.13, 0.5]),
)
def test_turns_are_ordered_apart_and_bounded_by_speech(
    flags: list[bool], onset_s: float, hang_over_s: float
) -> None:
    config = VadConfig(onset_s=onset_s, hang_over_s=hang_over_s, pre_roll_s=hang_over_s)
    num_onset = round(onset_s / BLOCK_S)
    turns = track(flags, config)
    for (_, end), (onset, _) in itertools.pairwise(turns):
        pause_s = (onset - end) * BLOCK_S
        # A billionth of a second, for no multiple of 0.02 is exact.
        assert pause_s >= config.hang_over_s - 1e-9
        assert pause_s >= config.pre_roll_s - 1e-9, "a pre-roll reaches into the turn before"
    spoken = np.array(flags, bool)
    outside = spoken.copy()
    for onset, end in turns:
        assert spoken[onset] and spoken[end - 1]
        assert spoken[onset : onset + num_onset + 1].sum() >= num_onset
        pauses = [len(list(run)) for flag, run in itertools.groupby(flags[onset:end]) if not flag]
        assert max(pauses, default=0) * BLOCK_S < config.hang_over_s + BLOCK_S
        outside[onset:end] = False
    left_out = [len(list(run)) for flag, run in itertools.groupby(outside) if flag]
    assert max(left_out, default=0) < num_onset, "speech long enough for an onset was left out"


@settings(max_examples=50)
@given(flags=flag_lists(), num_later=st.integers(0, 60))
def test_the_past_is_not_revised(flags: list[bool], num_later: int) -> None:
    num_first = max(0, len(flags) - num_later)
    all_turns, first_turns = track(flags), track(flags[:num_first])
    for early, late in zip(first_turns, all_turns, strict=False):
        assert early[0] == late[0]
        assert early[1] <= late[1]


# What is refused


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mode": 4}, "VAD mode 4: expected 0, 1, 2 or 3"),
        ({"mode": -1}, "VAD mode -1: expected"),
        ({"onset_s": 0.05}, "onset of 0.05 s: expected 0.06 to 1 s"),
        ({"onset_s": float("nan")}, "onset of nan s: expected"),
        ({"hang_over_s": 0.05}, "hang-over of 0.05 s: expected 0.1 to 5 s"),
        ({"hang_over_s": 5.1}, "hang-over of 5.1 s: expected"),
        ({"pre_roll_s": 0.6}, "pre-roll of 0.6 s: expected 0 to the hang-over, 0.5 s"),
        ({"pre_roll_s": -0.1}, "pre-roll of -0.1 s: expected"),
        ({"gain_db": float("nan")}, "gain of nan dB: expected"),
        ({"floor_dbfs": float("nan")}, "floor of nan dBFS: expected"),
    ],
)
def test_a_config_out_of_range_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VadConfig(**values)
