from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.errors import ConfigError
from streamer.windows import Span, WindowConfig, WindowSchedule, cut_window

STEP = 25
PAUSE = 20
"""Frames after the last speech within which a grid point is still scored."""


def run_turn(
    runs: list[int], *, onset: int = 1_000, pre_roll: int = 20, step: int = STEP, by: int = 1
) -> tuple[list[Span], Span | None]:
    """Play one turn, ``runs`` of speech and pause by turns, ``by`` frames at a time."""
    schedule = WindowSchedule(WindowConfig(), step_frames=step)
    schedule.open_turn(onset, onset - pre_roll)
    spoken = [number % 2 == 0 for number, length in enumerate(runs) for _ in range(length)]
    spans: list[Span] = []
    speech_end = onset
    for index, flag in enumerate(spoken, start=1):
        speech_end = onset + index if flag else speech_end
        if index % by == 0 or index == len(spoken):
            spans += schedule.due(onset + index, speech_end)
    return spans, schedule.close_turn(speech_end)


def test_the_first_window_ends_a_second_after_the_onset_the_next_a_step_later_each() -> None:
    spans, tail = run_turn([400])
    assert [span.end_frame for span in spans] == list(range(1_100, 1_401, STEP))
    assert spans[0] == Span(start_frame=980, end_frame=1_100, is_full=False)
    assert spans[-1] == Span(start_frame=1_200, end_frame=1_400, is_full=True)
    assert tail is None, "the last step's window already ends with the speech"


def test_windows_never_reach_before_the_pre_roll_and_are_full_from_then_on() -> None:
    spans, _ = run_turn([400])
    for span in spans:
        assert span.start_frame == max(980, span.end_frame - 200)
        assert span.is_full == (span.end_frame >= 1_180)


def test_the_tail_of_a_turn_gets_a_last_window() -> None:
    spans, tail = run_turn([310])
    assert spans[-1].end_frame == 1_300
    assert tail == Span(start_frame=1_110, end_frame=1_310, is_full=True, is_last=True)
    assert not any(span.is_last for span in spans)


def test_a_turn_shorter_than_the_first_window_gets_one_at_its_end() -> None:
    assert run_turn([60]) == (
        [],
        Span(start_frame=980, end_frame=1_060, is_full=False, is_last=True),
    )


def test_grid_points_in_a_pause_are_passed_over() -> None:
    # Speech to 1110, pause to 1190, speech to 1260. The grid: 1100, 1125, 1150, 1175, 1200 ...
    spans, tail = run_turn([110, 80, 70])
    assert [span.end_frame for span in spans] == [1_100, 1_125, 1_200, 1_225, 1_250]
    assert tail is not None and tail.end_frame == 1_260


def test_the_first_window_waits_for_no_pause_and_is_not_scored_twice() -> None:
    # Speech to 1070, pause to 1115, speech to 1180: due at 1100, about what was said by then.
    spans, tail = run_turn([70, 45, 65])
    assert [span.end_frame for span in spans] == [1_070, 1_125, 1_150, 1_175]
    assert tail is not None
    # The same without what follows: the turn ends with the window that it has.
    spans, tail = run_turn([70, 45])
    assert [span.end_frame for span in spans] == [1_070] and tail is None


@pytest.mark.parametrize(("end", "is_scored"), [(1_104, False), (1_105, True)])
def test_a_pause_of_a_fifth_of_a_second_is_not_passed_over(end: int, is_scored: bool) -> None:
    spans, _ = run_turn([end - 1_000, 50])
    assert (1_125 in [span.end_frame for span in spans]) == is_scored


def test_turns_do_not_see_each_other() -> None:
    schedule = WindowSchedule(WindowConfig(), step_frames=STEP)
    schedule.open_turn(100, 80)
    assert len(schedule.due(400, 400)) == 9
    assert schedule.close_turn(410) is not None
    schedule.open_turn(500, 480)
    assert schedule.due(599, 599) == []
    spans = schedule.due(600, 600)
    assert spans == [Span(start_frame=480, end_frame=600, is_full=False)]


@settings(max_examples=200)
@given(
    runs=st.lists(st.integers(1, 60) | st.integers(1, 300), min_size=1, max_size=9),
    step=st.sampled_from([1, 10, 25, 130]),
    pre_roll=st.integers(0, 50),
    by=st.integers(1, 40),
)
def test_spans_of_any_turn(runs: list[int], step: int, pre_roll: int, by: int) -> None:
    runs = runs if len(runs) % 2 else runs[:-1]  # a turn ends with speech
    onset, length = 1_000, sum(runs)
    spans, tail = run_turn(runs, step=step, pre_roll=pre_roll, by=by)
    every = spans + ([tail] if tail else [])
    for span in every:
        assert onset - pre_roll <= span.start_frame < span.end_frame <= onset + length
        num_frames = span.end_frame - span.start_frame
        assert num_frames <= 200
        assert span.is_full == (num_frames == 200)
        assert span.is_full or span.start_frame == onset - pre_roll
    for early, late in itertools.pairwise(every):
        assert early.end_frame < late.end_frame
    assert all((span.end_frame - onset - 100) % step == 0 for span in spans[1:])
    if length >= 100:
        assert spans[0].end_frame <= onset + 100, "the first score is never later than stated"
    assert [span.is_last for span in every].count(True) == (tail is not None)
    assert every[-1].end_frame == onset + length, "the end of the speech was never scored"
    if length < 100:
        assert len(every) == 1


@settings(max_examples=100)
@given(runs=st.lists(st.integers(1, 150), min_size=1, max_size=7), step=st.sampled_from([10, 25]))
def test_a_window_is_scored_on_the_grid_exactly_where_speech_is_near(
    runs: list[int], step: int
) -> None:
    spans, _ = run_turn(runs, step=step)
    spoken = np.repeat([number % 2 == 0 for number in range(len(runs))], runs)
    expected = []
    for end in range(100, len(spoken) + 1, step):
        if spoken[max(0, end - PAUSE - 1) : end].any():
            expected.append(1_000 + end)
        elif end == 100:  # the first one is not passed over: it ends with the speech so far
            expected.append(1_001 + int(np.flatnonzero(spoken[:100])[-1]))
    assert [span.end_frame for span in spans] == expected


# Padding


@settings(max_examples=60)
@given(num_frames=st.integers(1, 200), seed=st.integers(0, 9))
def test_a_short_window_is_repeated_leftwards_the_newest_last(num_frames: int, seed: int) -> None:
    frames = np.random.default_rng(seed).standard_normal((num_frames, 3, 26)).astype(np.float32)
    window = cut_window(frames, 200)
    assert window.shape == (3, 26, 200)
    assert window.dtype == np.float32 and window.flags.c_contiguous
    for place in range(200):
        source = num_frames - 1 - (199 - place) % num_frames
        assert np.array_equal(window[:, :, place], frames[source])


def test_a_full_window_is_its_frames_and_a_copy() -> None:
    frames = np.arange(200 * 3 * 26, dtype=np.float32).reshape(200, 3, 26)
    window = cut_window(frames, 200)
    assert np.array_equal(window, frames.transpose(1, 2, 0))
    assert not np.shares_memory(window, frames)


# What is refused


@pytest.mark.parametrize("first_frames", [0, -1, 201])
def test_a_first_window_out_of_range_is_refused(first_frames: int) -> None:
    with pytest.raises(ConfigError, match=f"of {first_frames} frames: expected 1 to 200"):
        WindowConfig(first_frames=first_frames)


def test_a_step_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="step of 0 frames: expected 1 or more"):
        WindowSchedule(WindowConfig(), step_frames=0)
