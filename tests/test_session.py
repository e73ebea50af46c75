"""The session's machinery: windows, answers, gaps; what its events say is in test_emotions.py."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from streamer.audio import AudioFormat, Decoder
from streamer.card import UNCERTAIN, Calibration, Rejection
from streamer.errors import AudioError, ConfigError, ScoreError, SessionClosedError
from streamer.events import Emotion, Error, Gap, Lag, Speech, Turn
from streamer.session import Session, SessionConfig, Window
from tests.golden.synthetic import hiss, silence
from tests.scorers import (
    LABELS,
    encode_audio,
    fake_logits,
    listen,
    make_card,
    of_type,
    one_turn,
    tone_speech,
    windows_of,
)

CARD = make_card()
LONG, SHORT = one_turn(4.0, 1), one_turn(0.4, 2)


def test_the_path_of_one_chunk() -> None:
    format, roles, config = AudioFormat(channels=2), ("customer", "agent"), SessionConfig()
    channels = [LONG, np.concatenate([SHORT, silence(5.3)])[: len(LONG)]]
    chunk = encode_audio(channels, format)

    decoder = Decoder(format)
    sessions = [Session(config, CARD, channel=n, role=role) for n, role in enumerate(roles)]
    for channel, samples in decoder.receive(chunk):
        sessions[channel].receive_audio(samples)
    for session in sessions:
        for window in session.windows_to_score():
            session.receive_scores(window, fake_logits(window.features))
        events = session.events_to_send()
        session.receive_end()
        kinds = [type(event) for event in events]
        assert kinds[0] is Speech and kinds[-2:] == [Speech, Turn] and Emotion in kinds
        assert {(event.channel, event.role) for event in events} == {
            (session.channel, roles[session.channel])
        }


# Windows


def test_windows_are_handed_over_once_and_wait_for_their_answers() -> None:
    session, windows = windows_of(LONG)
    assert session.windows_to_score() == []
    assert [window.number for window in windows] == list(range(len(windows)))
    assert session.num_outstanding == len(windows)
    # What came before the first window is settled, nothing after it.
    assert [type(event) for event in session.events_to_send()] == [Speech]
    for num_left, window in reversed(list(enumerate(windows))):
        session.receive_scores(window, [0.0, 0.0, 0.0, 0.0])
        assert session.num_outstanding == num_left
    assert len(of_type(session.events_to_send(), Emotion)) == len(windows)


def test_a_first_emotion_within_a_second_and_a_tenth_then_one_every_step() -> None:
    session = Session(SessionConfig(), CARD)
    received_s, due = 0.0, []
    for start in range(0, len(LONG), 320):
        session.receive_audio(LONG[start : start + 320])
        received_s += 320 / 16_000
        due += [(received_s, window) for window in session.windows_to_score()]
    onset_s = session.events_to_send()[0].time_s  # type: ignore[union-attr]
    assert onset_s == pytest.approx(0.5, abs=0.041)
    first_s, first = due[0]
    assert not first.is_full and first.end_s - onset_s == pytest.approx(1.03)
    assert first_s - onset_s <= 1.1
    regular = [window for _, window in due if not window.is_last]
    steps = np.diff([window.end_s for window in regular])
    np.testing.assert_allclose(steps, 0.25, atol=1e-9)
    assert regular[-1].end_s >= 4.25
    # A window waits for 40 ms of look-ahead and for its block of 20 ms, for nothing else.
    assert all(at_s - window.end_s <= 0.0601 for at_s, window in due if not window.is_last)


def test_windows_reach_back_two_seconds_but_never_before_the_pre_roll() -> None:
    _, windows = windows_of(LONG)
    for window in windows:
        assert window.is_full == (window.start_s > windows[0].start_s)
        # 200 frames: the last of them is 40 ms long.
        assert window.end_s - window.start_s <= 2.0301
        assert 0.0 < window.speech_ratio <= 1.0
    assert windows[0].start_s == pytest.approx(0.3, abs=0.041), "0.2 s before the onset"


@pytest.mark.parametrize("step_s", [0.01, 0.1, 0.25, 0.5, 2.0])
def test_the_step_is_the_operators(step_s: float) -> None:
    _, windows = windows_of(LONG, SessionConfig(step_s=step_s))
    ends = [window.end_s for window in windows if not window.is_last]
    np.testing.assert_allclose(np.diff(ends), step_s, atol=1e-9)


@pytest.mark.parametrize("step_s", [0.0, -0.25, 0.005, 0.255, 11.0, math.nan, math.inf])
def test_a_step_that_is_no_multiple_of_a_frame_is_refused(step_s: float) -> None:
    with pytest.raises(ConfigError, match=r"a multiple of 0\.01 s"):
        Session(SessionConfig(step_s=step_s), CARD)


def test_a_short_turn_gets_one_window_at_its_end() -> None:
    _, windows = windows_of(SHORT)
    (window,) = windows
    assert window.is_last and not window.is_full


def test_silence_and_hiss_below_the_floor_have_no_windows() -> None:
    for samples in (silence(5.0), hiss(5.0, -70.0)):
        session, windows = windows_of(samples)
        assert windows == [] and session.events_to_send() == []


# Answers


@settings(max_examples=30)
@given(order=st.permutations(range(13)), seen=st.sets(st.integers(0, 12)))
def test_answers_may_come_in_any_order(order: list[int], seen: set[int]) -> None:
    session, windows = windows_of(LONG)
    assert len(windows) == 13
    events = []
    for number in order:
        session.receive_scores(windows[number], fake_logits(windows[number].features))
        if number in seen:
            events += session.events_to_send()
    events += session.events_to_send()
    assert events == listen(Session(SessionConfig(), CARD), LONG)


def test_a_second_answer_is_refused() -> None:
    session, (first, second, third, *_) = windows_of(LONG)
    session.receive_scores(first, [0, 0, 0, 0])
    session.skip(second, "overload")
    for window in (first, second):
        with pytest.raises(ScoreError, match=f"window {window.number} of channel 0: expected a"):
            session.receive_scores(window, [0, 0, 0, 0])
        with pytest.raises(ScoreError, match="has none yet"):
            session.skip(window, "overload")
    session.receive_scores(third, [0, 0, 0, 0])


def test_an_answer_for_another_sessions_window_is_refused() -> None:
    session, _ = windows_of(LONG)
    _, (foreign, *_) = windows_of(LONG)
    with pytest.raises(ScoreError, match="handed out here"):
        session.receive_scores(foreign, [0, 0, 0, 0])


@pytest.mark.parametrize(
    "logits",
    [[math.nan, 0, 0, 0], [0, math.inf, 0, 0], [0, 0, 0], [0, 0, 0, 0, 0], [[0, 0, 0, 0]], 1.0, []],
)
def test_scores_that_are_none_are_refused_and_the_window_still_waits(logits: Any) -> None:
    session, (first, *_) = windows_of(SHORT)
    with pytest.raises(ScoreError, match="expected 4 finite numbers"):
        session.receive_scores(first, logits)
    assert session.num_outstanding == 1
    session.receive_scores(first, [0, 0, 0, 0])
    assert len(of_type(session.events_to_send(), Emotion)) == 1


def test_nothing_is_taken_after_the_end() -> None:
    session, windows = windows_of(SHORT)
    with pytest.raises(SessionClosedError, match="10 samples after the end"):
        session.receive_audio(silence(1.0)[:10])
    with pytest.raises(SessionClosedError, match="a gap after the end"):
        session.receive_gap(10, "lost")
    session.receive_end()
    assert session.num_samples == len(SHORT)
    # Scores of what came before are.
    session.receive_scores(windows[0], [0, 0, 0, 0])
    assert session.horizon < math.inf
    assert [type(event) for event in session.events_to_send()] == [Speech, Emotion, Speech, Turn]
    assert session.horizon == math.inf


# What is uncertain


def test_below_its_threshold_a_label_is_uncertain_and_the_scores_are_given() -> None:
    card = replace(CARD, rejection=Rejection(smoothed=0.6, turn=0.5), calibration=Calibration())
    for top, label, turn_label in [
        (0.55, UNCERTAIN, "happy"),
        (0.45, UNCERTAIN, UNCERTAIN),
        (0.65, "happy", "happy"),
    ]:
        session = Session(SessionConfig(), card)
        session.receive_audio(LONG)
        session.receive_end()
        rest = (1.0 - top) / 3.0
        for window in session.windows_to_score():
            session.receive_scores(window, np.log([rest, top, rest, rest]))
        events = session.events_to_send()
        emotions, (turn,) = of_type(events, Emotion), of_type(events, Turn)
        assert {event.label for event in emotions} == {label}
        assert turn.label == turn_label
        for event in (*emotions, turn):
            assert tuple(event.scores) == LABELS
            assert event.scores["happy"] == pytest.approx(top, abs=1e-5)
        assert session.summary().labels == {
            **dict.fromkeys((*LABELS, UNCERTAIN), 0.0),
            turn_label: 1.0,
        }


# Windows that are not scored


def test_a_lag_is_told_once_a_run_and_what_was_dropped_with_every_event() -> None:
    session, windows = windows_of(LONG)
    skipped = {2, 3, 4, 7}
    for window in windows:
        if window.number in skipped:
            session.skip(window, "overload")
        else:
            session.receive_scores(window, [0, 0, 0, 0])
    events = session.events_to_send()
    lags = of_type(events, Lag)
    assert [lag.reason for lag in lags] == ["overload", "overload"]
    assert [lag.dropped for lag in lags] == [1, 4]
    assert [(lag.start_s, lag.end_s) for lag in lags] == [
        (windows[number].start_s, windows[number].end_s) for number in (2, 7)
    ]
    assert [emotion.dropped for emotion in of_type(events, Emotion)] == [0, 0, 3, 3, *[4] * 5]
    (turn,) = of_type(events, Turn)
    full = [window for window in windows if window.is_full and window.number not in skipped]
    assert turn.windows == len(full) and turn.dropped == 4


def test_a_scorer_that_fails_is_an_error_that_is_not_fatal() -> None:
    session, windows = windows_of(LONG)
    for window in windows:
        session.skip(window, "overload" if window.number == 0 else "scorer_failed")
    events = session.events_to_send()
    assert [type(event) for event in events] == [Speech, Lag, Error, Speech, Error]
    _, _, failed, _, lost = events
    assert isinstance(failed, Error) and isinstance(lost, Error)
    assert (failed.code, failed.fatal, failed.channel) == ("scorer_failed", False, 0)
    assert f"{windows[1].end_s:.2f} s" in failed.message
    assert (lost.code, lost.fatal, lost.role) == ("turn_not_scored", False, "customer")
    summary = session.summary()
    assert (summary.dropped, summary.turns, summary.emotions) == (13, 1, 0)
    assert summary.labels == dict.fromkeys((*LABELS, UNCERTAIN), 0.0)


# Gaps


def test_a_gap_closes_the_turn_and_the_time_jumps_over_it() -> None:
    session = Session(SessionConfig(), CARD)
    half = LONG[: 2 * 16_000 + 7]
    events = listen(session, half, end=False)
    session.receive_gap(16_000, "packet_loss")
    assert session.num_samples == len(half) + 16_000
    assert session.horizon <= len(half) + 1, "the tail of the turn waits for its score"
    events += listen(session, np.concatenate([silence(0.5), tone_speech(2.0, 5), silence(0.8)]))
    kinds = [type(event) for event in events if not isinstance(event, Emotion)]
    assert kinds == [Speech, Speech, Turn, Gap, Speech, Speech, Turn]
    (gap,) = of_type(events, Gap)
    assert (gap.start_s, gap.end_s) == (
        round(len(half) / 16_000, 3),
        round(len(half) / 16_000 + 1, 3),
    )
    assert gap.reason == "packet_loss"
    before, after = of_type(events, Turn)
    assert before.end_s == pytest.approx(2.0, abs=0.041) and before.end_s <= gap.start_s
    assert after.start_s == pytest.approx(gap.end_s + 0.5, abs=0.041)
    assert all(
        emotion.end_s <= gap.start_s + 0.03 or emotion.start_s >= gap.end_s
        for emotion in of_type(events, Emotion)
    ), "no window reaches across the gap"
    assert session.summary().frames_computed > (len(half) - 640) // 160


def test_what_was_learnt_of_a_channels_mean_outlives_a_gap() -> None:
    def last_window(session: Session) -> Window:
        session.receive_audio(LONG)
        session.receive_end()
        return session.windows_to_score()[-1]

    fresh, gapped = (Session(SessionConfig(), CARD) for _ in range(2))
    gapped.receive_audio(LONG)
    gapped.windows_to_score()
    gapped.receive_gap(1_600, "lost")
    one, other = last_window(fresh).features, last_window(gapped).features
    shift = (one[0] - other[0]).mean(axis=1)
    assert np.abs(shift).max() > 0.1, "the mean was forgotten"
    # Nothing but the mean was kept: deltas have none.
    np.testing.assert_array_equal(one[1:], other[1:])


def test_gaps_may_follow_each_other_and_come_first_and_last() -> None:
    session = Session(SessionConfig(), CARD)
    session.receive_gap(800, "late")
    session.receive_gap(800, "late")
    events = listen(session, LONG, end=False)
    session.receive_gap(1_600, "lost")
    session.receive_end()
    events += session.events_to_send()
    gaps = [(gap.start_s, gap.end_s) for gap in of_type(events, Gap)]
    assert gaps == [(0.0, 0.05), (0.05, 0.1), (5.4, 5.5)]
    assert of_type(events, Turn)[0].start_s == pytest.approx(0.6, abs=0.041)


def test_a_gap_of_less_than_nothing_is_refused() -> None:
    session = Session(SessionConfig(), CARD)
    with pytest.raises(AudioError, match="-1 samples"):
        session.receive_gap(-1, "lost")


# A channel that is not analysed


def test_a_channel_that_is_not_analysed_tells_speech_and_computes_nothing() -> None:
    analysed = listen(Session(SessionConfig(), CARD), LONG)
    session = Session(SessionConfig(), CARD, channel=1, role="agent", analyse=False)
    events = listen(session, LONG)
    assert [type(event) for event in events] == [Speech, Speech]
    times = [speech.time_s for speech in of_type(analysed, Speech)]
    assert [speech.time_s for speech in of_type(events, Speech)] == times
    summary = session.summary()
    assert (summary.analysed, summary.role, summary.channel) == (False, "agent", 1)
    assert (summary.frames_computed, summary.windows_scored, summary.emotions) == (0, 0, 0)
    assert summary.turns == 1 and summary.speech_s == pytest.approx(4.0, abs=0.061)
