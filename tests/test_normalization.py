from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamer.arrays import Frames
from streamer.errors import ConfigError
from streamer.normalization import CausalNormalizer, NormalizationConfig

CARD_MEAN = tuple(float(value) for value in np.linspace(-60.0, 5.0, 26))
CARD = NormalizationConfig(mean=CARD_MEAN)


def some_frames(num_frames: int, seed: int = 0, mean: float = 0.0) -> Frames:
    rng = np.random.default_rng(seed)
    return (mean + 5.0 * rng.standard_normal((num_frames, 3, 26))).astype(np.float32)


def some_flags(num_frames: int, seed: int = 0) -> NDArray[np.bool_]:
    return np.random.default_rng(seed + 1_000).random(num_frames) < 0.6


def reference(
    config: NormalizationConfig, frames: Frames, is_speech: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Weigh every speech frame of the past anew for each frame: slow and plain."""
    expected = frames.astype(np.float64)
    heard: list[NDArray[np.float64]] = []
    for row in range(len(frames)):
        if is_speech[row]:
            heard.append(frames[row, 0].astype(np.float64) - np.array(config.mean))
        # The newest weighs 1 / count and takes that share from all before; the card's zero first.
        weights = np.zeros(len(heard))
        for number in range(len(heard)):
            share = 1.0 / (min(number + 1, config.memory_frames) + config.prior_frames)
            weights[:number] *= 1.0 - share
            weights[number] = share
        if heard:
            expected[row, 0] -= np.tensordot(weights, np.stack(heard), axes=1)
    return expected


@settings(max_examples=30)
@given(
    num_frames=st.integers(1, 60),
    prior_frames=st.integers(0, 40),
    memory_frames=st.integers(1, 60),
    seed=st.integers(0, 99),
)
def test_agrees_with_a_slow_reference(
    num_frames: int, prior_frames: int, memory_frames: int, seed: int
) -> None:
    config = NormalizationConfig(
        mean=CARD_MEAN, prior_frames=prior_frames, memory_frames=memory_frames
    )
    frames, is_speech = some_frames(num_frames, seed), some_flags(num_frames, seed)
    normalized = CausalNormalizer(config).normalize(frames, is_speech)
    # float32 results of a magnitude of up to 80.
    np.testing.assert_allclose(normalized, reference(config, frames, is_speech), atol=1e-5)


def test_until_the_memory_is_full_it_is_the_mean_drawn_towards_the_card() -> None:
    frames = some_frames(300)
    normalized = CausalNormalizer(CARD).normalize(frames, np.ones(300, np.bool_))
    mean = (200 * np.array(CARD_MEAN) + frames[:, 0].astype(np.float64).sum(axis=0)) / 500
    expected = frames[-1, 0] - (mean - np.array(CARD_MEAN))
    np.testing.assert_allclose(normalized[-1, 0], expected, atol=1e-5)


@settings(max_examples=30)
@given(places=st.lists(st.integers(0, 80), max_size=12), seed=st.integers(0, 99))
def test_the_past_alone_decides_and_any_cut_gives_the_same_bits(
    places: list[int], seed: int
) -> None:
    frames, is_speech = some_frames(80, seed), some_flags(80, seed)
    whole = CausalNormalizer(CARD).normalize(frames, is_speech)
    normalizer = CausalNormalizer(CARD)
    edges = [0, *sorted(places), 80]
    for start, end in itertools.pairwise(edges):
        part = normalizer.normalize(frames[start:end], is_speech[start:end])
        assert part.tobytes() == whole[start:end].tobytes()
    assert normalizer.num_speech_frames == is_speech.sum(), "each frame counts once"


def test_without_speech_nothing_moves() -> None:
    frames = some_frames(500)
    normalizer = CausalNormalizer(CARD)
    normalized = normalizer.normalize(frames, np.zeros(500, np.bool_))
    assert normalized.tobytes() == frames.tobytes()
    assert normalizer.num_speech_frames == 0


def test_what_is_no_speech_does_not_count() -> None:
    frames, is_speech = some_frames(200), some_flags(200)
    other = frames.copy()
    other[~is_speech] = 1e3
    normalized = CausalNormalizer(CARD).normalize(frames, is_speech)
    expected = CausalNormalizer(CARD).normalize(other, is_speech)
    assert normalized[is_speech].tobytes() == expected[is_speech].tobytes()


def test_a_channel_that_is_the_cards_own_mean_stays_as_it_is() -> None:
    frames = np.zeros((400, 3, 26), np.float32)
    frames[:, 0] = CARD_MEAN
    normalized = CausalNormalizer(CARD).normalize(frames, np.ones(400, np.bool_))
    # The card's mean is kept in float64, the frames in float32.
    np.testing.assert_allclose(normalized, frames, atol=1e-5)


def test_a_channels_offset_is_lost_in_the_end() -> None:
    offset = np.linspace(-12.0, 12.0, 26).astype(np.float32)
    frames = some_frames(6_000)
    frames[:, 0] += np.array(CARD_MEAN, np.float32) + offset
    normalized = CausalNormalizer(CARD).normalize(frames, np.ones(6_000, np.bool_))
    mean = normalized[-2_000:, 0].mean(axis=0)
    # What the prior still holds: 200 / 3200 of 12, decayed by e once, and the noise of the mean.
    np.testing.assert_allclose(mean, CARD_MEAN, atol=0.7)


def test_an_old_channel_is_forgotten_with_the_memory_as_time_constant() -> None:
    config = NormalizationConfig(mean=(0.0,) * 26, prior_frames=0, memory_frames=500)
    frames = np.zeros((2_500, 3, 26), np.float32)
    frames[:2_000, 0] = 10.0
    normalized = CausalNormalizer(config).normalize(frames, np.ones(2_500, np.bool_))
    # 500 frames after the change a share of 1/e is left; (1 - 1/500)^500 is 0.1 % less.
    assert float(-normalized[-1, 0, 0]) == pytest.approx(10.0 / math.e, rel=2e-3)


def test_deltas_and_the_frames_handed_in_stay_as_they_are() -> None:
    frames = some_frames(50)
    before = frames.copy()
    normalized = CausalNormalizer(CARD).normalize(frames, np.ones(50, np.bool_))
    assert frames.tobytes() == before.tobytes()
    assert normalized.dtype == np.float32
    assert normalized[:, 1:].tobytes() == frames[:, 1:].tobytes()
    assert not np.array_equal(normalized[:, 0], frames[:, 0])


@pytest.mark.parametrize(
    ("prior_frames", "memory_frames"), [(-1, 3000), (200, 0), (0, -1)], ids=str
)
def test_a_config_out_of_range_is_refused(prior_frames: int, memory_frames: int) -> None:
    found = f"prior of {prior_frames} frames, memory of {memory_frames}: expected"
    with pytest.raises(ConfigError, match=found):
        NormalizationConfig(mean=CARD_MEAN, prior_frames=prior_frames, memory_frames=memory_frames)
