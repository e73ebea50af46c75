"""A network of statistics: that they are those of the window, and that none of them breaks it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamer.errors import ConfigError
from train.can_config import CanConfig
from train.contours import Contours
from train.statistics_network import StatisticsNetworks

NUM_ROWS, NUM_CEPS = 28, 26
VOICING = 27
NUM_CONTOURS = 10 + 12  # every second band, and the shapes
CONFIG = CanConfig(num_rows=NUM_ROWS, statistics_members=2, statistics_width=16)
NAMES = (
    "mean",
    "deviation",
    *(f"quantile {share}" for share in (0.1, 0.25, 0.5, 0.75, 0.9)),
    "slope",
    "deviation of delta",
    "deviation of delta-delta",
    "quantile 0.1 of delta",
    "quantile 0.9 of delta",
    "mean of voiced",
    "deviation of voiced",
)


def build(**changes: object) -> StatisticsNetworks:
    torch.manual_seed(0)
    return StatisticsNetworks(replace(CONFIG, **changes)).eval()  # type: ignore[arg-type]


def statistics_of(network: StatisticsNetworks, windows: Tensor) -> dict[str, NDArray[np.float32]]:
    """Return what the first window's statistics are before they are normalised.

    28 of each name, of the features' rows; ``contours`` (14, 22) of what stands below them.
    """
    with torch.inference_mode():
        each = network.statistics(windows)[0].numpy()
    ends = np.cumsum([len(NAMES) * (NUM_ROWS + NUM_CONTOURS), 18, 66])
    rows, pitch, correlations, modulations = np.split(each, ends)
    rows = rows.reshape(len(NAMES), NUM_ROWS + NUM_CONTOURS)
    return {
        **dict(zip(NAMES, rows[:, :NUM_ROWS], strict=True)),
        "contours": rows[:, NUM_ROWS:],
        "pitch": pitch,
        "correlations": correlations,
        "modulations": modulations.reshape(6, 16),
    }


def known_window(seed: int = 0) -> tuple[Tensor, NDArray[np.bool_]]:
    """Return a window of 200 frames, (1, 3, 28, 200), and which of its frames are voiced."""
    rng = np.random.default_rng(seed)
    frames = rng.normal(size=(3, NUM_ROWS, 200)).astype(np.float32)
    is_voiced = rng.random(200) < 0.4
    # Sure enough that what tells voiced frames softly tells them as a mask would.
    frames[0, VOICING] = np.where(is_voiced, 2.0, -2.0)
    return torch.from_numpy(frames)[None], is_voiced


def test_statistics_are_numpys() -> None:
    windows, is_voiced = known_window()
    static, delta, delta_delta = windows[0].numpy().astype(np.float64)
    found = statistics_of(build(), windows)
    mean = static.mean(axis=1)

    def check(name: str, expected: NDArray[np.float64]) -> None:
        np.testing.assert_allclose(found[name], expected, atol=1e-5, err_msg=name)

    check("mean", mean)
    # 1e-4 under the root keeps the gradient of a constant row finite.
    check("deviation", np.log(static.var(axis=1) + 1e-4) / 2)
    check("deviation of delta", np.log(delta.var(axis=1) + 1e-4) / 2)
    check("deviation of delta-delta", np.log(delta_delta.var(axis=1) + 1e-4) / 2)
    # Of 100 frames, every second one, in order: the share's place among 0 to 99, rounded.
    ordered, ordered_delta = np.sort(static[:, ::2], axis=1), np.sort(delta[:, ::2], axis=1)
    for share, place in ((0.1, 10), (0.25, 25), (0.75, 74), (0.9, 89)):
        check(f"quantile {share}", np.log(np.abs(ordered[:, place] - mean)))
    check("quantile 0.5", ordered[:, 49] - mean)
    check("quantile 0.1 of delta", np.log(-ordered_delta[:, 10]))
    check("quantile 0.9 of delta", np.log(ordered_delta[:, 89]))
    # A frame of the mean is counted among the voiced ones.
    voiced = static[:, is_voiced]
    count = is_voiced.sum() + 1
    voiced_mean = (voiced.sum(axis=1) + mean) / count
    check("mean of voiced", voiced_mean - mean)
    squares = np.square(voiced - voiced_mean[:, None]).sum(axis=1)
    check("deviation of voiced", np.log(squares / count + 1e-4) / 2)


def test_a_row_that_moves_half_as_much_has_each_spread_moved_alike() -> None:
    """What a line or a room does to all spreads is one step in their logarithms."""
    windows, _ = known_window()
    windows[:, :, 0] -= windows[:, :1, 0].mean()
    quieter = windows.clone()
    quieter[:, :, 0] *= 0.5
    wide, narrow = statistics_of(build(), windows), statistics_of(build(), quieter)
    for name in NAMES:
        if "quantile" in name or "deviation" in name:
            step = 0.0 if name == "quantile 0.5" else np.log(2.0)
            # 1e-4 under the root, and a median that is no mean
            assert wide[name][0] - narrow[name][0] == pytest.approx(step, abs=0.02), name


def test_no_spread_is_less_than_the_least() -> None:
    windows = torch.zeros(1, 3, NUM_ROWS, 200)
    found = statistics_of(build(), windows)
    for name in ("quantile 0.1", "quantile 0.9", "quantile 0.1 of delta", "quantile 0.9 of delta"):
        np.testing.assert_allclose(found[name], np.log(0.02), rtol=1e-6, err_msg=name)


def half_silent_window() -> tuple[Tensor, NDArray[np.intp]]:
    """Return a window of which 80 frames are some 40 dB louder than the rest, and their places."""
    windows, _ = known_window()
    loud = np.arange(60, 140)
    # A cepstrum's first coefficient is the mean of the logarithms, times the root of 40 bands.
    windows[0, 0, 0, loud] += 40.0 * np.log(10.0) / 10.0 * np.sqrt(40.0)
    return windows, loud


def test_rows_in_range_are_numpys_of_frames_evenly_picked() -> None:
    windows, loud = half_silent_window()
    found = statistics_of(build(statistics_range_db=25.0), windows)
    places = loud[((np.arange(100) + 0.5) / 100 * len(loud)).astype(int)]
    picked = windows[0, 0].numpy().astype(np.float64)[:, places]
    np.testing.assert_allclose(found["mean"], picked.mean(axis=1), atol=1e-4)
    ordered = np.sort(picked[:, ::2], axis=1)
    expected = np.log(ordered[:, 37] - picked.mean(axis=1))  # of 50: the share of 0.75
    np.testing.assert_allclose(found["quantile 0.75"], expected, atol=1e-4)
    slope = (picked * np.linspace(-1.0, 1.0, 100)).mean(axis=1)
    np.testing.assert_allclose(found["slope"], slope, atol=1e-4)


def test_what_silence_holds_is_not_among_rows_in_range() -> None:
    windows, loud = half_silent_window()
    other = windows.clone()
    other[:, :, 1:VOICING] = known_window(1)[0][:, :, 1:VOICING]
    other[..., loud] = windows[..., loud]
    network = build(statistics_range_db=25.0)
    first, second = statistics_of(network, windows), statistics_of(network, other)
    for name in NAMES:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert not np.allclose(statistics_of(build(), windows)["mean"], first["mean"])


def test_all_frames_are_picked_once_in_two_where_all_are_in_range() -> None:
    windows, _ = known_window()
    found = statistics_of(build(statistics_range_db=100.0), windows)
    np.testing.assert_allclose(found["mean"], windows[0, 0, :, 1::2].mean(1), atol=1e-5)


@pytest.mark.parametrize("range_db", [-1.0, 101.0])
def test_a_range_that_is_none_is_refused(range_db: float) -> None:
    with pytest.raises(ConfigError, match="expected 0 to 100 dB"):
        build(statistics_range_db=range_db)


def test_statistics_of_the_pitch_are_numpys() -> None:
    windows, is_voiced = known_window()
    pitch = windows[0, 0, 26].numpy().astype(np.float64)
    voicing = windows[0, 0, VOICING].numpy().astype(np.float64)
    of_voice = pitch[is_voiced]
    time = np.linspace(-1.0, 1.0, 200)[is_voiced]
    slope = np.mean((time - time.mean()) * (of_voice - of_voice.mean())) / (time.var() + 1e-2)
    steps = np.clip(np.diff(pitch), -2.4, 2.4)[is_voiced[1:] & is_voiced[:-1]]
    shares = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
    # The share's place in falling order, rounded to the even one.
    places = [round((1.0 - share) * (len(of_voice) - 1)) for share in shares]
    quantiles = np.sort(of_voice)[::-1][places]
    expected = [
        of_voice.mean(),
        np.sqrt(of_voice.var() + 1e-4),
        *quantiles,
        quantiles[-1] - quantiles[0],
        slope,
        steps.mean(),
        np.sqrt(np.mean(steps**2) + 1e-6),
        np.abs(steps).mean(),
        is_voiced.mean(),
        np.sum(is_voiced[1:] & ~is_voiced[:-1]),
        voicing[is_voiced].mean(),
        np.abs(np.diff(pitch)).mean(),
    ]
    np.testing.assert_allclose(statistics_of(build(), windows)["pitch"], expected, atol=1e-4)


def test_contours_have_the_statistics_that_rows_have() -> None:
    windows, _ = known_window()
    with torch.inference_mode():
        contours = Contours(NUM_CEPS)(windows[:, :, :NUM_CEPS])[0].double().numpy()
    found = statistics_of(build(), windows)["contours"]
    few = [*range(0, 20, 2), *range(20, 32)]  # bands that neighbour each other say the same
    np.testing.assert_allclose(found[0], contours[0].mean(axis=1)[few], rtol=1e-4, atol=1e-4)
    spread = np.log(contours[1].var(axis=1)[few] + 1e-4) / 2
    np.testing.assert_allclose(found[8], spread, rtol=1e-4, atol=1e-4)


def test_correlations_are_numpys_over_voiced_frames() -> None:
    windows, is_voiced = known_window()
    windows[0, 0, 1] = 2.0 * windows[0, 0, 0] + 0.1 * windows[0, 0, 1]
    windows[0, 0, VOICING] = torch.from_numpy(np.where(is_voiced, 2.0, -2.0))
    found = statistics_of(build(), windows)["correlations"]
    rows = windows[0, 0, [*range(10), 26]].double().numpy()[:, is_voiced]
    expected = np.corrcoef(rows)[np.triu_indices(11, 1)]
    _, second = np.triu_indices(12, 1)
    # One frame more is counted, and a hundredth of a deviation keeps a constant row out.
    np.testing.assert_allclose(found[second < 11], expected, atol=0.03)
    assert found[0] > 0.95, "one row is twice the other"
    assert np.abs(found[second == 11]).max() < 0.1, "voicing is the same in all voiced frames"


@pytest.mark.parametrize(("hz", "band"), [(1.0, 0), (3.0, 1), (6.0, 2), (10.0, 3), (20.0, 4)])
def test_a_row_that_swings_has_its_power_in_that_band(hz: float, band: int) -> None:
    windows = torch.zeros(1, 3, NUM_ROWS, 200)
    windows[0, 0, 5] = 5.0 + torch.sin(2 * torch.pi * hz * torch.arange(200) / 100.0)
    found = statistics_of(build(), windows)["modulations"]
    assert found[:, 5].argmax() == band
    # A sine's power is a quarter of T, in one of the band's bins.
    num_bins = {0: 3, 1: 4, 2: 8, 3: 12, 4: 22}[band]
    assert found[band, 5] == pytest.approx(np.log(50.0 / num_bins), abs=0.01)
    quiet = np.delete(found[:, 5], band)
    np.testing.assert_allclose(quiet, np.log(1e-3), atol=0.05)
    np.testing.assert_allclose(found[:, [4, 6]], np.log(1e-3), atol=1e-4)


def test_without_voice_there_is_no_pitch() -> None:
    windows, _ = known_window()
    windows[0, 0, VOICING] = 0.0
    windows[0, 0, VOICING, 50:53] = 1.0
    assert not statistics_of(build(), windows)["pitch"].any(), "three frames are too few"
    windows[0, 0, VOICING, 53] = 1.0
    assert statistics_of(build(), windows)["pitch"].any()


def test_a_rising_row_has_a_slope_and_a_constant_one_has_none() -> None:
    windows = torch.zeros(1, 3, NUM_ROWS, 200)
    windows[0, 0, 0] = torch.linspace(-1.0, 1.0, 200)
    windows[0, 0, 1] = 7.0
    windows[0, 0, 2] = torch.linspace(3.0, -3.0, 200)
    slope = statistics_of(build(), windows)["slope"]
    # The mean square of 200 points from -1 to 1: (n + 1) / (3 (n - 1)).
    square = 201 / (3 * 199)
    np.testing.assert_allclose(slope[:3], [square, 0.0, -3.0 * square], atol=1e-5)


def test_features_are_normalised_by_training_s_statistics_but_voicing_is_told_as_it_comes() -> None:
    windows, is_voiced = known_window()
    mean, deviation = torch.full((3, NUM_ROWS, 1), 2.0), torch.full((3, NUM_ROWS, 1), 4.0)
    torch.manual_seed(0)
    network = StatisticsNetworks(CONFIG, mean, deviation).eval()
    found = statistics_of(network, windows)
    static = (windows[0, 0].numpy().astype(np.float64) - 2.0) / 4.0
    np.testing.assert_allclose(found["mean"], static.mean(axis=1), atol=1e-5)
    voiced = static[:, is_voiced].sum(axis=1)
    expected = (voiced + static.mean(axis=1)) / (is_voiced.sum() + 1) - static.mean(axis=1)
    np.testing.assert_allclose(found["mean of voiced"], expected, atol=1e-5)


@pytest.mark.parametrize("range_db", [0.0, 25.0])
@pytest.mark.parametrize(
    "kind", ["silent", "unvoiced", "constant", "all voiced", "as loud as float16 gets"]
)
def test_no_window_is_too_odd(kind: str, range_db: float) -> None:
    windows = known_window()[0].repeat(2, 1, 1, 1)
    if kind == "silent":
        windows = torch.zeros_like(windows)
    elif kind == "unvoiced":
        windows[:, 0, VOICING] = -2.0
    elif kind == "constant":
        windows = torch.full_like(windows, 3.0)
    elif kind == "all voiced":
        windows[:, 0, VOICING] = 2.0
    else:
        windows = windows.sign() * 65504.0
    network = build(statistics_range_db=range_db)
    windows.requires_grad_()
    outputs = network(windows)
    torch.autograd.backward(torch.stack([output.logits for output in outputs]).square().sum())
    assert all(output.logits.isfinite().all() for output in outputs)
    weights = [weight.grad for weight in network.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in weights)
    assert windows.grad is not None and windows.grad.isfinite().all()


def test_where_nothing_is_voiced_the_voiced_mean_is_the_mean() -> None:
    windows, _ = known_window()
    windows[:, 0, VOICING] = -2.0
    assert np.abs(statistics_of(build(), windows)["mean of voiced"]).max() < 1e-5


def test_members_share_the_statistics_and_differ() -> None:
    network = build(statistics_members=3)
    with torch.inference_mode():
        outputs = network(known_window()[0])
    assert len(outputs) == 3
    assert [output.logits.shape for output in outputs] == [(1, 4)] * 3
    assert [output.embedding.shape for output in outputs] == [(1, 16)] * 3
    assert len({tuple(output.logits.flatten().tolist()) for output in outputs}) == 3
    for output in outputs:
        torch.testing.assert_close(output.attention, torch.full((1, 200), 1 / 200))


def test_a_second_classifier_is_there_if_emotions_are() -> None:
    windows = known_window()[0]
    with torch.inference_mode():
        (without, *_), (with_it, *_) = build()(windows), build(num_emotions=9)(windows)
    assert without.emotions is None
    assert with_it.emotions is not None and with_it.emotions.shape == (1, 9)


@pytest.mark.parametrize("range_db", [0.0, 25.0])
def test_an_odd_number_of_frames_will_do(range_db: float) -> None:
    network = build(num_frames=51, statistics_range_db=range_db)
    with torch.inference_mode():
        outputs = network(torch.randn(2, 3, NUM_ROWS, 51))
    assert all(output.logits.isfinite().all() for output in outputs)


@pytest.mark.parametrize("num_rows", [26, 27])
def test_features_without_pitch_and_voicing_are_refused(num_rows: int) -> None:
    with pytest.raises(ConfigError, match=f"{num_rows} rows, 26 of them coefficients"):
        build(num_rows=num_rows)


def test_too_few_coefficients_are_refused() -> None:
    with pytest.raises(ConfigError, match="13 coefficients: expected 14 or more"):
        build(num_rows=15, num_ceps=13)


@pytest.mark.parametrize(("width", "members"), [(-1, 2), (8, 0)])
def test_a_gate_without_statistics_is_refused(width: int, members: int) -> None:
    with pytest.raises(ConfigError, match=f"gate_width is {width}, of {members} networks of stat"):
        build(gate_width=width, statistics_members=members)
