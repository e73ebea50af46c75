from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.arrays import Frames, Samples
from streamer.errors import AudioError, ConfigError
from streamer.features import FeatureConfig, FeatureStream, hz_to_mel, mel_filters, mel_to_hz
from tests.golden.synthetic import hiss, silence, voice

GOLDEN = Path(__file__).parent / "golden" / "features.npz"
WIDE = FeatureConfig()
NARROW = FeatureConfig(mel_low_hz=60.0, mel_high_hz=3800.0)
SMALL = FeatureConfig(
    frame_length=400, frame_shift=80, fft_length=512, num_mel=23, num_ceps=13, delta_window=3
)


def stream(config: FeatureConfig, chunks: list[Samples]) -> tuple[Frames, int]:
    """Feed chunks; return all frames, and how many the stream says that it computed."""
    features = FeatureStream(config)
    parts = [features.receive(chunk) for chunk in chunks] + [features.flush()]
    return np.concatenate(parts), features.num_frames_computed


def num_frames_of(config: FeatureConfig, num_samples: int) -> int:
    return max(0, (num_samples - config.frame_length) // config.frame_shift + 1)


@pytest.mark.parametrize("num_samples", [0, 639, 640, 799, 800, 16_001])
def test_frames_are_counted_as_the_stream_has_them(num_samples: int) -> None:
    config = FeatureConfig()
    features = FeatureStream(config)
    features.receive(np.zeros(num_samples, np.float32))
    assert config.count_frames(num_samples) == features.num_frames_computed
    assert config.count_frames(num_samples) == num_frames_of(config, num_samples)


# Law 3: an outside witness.


@pytest.mark.parametrize(("name", "config"), [("wide", WIDE), ("narrow", NARROW)])
def test_frames_agree_with_an_independent_library(name: str, config: FeatureConfig) -> None:
    with np.load(GOLDEN) as golden:
        audio, expected = golden["audio"], golden[name]
    frames, _ = stream(config, [(audio / 32768.0).astype(np.float32)])
    assert frames.shape == expected.shape
    # Both sides are float32, which holds a c0 of -145 to 8e-6: a tenth of what is allowed.
    np.testing.assert_allclose(frames, expected, rtol=0, atol=1e-4)


# Laws 1 and 2: chunking never shows, and offline is the stream fed at once.


@settings(max_examples=60)
@given(
    config=st.sampled_from([WIDE, NARROW, SMALL]),
    num_samples=st.integers(0, 9_000),
    places=st.lists(st.integers(0, 9_000), max_size=30),
    seed=st.integers(0, 99),
)
def test_any_cut_gives_the_same_bits(
    config: FeatureConfig, num_samples: int, places: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    audio = (rng.standard_normal(num_samples) * rng.choice([1e-6, 0.1])).astype(np.float32)
    edges = [0, *sorted(min(place, num_samples) for place in places), num_samples]
    chunks = [audio[start:end] for start, end in itertools.pairwise(edges)]
    whole, num_whole = stream(config, [audio])
    frames, num_frames = stream(config, chunks)
    assert frames.tobytes() == whole.tobytes()
    expected = num_frames_of(config, num_samples)
    assert num_frames == num_whole == len(whole) == expected


def test_a_long_file_in_one_piece_is_the_same_as_by_the_step() -> None:
    audio = hiss(7.0, -30.0)
    whole, _ = stream(WIDE, [audio])
    assert len(whole) > 2 * 256, "no block boundary inside was tested"
    by_step, _ = stream(WIDE, [audio[start : start + 4_000] for start in range(0, 112_000, 4_000)])
    assert by_step.tobytes() == whole.tobytes()


def test_a_chunk_may_be_overwritten_once_it_is_received() -> None:
    audio = hiss(0.5, -30.0)
    features, buffer = FeatureStream(WIDE), np.zeros(500, np.float32)
    parts = []
    for start in range(0, len(audio), 500):
        buffer[:] = audio[start : start + 500]
        parts.append(features.receive(buffer))
    parts.append(features.flush())
    assert np.concatenate(parts).tobytes() == stream(WIDE, [audio])[0].tobytes()


@pytest.mark.parametrize("config", [WIDE, SMALL])
def test_look_ahead(config: FeatureConfig) -> None:
    features = FeatureStream(config)
    num_received = num_out = 0
    for _ in range(60):
        num_out += len(features.receive(np.zeros(67, np.float32)))
        num_received += 67
        look_ahead = round(config.look_ahead_s * config.sample_rate)
        assert num_out == num_frames_of(config, num_received - look_ahead)
    assert num_out > 0
    assert num_out + len(features.flush()) == features.num_frames_computed


def test_look_ahead_in_seconds() -> None:
    assert WIDE.frame_shift_s == 0.01
    assert WIDE.look_ahead_s == 0.04


@pytest.mark.parametrize(("num_samples", "num_frames"), [(0, 0), (639, 0), (640, 1), (800, 2)])
def test_the_shortest_streams(num_samples: int, num_frames: int) -> None:
    frames, num_computed = stream(WIDE, [hiss(1.0, -20.0)[:num_samples]])
    assert frames.shape == (num_frames, 3, 26)
    assert frames.dtype == np.float32
    assert num_computed == num_frames


# Values


def test_digital_silence_stands_on_the_fixed_floor() -> None:
    frames, _ = stream(WIDE, [silence(0.2)])
    expected = np.zeros_like(frames)
    expected[:, 0, 0] = np.sqrt(40) * np.log(1e-10)
    # c0 is -145.6, of which float32 keeps 8e-6; the other coefficients sum to rounding alone.
    np.testing.assert_allclose(frames, expected, rtol=0, atol=1e-5)


def test_the_floor_is_fixed_not_relative_to_the_loudest_frame() -> None:
    quiet, loud = hiss(0.5, -60.0), hiss(0.5, -3.0)
    alone, _ = stream(WIDE, [quiet])
    after, _ = stream(WIDE, [quiet, loud])
    num_same = len(alone) - 8  # the deltas of the last ones see what follows
    assert after[:num_same].tobytes() == alone[:num_same].tobytes()


def test_level_moves_c0_alone() -> None:
    audio = voice(0.5, -30.0) + hiss(0.5, -40.0)
    quiet, _ = stream(WIDE, [audio])
    loud, _ = stream(WIDE, [2 * audio])
    shift = np.zeros((3, 26))
    shift[0, 0] = np.sqrt(40) * np.log(4.0)
    # Nothing lies at the floor; a c0 of -60 is kept to 4e-6 on either side.
    np.testing.assert_allclose(loud - quiet, np.broadcast_to(shift, loud.shape), atol=2e-5)


@pytest.mark.parametrize("config", [WIDE, SMALL])
def test_deltas_are_regressions_with_replicated_edges(config: FeatureConfig) -> None:
    frames, _ = stream(config, [voice(0.4)])
    reach = range(-config.delta_window, config.delta_window + 1)
    for of, delta in ((0, 1), (1, 2)):
        rows = frames[:, of].astype(np.float64)
        for index in range(len(rows)):
            near = [rows[min(max(index + n, 0), len(rows) - 1)] for n in reach]
            slope = sum(n * row for n, row in zip(reach, near, strict=True))
            # What is compared has been rounded to float32, 4e-6 at a magnitude of 60.
            expected = slope / sum(n * n for n in reach)
            np.testing.assert_allclose(frames[index, delta], expected, atol=2e-5)


@settings(max_examples=40)
@given(
    power=st.integers(-44, 4),
    seed=st.integers(0, 99),
    offset=st.sampled_from([0.0, 1.0, -1.0]),
)
def test_finite_audio_of_any_level_gives_finite_frames(
    power: int, seed: int, offset: float
) -> None:
    rng = np.random.default_rng(seed)
    audio = (rng.standard_normal(2_000) * 10.0**power + offset).astype(np.float32)
    frames, _ = stream(WIDE, [audio])
    assert np.isfinite(frames).all()


def test_mel_scale() -> None:
    hz = np.array([0.0, 60.0, 700.0, 3800.0, 8000.0])
    np.testing.assert_allclose(mel_to_hz(hz_to_mel(hz)), hz, atol=1e-9)
    # The scale is made so that 1000 Hz are 1000 mel; its constants are given to four figures.
    assert abs(float(hz_to_mel(np.array([1000.0]))[0]) - 1000.0) < 0.1


@pytest.mark.parametrize("config", [WIDE, NARROW, SMALL])
def test_mel_filters_are_triangles_within_their_range(config: FeatureConfig) -> None:
    filters = mel_filters(config)
    assert filters.shape == (config.num_mel, config.fft_length // 2 + 1)
    assert filters.min() == 0 and 0.4 < filters.max() <= 1
    bins_hz = np.fft.rfftfreq(config.fft_length, 1 / config.sample_rate)
    outside = (bins_hz <= config.mel_low_hz) | (bins_hz >= config.mel_high_hz)
    assert not filters[:, outside].any()
    # Between the first peak and the last, the two triangles over a bin share it out.
    peaks = np.argmax(filters, axis=1)
    np.testing.assert_allclose(filters[:, peaks[0] + 1 : peaks[-1]].sum(axis=0), 1.0)


# What is refused


@pytest.mark.parametrize("shape", [(), (160, 1), (2, 160)])
def test_samples_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(AudioError, match=r"samples of shape \(.*\): expected one dimension"):
        FeatureStream(WIDE).receive(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"mel_high_hz": 8001.0}, "20-8001 Hz"),
        ({"mel_low_hz": -1.0}, "-1-7600 Hz"),
        ({"mel_low_hz": 7600.0}, "7600-7600 Hz"),
        ({"mel_high_hz": float("nan")}, "20-nan Hz"),
        ({"sample_rate": 8000}, "20-7600 Hz"),
        ({"frame_shift": 0}, "frame shift 0"),
        ({"frame_shift": 641}, "frame shift 641"),
        ({"fft_length": 639}, "FFT 639"),
        ({"num_ceps": 0}, "0 coefficients of 40 bands"),
        ({"num_ceps": 41}, "41 coefficients of 40 bands"),
        ({"delta_window": 0}, "delta window 0"),
        ({"energy_floor": 0.0}, "floor"),
        ({"energy_floor": -1e-10}, "floor"),
        ({"energy_floor": float("nan")}, "floor"),
    ],
)
def test_a_config_out_of_range_is_refused(values: dict[str, Any], found: str) -> None:
    with pytest.raises(ConfigError, match=f"{found}.*expected"):
        FeatureConfig(**values)


def test_a_mel_band_without_an_fft_bin_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"mel band \d+ of 40 holds no FFT bin: expected"):
        FeatureStream(FeatureConfig(mel_low_hz=60.0, mel_high_hz=300.0))
