"""Pitch and voicing: what they measure, and that no cut of the audio shows in them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamer.errors import ConfigError
from streamer.features import FeatureConfig, FeatureStream
from train.telephone import telephone

RATE = 16_000
CONFIG = FeatureConfig(num_pitch=3)
PITCH, VOICING, SAME_PITCH = 26, 27, 28


def voice(hz: float, seconds: float = 0.5, tilt: float = 1.0) -> NDArray[np.float32]:
    """Harmonics of ``hz`` up to 4 kHz, falling with their number: a buzz, as of vocal folds."""
    time_s = np.arange(round(seconds * RATE)) / RATE
    numbers = np.arange(1, int(4000 / hz) + 1)
    waves = np.sin(2 * np.pi * hz * numbers[:, None] * time_s) / numbers[:, None] ** tilt
    return (0.05 * waves.sum(axis=0)).astype(np.float32)


def rows(samples: NDArray[np.float32], config: FeatureConfig = CONFIG) -> NDArray[np.float32]:
    stream = FeatureStream(config)
    return np.concatenate([stream.receive(samples), stream.flush()])


def semitones(hz: float) -> float:
    return float(12 * np.log2(hz / 100))


@pytest.mark.parametrize("hz", [80.0, 110.0, 147.0, 220.0, 311.0, 450.0])
def test_a_voice_has_its_pitch(hz: float) -> None:
    static = rows(voice(hz))[:, 0]
    # Half a semitone: a lag of 32 samples at 500 Hz is one of 3 %, before the parabola.
    np.testing.assert_allclose(static[:, PITCH], semitones(hz), atol=0.5)
    assert static[:, VOICING].min() > 0.9
    np.testing.assert_array_equal(static[:, PITCH], static[:, SAME_PITCH])


@pytest.mark.parametrize("hz", [110.0, 220.0])
def test_a_telephone_keeps_the_pitch_though_its_band_starts_above_it(hz: float) -> None:
    static = rows(telephone(voice(hz), seed=1))[10:-10, 0]
    np.testing.assert_allclose(static[:, PITCH], semitones(hz), atol=0.5)


def test_noise_and_silence_are_not_voiced() -> None:
    noise = np.random.default_rng(1).normal(0, 0.1, RATE).astype(np.float32)
    assert np.median(rows(noise)[:, 0, VOICING]) < 0.35
    silence = rows(np.zeros(RATE, np.float32))[:, 0]
    assert silence[:, VOICING].max() < 0.01
    assert np.unique(silence[:, PITCH]).size == 1


def test_the_last_voiced_pitch_is_held() -> None:
    audio = np.concatenate([voice(220.0), np.zeros(RATE // 2, np.float32)])
    static = rows(audio)[:, 0]
    np.testing.assert_allclose(static[60:, PITCH], semitones(220.0), atol=0.5)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 15_999), max_size=8))
def test_any_cut_gives_the_same_bits(places: list[int]) -> None:
    rng = np.random.default_rng(3)
    glide = np.concatenate([voice(150.0, 0.3), voice(230.0, 0.3)])
    audio = np.concatenate([glide, rng.normal(0, 0.01, RATE).astype(np.float32)])[:RATE]
    whole = rows(audio)
    stream = FeatureStream(CONFIG)
    parts = [stream.receive(audio[a:b]) for a, b in pairwise([0, *sorted(places), len(audio)])]
    np.testing.assert_array_equal(np.concatenate([*parts, stream.flush()]), whole)


def test_the_coefficients_are_what_they_are_without_pitch() -> None:
    audio = voice(150.0)
    np.testing.assert_array_equal(rows(audio)[:, :, :26], rows(audio, FeatureConfig()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_pitch": 1}, "1 pitch rows: expected 0, 2 or 3"),
        ({"num_pitch": 2, "frame_length": 800}, "246 more than the frame"),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FeatureConfig(**changes)  # type: ignore[arg-type]
