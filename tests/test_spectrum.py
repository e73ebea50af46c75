"""What the teacher hears of a sound: filters by their definition, frames by where they lie."""

from __future__ import annotations

import numpy as np

from train.spectrum import HOP, mel_spectrogram, slaney_filters


def test_filters_are_triangles_of_area_one_linear_to_1_khz() -> None:
    filters = slaney_filters(40, 4_000, 16_000)  # a bin every 4 Hz
    np.testing.assert_allclose(filters.sum(1) * 4.0, 1.0, rtol=2e-3)
    centres = filters.argmax(1) * 4.0
    steps = np.diff(centres[centres < 1_000])
    assert steps.max() - steps.min() <= 4.0
    ratios = centres[-10:] / centres[-11:-1]
    np.testing.assert_allclose(ratios, ratios.mean(), atol=2e-3)


def test_a_frame_is_centred_on_every_10_ms() -> None:
    samples = np.zeros(16_000, np.float32)
    samples[50 * HOP] = 1.0
    power = mel_spectrogram(samples, 40).sum(1)
    assert len(power) == 101 and power.argmax() == 50
    assert np.flatnonzero(power).tolist() == [49, 50, 51]


def test_a_tone_is_in_its_band() -> None:
    tone = np.sin(2 * np.pi * 1_000 * np.arange(16_000) / 16_000)
    power = mel_spectrogram(tone.astype(np.float32), 80).mean(0)
    filters = slaney_filters(80, 400, 16_000)
    assert power.argmax() == filters[:, 25].argmax(), "a bin every 40 Hz"
