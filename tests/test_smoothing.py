from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.errors import ConfigError
from streamer.smoothing import (
    LabelSteadier,
    ScoreSmoother,
    SmoothingConfig,
    calibrate,
    softmax,
)

CONFIG = SmoothingConfig(time_constant_s=1.0, margin=0.05, dwell_s=0.75)


def some_scores(num_windows: int, seed: int = 0) -> np.ndarray:
    return softmax(2.0 * np.random.default_rng(seed).standard_normal((num_windows, 4)))


def leading(index: int, by: float = 1.0) -> np.ndarray:
    """Return scores in which one label leads each other by ``by``."""
    scores = np.full(4, (1.0 - by) / 4)
    scores[index] += by
    return scores


# Probabilities


def test_softmax_of_known_logits() -> None:
    np.testing.assert_allclose(softmax([0.0, math.log(3.0)]), [0.25, 0.75], rtol=1e-15)


@settings(max_examples=50)
@given(logits=st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=6))
def test_softmax_of_any_finite_logits_is_a_distribution(logits: list[float]) -> None:
    scores = softmax(logits)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all() and (scores >= 0).all()
    assert scores.sum() == pytest.approx(1.0)
    assert scores[int(np.argmax(logits))] == scores.max()


def test_softmax_takes_the_last_axis() -> None:
    logits = np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32)
    assert np.array_equal(softmax(logits), np.stack([softmax(row) for row in logits]))


@settings(max_examples=60)
@given(
    logits=st.lists(st.floats(-10.0, 10.0), min_size=2, max_size=5),
    temperature=st.floats(0.1, 10.0),
)
def test_calibration_is_temperature_scaling_of_the_logits(
    logits: list[float], temperature: float
) -> None:
    expected = softmax(np.array(logits) / temperature)
    calibrated = calibrate(softmax(logits), temperature)
    # A probability near e^-20 is known to 1e-16, its log then to 1e-8.
    np.testing.assert_allclose(calibrated, expected, atol=1e-7)


def test_calibration_of_certainty_stays_finite() -> None:
    calibrated = calibrate([1.0, 0.0, 0.0, 0.0], 2.0)
    assert np.isfinite(calibrated).all()
    assert np.argmax(calibrated) == 0


# Scores over time


@settings(max_examples=50)
@given(
    pauses_s=st.lists(st.floats(0.01, 3.0), min_size=1, max_size=12),
    time_constant_s=st.floats(0.05, 5.0),
    seed=st.integers(0, 99),
)
def test_the_average_is_the_weighted_sum_of_all_windows(
    pauses_s: list[float], time_constant_s: float, seed: int
) -> None:
    smoother = ScoreSmoother(SmoothingConfig(time_constant_s=time_constant_s))
    times_s = np.cumsum(pauses_s)
    scores = some_scores(len(times_s), seed)
    for number, time_s in enumerate(times_s):
        weights = np.exp((times_s[: number + 1] - time_s) / time_constant_s)
        expected = weights @ scores[: number + 1] / weights.sum()
        average = smoother.update(scores[number], float(time_s))
        np.testing.assert_allclose(average, expected, rtol=1e-9)


def test_the_first_window_stands_for_itself_whenever_it_comes() -> None:
    scores = some_scores(1)[0]
    assert np.array_equal(ScoreSmoother(CONFIG).update(scores, 1_234.5), scores)


def test_old_scores_decay_with_the_time_constant() -> None:
    smoother = ScoreSmoother(SmoothingConfig(time_constant_s=2.0))
    smoother.update(leading(0), 10.0)
    average = smoother.update(leading(1), 12.0)
    assert average[0] / average[1] == pytest.approx(1 / math.e)


def test_audio_time_alone_counts_not_the_step() -> None:
    # The same piecewise-constant scores, seen every 0.25 s and every 0.05 s.
    shares = []
    for step_s in (0.25, 0.05):
        smoother = ScoreSmoother(CONFIG)
        for time_s in np.arange(0.0, 10.0 + 1e-9, step_s):
            average = smoother.update(leading(0 if time_s <= 9.0 else 1), float(time_s))
        shares.append(float(average[0]))
    # 1/e of the old label is left after one time constant, whatever the step; half a step's
    # weight, 12 % of it, depends on where the change falls between windows.
    assert shares == pytest.approx([1 / math.e, 1 / math.e], rel=0.15)


def test_without_a_time_constant_scores_pass() -> None:
    smoother = ScoreSmoother(SmoothingConfig(time_constant_s=0.0))
    for number, scores in enumerate(some_scores(5)):
        assert np.array_equal(smoother.update(scores, 0.25 * number), scores)


def test_an_average_handed_out_does_not_change_later() -> None:
    smoother = ScoreSmoother(CONFIG)
    averages = [smoother.update(row, 0.25 * n) for n, row in enumerate(some_scores(4))]
    copies = [average.copy() for average in averages]
    smoother.update(leading(2), 9.0)
    for average, copy in zip(averages, copies, strict=True):
        assert np.array_equal(average, copy)


# The label


def test_the_first_label_is_the_leader() -> None:
    assert LabelSteadier(CONFIG).update(leading(2), 5.0) == 2


@pytest.mark.parametrize(("by", "label"), [(0.04, 0), (0.06, 1)])
def test_a_label_yields_to_a_lead_of_the_margin_alone(by: float, label: int) -> None:
    steadier = LabelSteadier(CONFIG)
    steadier.update(leading(0), 0.0)
    assert steadier.update(leading(1, by), 2.0) == label


@pytest.mark.parametrize(("time_s", "label"), [(10.5, 0), (10.75, 1)])
def test_a_label_stands_for_the_dwell(time_s: float, label: int) -> None:
    steadier = LabelSteadier(CONFIG)
    steadier.update(leading(0), 10.0)
    assert steadier.update(leading(1), time_s) == label


def test_the_dwell_counts_from_the_last_change() -> None:
    steadier = LabelSteadier(CONFIG)
    shown = [
        steadier.update(leading(label), time_s)
        for time_s, label in [(0.0, 0), (1.0, 0), (1.25, 1), (1.5, 0), (1.75, 0), (2.0, 0)]
    ]
    assert shown == [0, 0, 1, 1, 1, 0]


def test_a_lead_that_wavers_within_the_margin_changes_nothing() -> None:
    steadier = LabelSteadier(CONFIG)
    steadier.update(leading(3), 0.0)
    for number in range(1, 40):
        assert steadier.update(leading(number % 4, 0.03), 0.25 * number) == 3


# Uncertain


def top(index: int, score: float) -> np.ndarray:
    """Return scores whose highest is ``score``, the others equal."""
    scores = np.full(4, (1.0 - score) / 3)
    scores[index] = score
    return scores


@pytest.mark.parametrize(("score", "label"), [(0.45, None), (0.5, 2), (0.55, 2)])
def test_the_first_label_is_uncertain_below_the_threshold(score: float, label: int | None) -> None:
    assert LabelSteadier(CONFIG, 0.5).update(top(2, score), 0.0) == label


def test_uncertain_is_entered_and_left_by_the_margin_and_the_dwell() -> None:
    steadier = LabelSteadier(CONFIG, 0.5)
    shown = [
        steadier.update(top(index, score), time_s)
        for time_s, index, score in [
            (0.0, 0, 0.60),
            (1.0, 0, 0.46),  # below, but by less than the margin
            (2.0, 0, 0.44),
            (2.25, 0, 0.90),  # within the dwell
            (3.0, 0, 0.54),  # above, but by less than the margin
            (4.0, 1, 0.56),
        ]
    ]
    assert shown == [0, 0, None, None, None, 1]


def test_without_a_threshold_there_is_always_a_label() -> None:
    steadier = LabelSteadier(CONFIG)
    rows = some_scores(200, 5)
    assert all(steadier.update(row, 0.25 * n) is not None for n, row in enumerate(rows))


@settings(max_examples=30)
@given(seed=st.integers(0, 999), threshold=st.floats(0.25, 0.9))
def test_every_label_shown_stands_for_the_dwell(seed: int, threshold: float) -> None:
    steadier = LabelSteadier(CONFIG, threshold)
    shown = [steadier.update(row, 0.25 * n) for n, row in enumerate(some_scores(120, seed))]
    changes = [n for n in range(1, len(shown)) if shown[n] != shown[n - 1]]
    assert all(later - sooner >= 3 for sooner, later in itertools.pairwise(changes))


# What is refused


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"time_constant_s": -1.0}, "smoothing over -1 s"),
        ({"time_constant_s": float("nan")}, "smoothing over nan s"),
        ({"margin": 1.0}, "margin 1"),
        ({"margin": -0.1}, "margin -0.1"),
        ({"dwell_s": -0.5}, "dwell -0.5 s"),
    ],
)
def test_a_config_out_of_range_is_refused(values: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=f"{found}.*expected"):
        SmoothingConfig(**values)
