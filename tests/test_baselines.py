"""Table 5's systems: shapes, gradients, sizes, seeds."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from streamer.errors import ConfigError
from train.can import CascadedAttentionNetwork, count_parameters
from train.can_config import CanConfig
from train.loss import joint_loss
from train.systems import BASELINES, build_network

NUM_PARAMETERS = {
    "cnn-lstm": 156_564,
    "acrnn": 699_236,
    "acrnn-full": 6_549_188,
    "attention-pooling": 93_908,
    "self-attention": 117_188,
    "head-fusion": 155_716,
    "triplet-cnn-lstm": 197_092,
}
EMBEDDING_WIDTH = {
    "cnn-lstm": 128,
    "acrnn": 64,
    "attention-pooling": 80,
    "self-attention": 64,
    "head-fusion": 64,
    "triplet-cnn-lstm": 64,
}
SMALL = sorted(EMBEDDING_WIDTH)


def network(system: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(system, CanConfig.paper())


def windows(n: int = 4, num_frames: int = 200) -> Tensor:
    return torch.randn(n, 3, 26, num_frames, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("system", SMALL)
@pytest.mark.parametrize("num_frames", [200, 57])
def test_shapes(system: str, num_frames: int) -> None:
    with torch.inference_mode():
        logits, embedding, attention, _ = network(system).eval()(windows(2, num_frames))
    assert logits.shape == (2, 4)
    assert embedding.shape == (2, EMBEDDING_WIDTH[system])
    assert attention.shape == (2, num_frames)
    assert torch.isfinite(logits).all() and (attention >= 0).all()
    torch.testing.assert_close(attention.sum(1), torch.ones(2))


@pytest.mark.parametrize("system", SMALL)
def test_every_parameter_learns(system: str) -> None:
    model, labels = network(system).train(), torch.tensor([0, 0, 1, 2])
    output = model(windows())
    loss = joint_loss(output.logits, output.embedding, labels, BASELINES[system].loss)
    loss.total.backward()
    idle = [
        name
        for name, value in model.named_parameters()
        if value.grad is None or not value.grad.abs().max() > 0
    ]
    assert idle == []


@pytest.mark.parametrize("system", NUM_PARAMETERS)
def test_number_of_parameters(system: str) -> None:
    assert count_parameters(network(system)) == NUM_PARAMETERS[system]


@pytest.mark.parametrize("system", SMALL)
def test_the_seed_decides(system: str) -> None:
    one, same, other = (network(system, seed).eval() for seed in (0, 0, 1))
    x = windows(2)
    with torch.inference_mode():
        assert torch.equal(one(x).logits, same(x).logits)
        assert not torch.equal(one(x).logits, other(x).logits)


@pytest.mark.parametrize("system", SMALL)
def test_statistics_are_taken_out_first(system: str) -> None:
    mean, deviation = torch.full((3, 26, 1), 5.0), torch.full((3, 26, 1), 2.0)
    torch.manual_seed(0)
    shifted = build_network(system, CanConfig.paper(), mean, deviation).eval()
    x = windows(2)
    with torch.inference_mode():
        found = shifted(x * 2.0 + 5.0).logits
        # float32 of (2 x + 5 - 5) / 2, then some ten layers of it
        torch.testing.assert_close(found, network(system).eval()(x).logits, rtol=1e-3, atol=1e-4)


def test_can_is_built_as_configured() -> None:
    model = network("can")
    assert isinstance(model, CascadedAttentionNetwork)
    assert model.config == CanConfig.paper()


def test_an_unknown_system_is_refused() -> None:
    with pytest.raises(ConfigError, match="system 'cann': expected can or one of cnn-lstm"):
        build_network("cann", CanConfig.paper())
