"""How sure the network may be: temperatures (Guo et al. 2017) and what they repair."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from streamer.smoothing import calibrate

LOWEST, HIGHEST = 0.05, 20.0
"""Temperatures that are tried: beyond them scores are all but one-hot, or all but equal."""


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
