"""How sure the network may be, and when to say nothing: temperatures, calibration, rejection."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from streamer.smoothing import calibrate

LOWEST, HIGHEST = 0.05, 20.0
"""Temperatures that are tried: beyond them scores are all but one-hot, or all but equal."""

LEAST_COVERAGE = 0.7
"""However bad the answers, so many of them are given on validation speakers."""


class RiskCoverage(NamedTuple):
    """The curve of selective classification (El-Yaniv and Wiener 2010), surest answers first.

    If the i + 1 surest are given, they are all those of at least ``confidence[i]``, ``coverage[i]``
    of all, and ``risk[i]`` of them are wrong.
    """

    confidence: NDArray[np.float64]
    coverage: NDArray[np.float64]
    risk: NDArray[np.float64]


def negative_log_likelihood(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean of -ln p(label): probabilities (n, num_labels), labels (n,) indices."""
    values, truth = np.asarray(probabilities, np.float64), np.asarray(labels, np.intp)
    chosen = np.maximum(values[np.arange(len(truth)), truth], 1e-12)
    return float(-np.log(chosen).mean())


def fit_temperature(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Temperature at which :func:`streamer.smoothing.calibrate` makes the labels likeliest.

    Probabilities (n, num_labels), labels (n,) indices, of speakers that did not train. The
    likelihood has one maximum in 1 / T, so the search over log T finds it.

    Raises:
        ValueError: nothing to fit to.
    """
    if not len(np.asarray(labels)):
        raise ValueError("a temperature from 0 probabilities: expected 1 or more")

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(calibrate(probabilities, math.exp(log_temperature)), labels)

    bounds = (math.log(LOWEST), math.log(HIGHEST))
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x)


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, num_bins: int = 15
) -> float:
    """ECE (Guo et al. 2017, Eq. 3): mean gap of confidence and accuracy, by bins of confidence.

    Probabilities (n, num_labels), labels (n,) indices; bins are equally wide, closed above.
    """
    values, truth = np.asarray(probabilities, np.float64), np.asarray(labels, np.intp)
    confidence = values.max(axis=1)
    right = values.argmax(axis=1) == truth
    bins = np.clip(np.ceil(confidence * num_bins).astype(np.intp) - 1, 0, num_bins - 1)
    gaps = np.bincount(bins, weights=confidence - right, minlength=num_bins)
    return float(np.abs(gaps).sum() / len(truth))


def reliability(
    probabilities: ArrayLike, labels: ArrayLike, num_bins: int = 15
) -> list[tuple[float, float, int]]:
    """Mean confidence, accuracy and number of the answers in each bin that has any."""
    values, truth = np.asarray(probabilities, np.float64), np.asarray(labels, np.intp)
    confidence, right = values.max(axis=1), values.argmax(axis=1) == truth
    bins = np.clip(np.ceil(confidence * num_bins).astype(np.intp) - 1, 0, num_bins - 1)
    return [
        (float(confidence[members].mean()), float(right[members].mean()), int(members.sum()))
        for members in (bins == number for number in range(num_bins))
        if members.any()
    ]


def risk_coverage(probabilities: ArrayLike, labels: ArrayLike) -> RiskCoverage:
    """Return the curve of answers by argmax: probabilities (n, num_labels), labels (n,)."""
    values, truth = np.asarray(probabilities, np.float64), np.asarray(labels, np.intp)
    order = np.argsort(-values.max(axis=1), kind="stable")
    wrong = (values.argmax(axis=1) != truth)[order]
    count = np.arange(1, len(truth) + 1)
    return RiskCoverage(values.max(axis=1)[order], count / len(truth), np.cumsum(wrong) / count)


def rejection_threshold(
    probabilities: ArrayLike, labels: ArrayLike, *, least_coverage: float = LEAST_COVERAGE
) -> float:
    """Top score below which to say nothing: an answer is given where it is likelier right.

    The rule is Chow's (1970) at the price of half an error for each answer withheld, read off the
    curve: the point at which wrong answers plus half of the withheld ones are fewest. That is where
    the next answers would be wrong more often than right, so it needs no figure to be chosen, and
    no risk to be promised that a hard corpus cannot keep. On a network that is mostly wrong it
    would say hardly anything: ``least_coverage`` of the answers are given whatever they are worth.
    0 where every answer is worth giving.

    Raises:
        ValueError: nothing to fit to.
    """
    confidence, coverage, risk = risk_coverage(probabilities, labels)
    if not len(confidence):
        raise ValueError("a threshold from 0 probabilities: expected 1 or more")
    cost = coverage * risk + (1.0 - coverage) / 2.0
    cost[coverage < least_coverage - 1e-9] = np.inf
    cost[:-1][confidence[1:] == confidence[:-1]] = np.inf  # equals are given or withheld together
    best = len(cost) - 1 - int(np.argmin(cost[::-1]))
    return 0.0 if best == len(cost) - 1 else float(confidence[best])
