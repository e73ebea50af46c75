"""What a session's emotions, turns and summary say, each computed a second time by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.events import ChannelEvent, Emotion, Error, Turn
from streamer.session import Session, SessionConfig, Window
from streamer.smoothing import SmoothingConfig, calibrate, softmax
from tests.scorers import LABELS, listen, make_card, of_type, one_turn, windows_of

CARD = make_card()
LONG, SHORT = one_turn(4.0, 1), one_turn(0.4, 2)


def answer_with(probabilities: list[list[float]]) -> tuple[list[Window], list[ChannelEvent]]:
    """Hear `LONG` with these probabilities, its 13 windows taking them in turn."""
    session, windows = windows_of(LONG)
    for window, row in zip(windows, itertools.cycle(probabilities), strict=False):
        session.receive_scores(window, np.log(row))
    return windows, session.events_to_send()


def test_scores_are_probabilities_of_all_labels_in_the_cards_order() -> None:
    events = listen(Session(SessionConfig(), CARD), np.concatenate([LONG, SHORT]))
    assert of_type(events, Emotion) and of_type(events, Turn)
    for event in of_type(events, Emotion) + of_type(events, Turn):
        for scores in (event.scores, getattr(event, "raw", event.scores)):
            assert tuple(scores) == LABELS
            # Each of the four is rounded to six decimals.
            assert sum(scores.values()) == pytest.approx(1.0, abs=1e-5)
            assert all(0.0 <= score <= 1.0 for score in scores.values())


def test_warming_up_until_a_window_is_full() -> None:
    session, windows = windows_of(LONG)
    for window in windows:
        session.receive_scores(window, [0, 0, 0, 0])
    emotions = of_type(session.events_to_send(), Emotion)
    flags = [emotion.warming_up for emotion in emotions]
    assert flags == [not window.is_full for window in windows]
    assert flags == sorted(flags, reverse=True) and flags[0] and not flags[-1]
    assert [emotion.speech for emotion in emotions] == [window.speech_ratio for window in windows]


def test_an_emotion_is_calibrated_and_smoothed_by_hand() -> None:
    one, other = np.array([0.7, 0.1, 0.1, 0.1]), np.array([0.1, 0.2, 0.3, 0.4])
    _, events = answer_with([one.tolist(), other.tolist()])
    first, second = of_type(events, Emotion)[:2]
    window, smoothed = CARD.calibration.window, CARD.calibration.smoothed
    assert list(first.raw.values()) == pytest.approx(softmax(np.log(one) / window), abs=1e-6)
    assert list(second.raw.values()) == pytest.approx(softmax(np.log(other) / window), abs=1e-6)
    assert list(first.scores.values()) == pytest.approx(calibrate(one, smoothed), abs=1e-6)
    # A step of 0.25 s at a time constant of 1 s.
    weight = math.exp(-0.25)
    average = (weight * one + other) / (weight + 1)
    assert list(second.scores.values()) == pytest.approx(calibrate(average, smoothed), abs=1e-6)


def test_a_turn_averages_its_full_windows_by_hand() -> None:
    rng = np.random.default_rng(3)
    rows = rng.dirichlet(np.ones(4), 13)
    windows, events = answer_with(rows.tolist())
    full = [row for window, row in zip(windows, rows, strict=True) if window.is_full]
    assert 0 < len(full) < len(windows)
    (turn,) = of_type(events, Turn)
    expected = calibrate(np.mean(full, axis=0), CARD.calibration.turn)
    assert list(turn.scores.values()) == pytest.approx(expected, abs=1e-6)
    assert turn.label == LABELS[int(np.argmax(expected))]
    assert turn.windows == len(full)
    assert turn.end_s - turn.start_s == pytest.approx(4.0, abs=0.061)


def test_a_turn_that_never_filled_a_window_takes_its_last() -> None:
    session, windows = windows_of(one_turn(1.6, 1))
    assert len(windows) > 2 and not any(window.is_full for window in windows)
    rows = np.random.default_rng(4).dirichlet(np.ones(4), len(windows))
    for window, row in zip(windows, rows, strict=True):
        session.receive_scores(window, np.log(row))
    (turn,) = of_type(session.events_to_send(), Turn)
    expected = calibrate(rows[-1], CARD.calibration.turn)
    assert list(turn.scores.values()) == pytest.approx(expected, abs=1e-6)
    assert turn.windows == 1


def test_a_turn_owes_nothing_to_the_turn_before() -> None:
    session = Session(SessionConfig(), CARD)
    session.receive_audio(np.concatenate([LONG, SHORT]))
    session.receive_end()
    *before, last = session.windows_to_score()
    for window in before:
        session.receive_scores(window, [5, 0, 0, 0])
    session.receive_scores(last, [0, 0, 0, 5])
    turns = of_type(session.events_to_send(), Turn)
    assert [turn.label for turn in turns] == ["angry", "sad"]
    assert turns[1].scores["sad"] > 0.99


def test_a_turn_of_which_nothing_was_scored_does_not_repeat_the_turn_before() -> None:
    session = Session(SessionConfig(), CARD)
    session.receive_audio(np.concatenate([LONG, SHORT]))
    session.receive_end()
    *before, last = session.windows_to_score()
    for window in before:
        session.receive_scores(window, [5, 0, 0, 0])
    session.skip(last, "overload")
    events = session.events_to_send()
    assert [turn.label for turn in of_type(events, Turn)] == ["angry"]
    assert [error.code for error in of_type(events, Error)] == ["turn_not_scored"]


@settings(max_examples=20)
@given(seed=st.integers(0, 999))
def test_the_label_changes_less_often_than_the_raw_leader(seed: int) -> None:
    rows = np.random.default_rng(seed).dirichlet(np.ones(4), 13)
    rows[::2, 0] += 1.0
    rows[1::2, 3] += 1.0
    _, events = answer_with((rows / rows.sum(axis=1, keepdims=True)).tolist())
    emotions = of_type(events, Emotion)
    labels = [emotion.label for emotion in emotions]
    leaders = [max(emotion.raw, key=emotion.raw.__getitem__) for emotion in emotions]

    def num_changes(names: list[str]) -> int:
        return sum(one != other for one, other in itertools.pairwise(names))

    assert num_changes(leaders) == 12
    assert num_changes(labels) <= 4, "the label stands for 0.75 s, three steps"


def test_smoothing_is_the_operators() -> None:
    config = SessionConfig(smoothing=SmoothingConfig(time_constant_s=0, margin=0, dwell_s=0))
    session, windows = windows_of(LONG, config)
    for number, window in enumerate(windows):
        session.receive_scores(window, np.eye(4)[number % 4] * 5)
    emotions = of_type(session.events_to_send(), Emotion)
    assert [emotion.label for emotion in emotions] == [LABELS[number % 4] for number in range(13)]


def test_the_summary_adds_up() -> None:
    session = Session(SessionConfig(), CARD)
    events = listen(session, np.concatenate([LONG, SHORT]))
    summary, turns = session.summary(), of_type(events, Turn)
    assert summary.turns == len(turns) == 2
    assert summary.emotions == summary.windows_scored == len(of_type(events, Emotion))
    assert summary.speech_s == pytest.approx(sum(turn.end_s - turn.start_s for turn in turns))
    assert summary.frames_computed == (len(LONG) + len(SHORT) - 640) // 160 + 1
    assert sum(summary.labels.values()) == pytest.approx(1.0, abs=0.002)
    for label in LABELS:
        seconds = sum(turn.end_s - turn.start_s for turn in turns if turn.label == label)
        # Shares are rounded to three decimals.
        assert summary.labels[label] == pytest.approx(seconds / summary.speech_s, abs=0.0006)
