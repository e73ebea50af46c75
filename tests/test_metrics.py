from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.metrics import confusion, uar_interval, unweighted_average_recall, weighted_accuracy

pairs = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60)


@given(pairs)
def test_rates_equal_their_definitions(answers: list[tuple[int, int]]) -> None:
    counts = confusion([truth for truth, _ in answers], [guess for _, guess in answers], 4)
    assert counts.sum() == len(answers)
    for truth in range(4):
        for guess in range(4):
            assert counts[truth, guess] == answers.count((truth, guess))
    recalls = []
    for label in range(4):
        members = [guess for truth, guess in answers if truth == label]
        if members:
            recalls.append(members.count(label) / len(members))
    assert unweighted_average_recall(counts) == pytest.approx(sum(recalls) / len(recalls))
    right = sum(truth == guess for truth, guess in answers)
    assert weighted_accuracy(counts) == pytest.approx(right / len(answers))


def test_recall_does_not_depend_on_how_many_there_are_of_a_label() -> None:
    truth = [0] * 90 + [1] * 10
    always_the_same = confusion(truth, [0] * 100, 2)
    assert weighted_accuracy(always_the_same) == 0.9
    assert unweighted_average_recall(always_the_same) == 0.5


def test_no_answers_have_no_rate() -> None:
    nothing = np.zeros((4, 4), np.int64)
    assert math.isnan(unweighted_average_recall(nothing))
    assert math.isnan(weighted_accuracy(nothing))


def make_answers(num_speakers: int, spread: float) -> tuple[list[int], list[int], list[str]]:
    """Return truth, guesses and speakers; speakers differ in accuracy by ``spread``."""
    rng = np.random.default_rng(7)
    truth, guess, speakers = [], [], []
    for speaker in range(num_speakers):
        accuracy = 0.6 + rng.uniform(-spread, spread)
        for number in range(80):
            label = number % 4
            right = rng.random() < accuracy
            truth.append(label)
            guess.append(label if right else (label + 1) % 4)
            speakers.append(f"s{speaker}")
    return truth, guess, speakers


def test_interval_holds_the_rate_and_comes_out_the_same_again() -> None:
    truth, guess, speakers = make_answers(10, 0.2)
    low, high = uar_interval(truth, guess, speakers, 4)
    assert low < unweighted_average_recall(confusion(truth, guess, 4)) < high
    assert (low, high) == uar_interval(truth, guess, speakers, 4)
    shuffled = np.random.default_rng(1).permutation(len(truth))
    mixed = [[column[i] for i in shuffled] for column in (truth, guess)]
    assert (low, high) == uar_interval(mixed[0], mixed[1], [speakers[i] for i in shuffled], 4)


def test_interval_is_over_speakers() -> None:
    alike, unlike = make_answers(10, 0.0), make_answers(10, 0.35)
    width = [high - low for low, high in (uar_interval(*alike, 4), uar_interval(*unlike, 4))]
    assert width[1] > 2 * width[0]
    low, high = uar_interval([0, 1, 1], [0, 1, 0], ["only", "only", "only"], 4)
    assert low == high == 0.75
