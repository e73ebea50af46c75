"""Contours of the spectrum: they are those of the spectrum that the coefficients were made of."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.fft
import torch
from numpy.typing import NDArray

from train.contours import Contours

NUM_MEL, NUM_FRAMES = 40, 30
CENTROID, SPREAD, ENTROPY, FLUX, MOTION, RISE, LEVEL, MIDDLE, HIGH, PEAK, HALF, MOST = range(12)


def contours_of(log_energies: NDArray[np.float64]) -> tuple[NDArray[np.float32], ...]:
    """Bands (3, 20, T) and shapes (3, 12, T) of log energies (40, T), all coefficients kept."""
    ceps = scipy.fft.dct(log_energies, type=2, norm="ortho", axis=0)
    delta = np.gradient(ceps, axis=1)
    x = torch.from_numpy(np.stack([ceps, delta, np.gradient(delta, axis=1)])[None]).float()
    with torch.inference_mode():
        found = Contours(NUM_MEL)(x)[0].numpy()
    return found[:, :20], found[:, 20:]


@pytest.fixture
def noise() -> NDArray[np.float64]:
    return np.random.default_rng(0).normal(-3.0, 2.0, (NUM_MEL, NUM_FRAMES))


def test_bands_are_every_second_one_that_the_front_end_had(noise: NDArray[np.float64]) -> None:
    bands, _ = contours_of(noise)
    np.testing.assert_allclose(bands[0], noise[1::2], atol=1e-4)
    np.testing.assert_allclose(bands[1], np.gradient(noise, axis=1)[1::2], atol=1e-4)


def test_shapes_are_numpys(noise: NDArray[np.float64]) -> None:
    kept = noise[1::2]
    _, (shapes, *_) = contours_of(noise)
    power = np.exp(kept)
    share = power / power.sum(axis=0)
    place = np.arange(20)[:, None]
    centroid = (share * place).sum(axis=0)
    rise = np.gradient(noise, axis=1)[1::2]
    expected = {
        CENTROID: centroid,
        SPREAD: np.sqrt((share * (place - centroid) ** 2).sum(axis=0)),
        ENTROPY: -(share * np.log(share)).sum(axis=0),
        RISE: np.maximum(rise, 0.0).sum(axis=0),
        LEVEL: np.log(power.sum(axis=0)),
        MIDDLE: np.log(power[6:12].sum(axis=0) / power.sum(axis=0)),
        HIGH: np.log(power[12:].sum(axis=0) / power.sum(axis=0)),
        PEAK: kept.max(axis=0) - np.sort(kept, axis=0)[9],
        HALF: (np.cumsum(share, axis=0) < 0.5).sum(axis=0),
        MOST: (np.cumsum(share, axis=0) < 0.85).sum(axis=0),
    }
    for row, values in expected.items():
        np.testing.assert_allclose(shapes[row], values, rtol=1e-3, atol=1e-3, err_msg=str(row))
    flux = np.sqrt((np.diff(kept, axis=1) ** 2).mean(axis=0))
    np.testing.assert_allclose(shapes[FLUX, 1:], flux, rtol=1e-3)
    assert shapes[FLUX, 0] == shapes[FLUX, 1]


def test_a_louder_spectrum_has_another_level_and_the_same_shape(noise: NDArray[np.float64]) -> None:
    (_, (quiet, *_)), (_, (loud, *_)) = contours_of(noise), contours_of(noise + 3.0)
    np.testing.assert_allclose(loud[LEVEL] - quiet[LEVEL], 3.0, atol=1e-3)
    others = [row for row in range(12) if row != LEVEL]
    np.testing.assert_allclose(loud[others], quiet[others], rtol=1e-3, atol=1e-3)


def test_deltas_of_shapes_are_regressions() -> None:
    ramp = np.tile(np.arange(NUM_FRAMES) * 0.1, (NUM_MEL, 1))
    _, shapes = contours_of(ramp)
    np.testing.assert_allclose(shapes[1, LEVEL, 2:-2], 0.1, atol=1e-4)
    np.testing.assert_allclose(shapes[2, LEVEL, 4:-4], 0.0, atol=1e-4)
