"""Augmentation acts on frames as it would on audio."""

from __future__ import annotations

import numpy as np
import pytest

from streamer.errors import ConfigError
from streamer.features import FeatureConfig, FeatureStream
from tests.golden.synthetic import voice
from train.augment import AugmentConfig, augment_frames, level_shift, stretch_time, warp_matrix

FEATURES = FeatureConfig()


def test_nothing_on_means_nothing_changes() -> None:
    frames = np.random.default_rng(1).standard_normal((50, 3, 26)).astype(np.float32)
    same = augment_frames(frames, AugmentConfig(), FEATURES, np.random.default_rng(2))
    np.testing.assert_array_equal(same, frames)
    assert same is not frames


def test_level_is_what_a_louder_recording_gives() -> None:
    quiet = np.asarray(voice(0.5), np.float32) * 0.1
    louder = FeatureStream(FEATURES).receive(quiet * 10 ** (6 / 20))
    plain = FeatureStream(FEATURES).receive(quiet)
    expected = np.zeros(26)
    expected[0] = level_shift(6.0, FEATURES)
    difference = (louder[:, 0] - plain[:, 0]).mean(axis=0)
    # Bands at the floor do not move, hence the tolerance; the voice leaves few of them there.
    np.testing.assert_allclose(difference, expected, atol=0.05 * expected[0])


def test_warp_of_one_is_the_identity_and_one_direction_undoes_the_other() -> None:
    np.testing.assert_allclose(warp_matrix(FEATURES, 1.0), np.eye(26), atol=1e-6)
    smooth = np.zeros(26, np.float32)
    smooth[:4] = (40.0, -5.0, 3.0, 2.0)
    there = warp_matrix(FEATURES, 1.05) @ smooth
    assert np.abs(there - smooth).max() > 0.1
    # Interpolation between 40 bands loses a little each way.
    np.testing.assert_allclose(warp_matrix(FEATURES, 1 / 1.05) @ there, smooth, atol=1.0)


def test_warp_moves_a_spectral_peak_by_its_factor() -> None:
    import scipy.fft

    from streamer.features import hz_to_mel, mel_to_hz

    low, high = hz_to_mel(np.array([FEATURES.mel_low_hz, FEATURES.mel_high_hz]))
    centres_hz = mel_to_hz(np.linspace(low, high, FEATURES.num_mel + 2)[1:-1])
    log_mel = 10.0 * np.exp(-(((centres_hz - 2000.0) / 700.0) ** 2))
    ceps = scipy.fft.dct(log_mel, type=2, norm="ortho")[:26]
    back = scipy.fft.idct(
        np.concatenate([warp_matrix(FEATURES, 1.1) @ ceps, np.zeros(14)]), type=2, norm="ortho"
    )
    peak_hz = np.average(centres_hz, weights=np.maximum(back, 0) ** 4)
    # Energy is read at f * 1.1: the peak at 2000 Hz is found at 2000 / 1.1; a band is 100 Hz wide.
    assert peak_hz == pytest.approx(2000.0 / 1.1, abs=100.0)


def test_stretch_slows_time_and_shrinks_deltas() -> None:
    time = np.arange(100, dtype=np.float32)
    frames = np.zeros((100, 3, 26), np.float32)
    frames[:, 0] = (time**2)[:, None]
    frames[:, 1] = (2 * time)[:, None]
    frames[:, 2] = 2.0
    slow = stretch_time(frames, 2.0)
    assert len(slow) == 200
    slope = np.gradient(slow[:, 0, 0])
    # Away from the edges the delta is the slope, bent by one frame where frames are interpolated.
    np.testing.assert_allclose(slow[5:-5, 1, 0], slope[5:-5], atol=1.5)
    np.testing.assert_allclose(slow[:, 2, 0], 0.5, atol=1e-6)


def test_masks_hide_time_and_draws_come_from_the_seed() -> None:
    frames = np.random.default_rng(1).standard_normal((100, 3, 26)).astype(np.float32)
    config = AugmentConfig(warp=0.1, stretch=0.1, tilt=1.0, level_db=6.0, num_masks=2)
    first = augment_frames(frames, config, FEATURES, np.random.default_rng(7))
    again = augment_frames(frames, config, FEATURES, np.random.default_rng(7))
    np.testing.assert_array_equal(first, again)
    masked = augment_frames(frames, AugmentConfig(num_masks=3), FEATURES, np.random.default_rng(3))
    assert 0 < np.all(masked != frames, axis=(1, 2)).sum() <= 75


@pytest.mark.parametrize("fields", [{"warp": 0.6}, {"stretch": -0.1}, {"tilt": -1.0}])
def test_a_strength_out_of_range_is_refused(fields: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        AugmentConfig(**fields)  # type: ignore[arg-type]
