"""The floor under a window's spectrum: what is far below the loudest sounds alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.fft
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from streamer.errors import ConfigError
from train.can import CascadedAttentionNetwork
from train.can_config import CanConfig
from train.committee import Committee
from train.contours import regression_deltas
from train.floor import SpectralFloor, floor_of
from train.statistics_network import StatisticsNetworks

NUM_MEL, NUM_CEPS, NUM_FRAMES = 40, 26, 50
SMALL = CanConfig(
    conv_channels=(4, 4, 4, 8), lstm_cells=4, num_heads=1, head_width=8, num_rows=28, num_frames=40
)


def window_of(log_energies: NDArray[np.float64]) -> Tensor:
    """Return log energies (40, T) as a window (1, 3, 28, T), deltas and pitch made up."""
    ceps = scipy.fft.dct(log_energies, type=2, norm="ortho", axis=0)[:NUM_CEPS]
    rows = np.random.default_rng(0).normal(size=(3, NUM_CEPS + 2, log_energies.shape[1]))
    rows[0, :NUM_CEPS] = ceps
    return torch.from_numpy(rows)[None].float()


def smooth(seed: int, level: float, depth: float) -> NDArray[np.float64]:
    """Return log energies (40, T) which 26 coefficients hold whole."""
    rng = np.random.default_rng(seed)
    ceps = np.zeros((NUM_MEL, NUM_FRAMES))
    ceps[1:NUM_CEPS] = rng.normal(0.0, depth, (NUM_CEPS - 1, NUM_FRAMES))
    return level + scipy.fft.idct(ceps, type=2, norm="ortho", axis=0)


def test_the_floor_adds_its_power_to_every_band() -> None:
    bands = smooth(0, -5.0, 3.0)
    found = SpectralFloor(20.0, NUM_CEPS)(window_of(bands))
    floor = np.exp(bands).mean(axis=0).max() / 100.0  # 20 dB of power
    expected = scipy.fft.dct(np.log(np.exp(bands) + floor), type=2, norm="ortho", axis=0)
    # the basis is kept in half: 11 bits of numbers up to some 30
    np.testing.assert_allclose(found[0, 0, :NUM_CEPS], expected[:NUM_CEPS], atol=0.05)


def test_deltas_are_those_of_the_new_cepstra_and_pitch_stays() -> None:
    x = window_of(smooth(0, -5.0, 3.0))
    found = SpectralFloor(20.0, NUM_CEPS)(x)
    torch.testing.assert_close(found[:, 1, :NUM_CEPS], regression_deltas(found[:, 0, :NUM_CEPS]))
    torch.testing.assert_close(found[:, 2, :NUM_CEPS], regression_deltas(found[:, 1, :NUM_CEPS]))
    assert torch.equal(found[:, :, NUM_CEPS:], x[:, :, NUM_CEPS:])


def test_two_rooms_that_differ_in_their_silence_sound_alike_over_a_floor() -> None:
    speech = smooth(1, 0.0, 0.5)
    quiet, quieter = speech.copy(), speech.copy()
    quiet[:, 30:] = smooth(2, -14.0, 0.5)[:, 30:]  # 60 dB down
    quieter[:, 30:] = smooth(3, -18.0, 0.5)[:, 30:]
    floor = SpectralFloor(30.0, NUM_CEPS)
    before = (window_of(quiet) - window_of(quieter)).abs()[0, 0, :NUM_CEPS].max()
    after = (floor(window_of(quiet)) - floor(window_of(quieter))).abs()[0, 0, :NUM_CEPS].max()
    assert before > 20.0 and after < 0.05


def test_a_louder_window_is_the_same_window_louder() -> None:
    floor, bands = SpectralFloor(30.0, NUM_CEPS), smooth(0, -5.0, 3.0)
    quiet, loud = floor(window_of(bands)), floor(window_of(bands + 4.0))
    torch.testing.assert_close(loud[:, 0, 1:], quiet[:, 0, 1:], atol=0.02, rtol=0.0)
    rise = (loud - quiet)[0, 0, 0]
    torch.testing.assert_close(rise, torch.full_like(rise, 4.0 * NUM_MEL**0.5), atol=0.1, rtol=0.0)


def test_bfloat16_leaves_cepstra_whole() -> None:
    x, floor = window_of(smooth(0, -5.0, 3.0)), SpectralFloor(30.0, NUM_CEPS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(floor(x), floor(x.float()))
        assert floor(x).dtype == torch.float32


@pytest.mark.parametrize("level", [-65504.0, 0.0, 65504.0])
def test_no_window_is_too_loud_or_too_quiet(level: float) -> None:
    x = torch.full((2, 3, 28, NUM_FRAMES), level, requires_grad=True)
    found = SpectralFloor(30.0, NUM_CEPS)(x)
    torch.autograd.backward(found.square().mean().sqrt())
    assert found.isfinite().all() and x.grad is not None and x.grad.isfinite().all()


def test_no_floor_adds_nothing() -> None:
    assert isinstance(floor_of(SMALL), nn.Identity)
    assert isinstance(floor_of(replace(SMALL, floors_db=(30.0,))), SpectralFloor)


def test_a_network_hears_its_first_coefficients_and_every_row_below_them() -> None:
    torch.manual_seed(0)
    for front, stride in (("paper", 1), ("temporal", 2)):
        config = replace(SMALL, heard_ceps=13, front=front, time_stride=stride)  # type: ignore[arg-type]
        assert config.heard_rows == (*range(13), 26, 27)
        network = CascadedAttentionNetwork(config).eval()
        x = torch.randn(2, *config.input_shape)
        deaf, other = x.clone(), x.clone()
        deaf[:, :, 13:26] = 7.0
        other[:, :, 26] = 7.0
        with torch.inference_mode():
            assert torch.equal(network(deaf).logits, network(x).logits)
            assert not torch.equal(network(other).logits, network(x).logits)


def test_a_committee_has_its_floors_in_turn_and_lays_each_once() -> None:
    torch.manual_seed(0)
    config = replace(
        SMALL, floors_db=(0.0, 30.0), members=3, statistics_members=3, statistics_width=8
    )
    network = Committee(replace(config, gate_width=8)).eval()
    assert [can.config.floors_db for can in network.cans] == [(0.0,), (30.0,), (0.0,)]
    assert [group.config.floors_db for group in network.groups] == [(0.0,), (30.0,)]
    assert [len(group.members) for group in network.groups] == [2, 1]
    assert network.gate is network.groups[0].gate and network.groups[1].gate is None
    x = torch.randn(2, *config.input_shape)
    with torch.inference_mode():
        each = network.outputs(x)
        alone = [can(x) for can in network.cans]
        for group in network.groups:
            alone += group(x)
    assert len(each) == 6
    for one, other in zip(each, alone, strict=True):
        torch.testing.assert_close(one.logits, other.logits)


def test_a_committee_with_more_floors_than_networks_of_statistics_has_a_group_for_each() -> None:
    config = replace(SMALL, floors_db=(0.0, 30.0, 40.0), statistics_members=1, statistics_width=8)
    assert [group.config.floors_db for group in Committee(config).groups] == [(0.0,)]


def test_a_network_of_statistics_hears_what_is_over_its_floor() -> None:
    config = replace(SMALL, num_frames=NUM_FRAMES, statistics_members=1, statistics_width=8)
    quiet, quieter = smooth(1, 0.0, 0.5), smooth(1, 0.0, 0.5)
    quiet[:, 30:], quieter[:, 30:] = -14.0, -18.0
    x = torch.cat([window_of(quiet), window_of(quieter)])
    x[:, 1:] = 0.0
    torch.manual_seed(0)
    plain = StatisticsNetworks(config).eval()
    floored = StatisticsNetworks(replace(config, floors_db=(30.0,))).eval()
    with torch.inference_mode():
        found = floored.statistics(floored.floor(x))
        assert (found[0] - found[1]).abs().max() < 0.2
        raw = plain.statistics(plain.floor(x))
        assert (raw[0] - raw[1]).abs().max() > 10.0


@pytest.mark.parametrize("floors_db", [(), (-1.0,), (0.0, 101.0)])
def test_floors_that_are_none_are_refused(floors_db: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="expected one or more of 0 to 100 dB"):
        replace(SMALL, floors_db=floors_db)


@pytest.mark.parametrize("heard_ceps", [-1, 27])
def test_coefficients_that_are_not_there_are_refused(heard_ceps: int) -> None:
    with pytest.raises(ConfigError, match=f"heard_ceps is {heard_ceps}: expected 0 to 26"):
        replace(SMALL, heard_ceps=heard_ceps)
