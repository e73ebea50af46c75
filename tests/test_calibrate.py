from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.smoothing import calibrate, softmax
from train.calibrate import (
    HIGHEST,
    LOWEST,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    rejection_threshold,
    reliability,
    risk_coverage,
)


def draw(temperature: float, num: int = 20000) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return scores, and labels that are as likely as the tempered scores say."""
    rng = np.random.default_rng(3)
    probabilities = softmax(rng.normal(0.0, 2.0, (num, 4)))
    shares = calibrate(probabilities, temperature).cumsum(axis=1)
    return probabilities, (rng.random((num, 1)) > shares).sum(axis=1).clip(0, 3)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_a_known_temperature_is_found(temperature: float) -> None:
    probabilities, labels = draw(temperature)
    # 20000 draws tell it to some 1.5 %: three times that.
    assert fit_temperature(probabilities, labels) == pytest.approx(temperature, rel=0.05)


def test_it_is_the_best_of_all() -> None:
    probabilities, labels = draw(1.7, num=500)
    best = fit_temperature(probabilities, labels)

    def loss(temperature: float) -> float:
        return negative_log_likelihood(calibrate(probabilities, temperature), labels)

    others = np.geomspace(LOWEST, HIGHEST, 200)
    assert loss(best) <= min(loss(other) for other in others) + 1e-9


def test_it_stays_in_bounds() -> None:
    sure = np.array([[0.97, 0.01, 0.01, 0.01]] * 8)
    # Always right: ever surer, until the likelihood has nothing left to gain.
    assert LOWEST <= fit_temperature(sure, [0] * 8) < 0.2
    assert HIGHEST / 2 < fit_temperature(sure, [1] * 8) <= HIGHEST  # always wrong


def test_nothing_to_fit_to_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 1 or more"):
        fit_temperature(np.zeros((0, 4)), [])


def test_calibration_error_equals_its_definition() -> None:
    probabilities, labels = draw(2.0, num=300)
    expected = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        members = [
            (max(row), int(np.argmax(row)) == label)
            for row, label in zip(probabilities.tolist(), labels, strict=True)
            if low < max(row) <= high
        ]
        if members:
            confidence = sum(value for value, _ in members) / len(members)
            accuracy = sum(right for _, right in members) / len(members)
            expected += len(members) / len(labels) * abs(confidence - accuracy)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected)


def test_calibration_error_of_the_sure_and_of_the_true() -> None:
    certain = np.array([[1.0, 0.0, 0.0, 0.0]] * 4)
    assert expected_calibration_error(certain, [0, 0, 0, 0]) == 0.0
    assert expected_calibration_error(certain, [1, 1, 1, 0]) == 0.75
    probabilities, labels = draw(2.5)
    before = expected_calibration_error(probabilities, labels)
    after = expected_calibration_error(calibrate(probabilities, 2.5), labels)
    assert before > 0.15
    assert after < 0.02  # 20000 draws in 15 bins: each bin is off by about 0.01


def test_the_curve_counts_the_surest_first() -> None:
    rows = [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]]
    curve = risk_coverage(rows, [0, 0, 1, 1])
    assert curve.confidence.tolist() == [0.9, 0.8, 0.7, 0.6]
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.risk == pytest.approx([0.0, 0.0, 1 / 3, 1 / 2])


def test_reliability_and_its_error_tell_the_same() -> None:
    probabilities, labels = draw(2.0, num=400)
    rows = reliability(probabilities, labels)
    gaps = sum(num * abs(confidence - accuracy) for confidence, accuracy, num in rows)
    assert sum(num for _, _, num in rows) == 400
    assert gaps / 400 == pytest.approx(expected_calibration_error(probabilities, labels))


def test_of_calibrated_scores_what_is_less_likely_right_than_wrong_is_withheld() -> None:
    probabilities, labels = draw(1.0)
    # Chow's rule needs no curve where scores are true: below a half. 20000 draws tell it to 0.03.
    assert rejection_threshold(probabilities, labels, least_coverage=0.0) == pytest.approx(
        0.5, abs=0.05
    )


def test_no_more_is_withheld_than_coverage_allows() -> None:
    probabilities, _ = draw(1.0, num=1000)
    wrong = (probabilities.argmax(axis=1) + 1) % 4
    threshold = rejection_threshold(probabilities, wrong)
    assert (probabilities.max(axis=1) >= threshold).mean() == pytest.approx(0.7, abs=0.002)
    right = probabilities.argmax(axis=1)
    assert rejection_threshold(probabilities, right) == 0.0, "all is worth saying"
    with pytest.raises(ValueError, match="expected 1 or more"):
        rejection_threshold(np.zeros((0, 4)), [])


def test_equal_scores_are_given_or_withheld_together() -> None:
    rows = np.array([[0.9, 0.1]] * 8 + [[0.6, 0.4]] * 4)
    labels = [0] * 8 + [0, 1, 1, 1]
    assert rejection_threshold(rows, labels, least_coverage=0.5) == 0.9
