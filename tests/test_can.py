from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch import Tensor

from streamer.errors import ConfigError
from train.can import (
    CascadedAttentionNetwork,
    ChannelAttention,
    HeadFusion,
    SpatialAttention,
    count_parameters,
)
from train.can_config import CanConfig


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def windows(n: int = 3, num_frames: int = 40) -> Tensor:
    return torch.randn(n, 3, 26, num_frames)


def letter_of_eq3_to_5(fusion: HeadFusion, x: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 3-5 head by head, then the average over time: every product as the paper writes it."""
    heads, maps = [], []
    for w_q, w_k, w_v in zip(fusion.query, fusion.key, fusion.value, strict=True):
        q, k, v = x @ w_q, x @ w_k, x @ w_v
        weights = torch.softmax(fusion.scale * (q @ k.transpose(1, 2)), dim=2)
        heads.append(weights @ v)
        maps.append(weights)
    fused = torch.stack(heads).sum(0) / len(heads)
    return fused.mean(1), torch.stack(maps).mean((0, 2))


def test_the_defaults_are_the_paper() -> None:
    assert CanConfig.paper() == CanConfig()


def test_a_configuration_survives_json() -> None:
    config = CanConfig(use_delta=False, spatial_kernel=(1, 7), conv_channels=(4, 8))
    assert CanConfig.from_dict(json.loads(json.dumps(dataclasses.asdict(config)))) == config


def test_layers_of_table_1_and_the_number_of_parameters() -> None:
    model = CascadedAttentionNetwork(CanConfig.paper())
    convolutions = [m for m in model.conv.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(m.kernel_size, m.in_channels, m.out_channels, m.padding) for m in convolutions] == [
        ((3, 3), 3, 8, (1, 1)),
        ((3, 3), 8, 16, (1, 1)),
        ((3, 3), 16, 32, (1, 1)),
        ((26, 1), 32, 64, (0, 0)),
    ]
    maps = windows(2, 200)
    shapes = []
    for layer in [*model.conv.inner, model.conv.last]:
        maps = layer(maps)
        shapes += [tuple(maps.shape)] if isinstance(layer, torch.nn.Conv2d) else []
    assert shapes == [(2, 8, 26, 200), (2, 16, 26, 200), (2, 32, 26, 200), (2, 64, 1, 200)]
    convolution = 9 * (3 * 8 + 8 * 16 + 16 * 32) + 26 * 32 * 64 + 2 * (8 + 16 + 32 + 64)
    attention = 2 * 64 * 16 + (2 * 49 + 1)
    blstm = 2 * 4 * 32 * (64 + 32 + 2)
    assert count_parameters(model) == convolution + attention + blstm + 3 * 4 * 64 * 64 + 260


def test_output_shapes_for_one_window_of_two_seconds() -> None:
    config = CanConfig.paper()
    model = CascadedAttentionNetwork(config).eval()
    output = model(torch.randn(1, *config.input_shape))
    assert [tuple(part.shape) for part in output[:3]] == [(1, 4), (1, 64), (1, 200)]


SWITCHES: list[dict[str, Any]] = [
    {},
    {"use_static": False},
    {"use_delta": False},
    {"use_delta_delta": False},
    {"channel_attention": False},
    {"spatial_attention": False},
    {"channel_attention": False, "spatial_attention": False, "self_attention": False},
    {"self_attention": False, "lstm_cells": 16},
    {"channel_attention_form": "eq1"},
    {"spatial_kernel": (1, 7)},
    {"skip_connection": False},
    {"last_conv_activation": True},
    {"attention_scaled": True},
    {"dropout": 0.3},
    {"normalize_embedding": True},
    {"front": "temporal", "time_stride": 2, "statistics_pooling": True},
    {"num_heads": 2, "head_width": 48, "num_labels": 7, "conv_channels": (4, 12)},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda s: ",".join(s) or "paper")
def test_every_switch_trains(switches: dict[str, Any]) -> None:
    config = CanConfig(**switches)
    model = CascadedAttentionNetwork(config)
    logits, embedding, attention, _ = model(windows())
    assert logits.shape == (3, config.num_labels)
    assert embedding.shape == (3, config.embedding_width)
    assert attention.shape == (3, 40)
    # Sums of 40 float32 weights.
    torch.testing.assert_close(attention.sum(1), torch.ones(3), atol=1e-5, rtol=0)
    (logits.square().sum() + embedding.sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("dropped", ["use_static", "use_delta", "use_delta_delta"])
def test_a_dropped_feature_is_not_read(dropped: str) -> None:
    model = CascadedAttentionNetwork(CanConfig(**{dropped: False})).eval()
    x = windows()
    changed = x.clone()
    changed[:, ["use_static", "use_delta", "use_delta_delta"].index(dropped)] = 9.0
    assert torch.equal(model(x).logits, model(changed).logits)


def test_statistics_are_applied_first_and_travel_with_the_weights() -> None:
    mean, deviation = torch.randn(3, 26, 1), torch.rand(3, 26, 1) + 0.5
    model = CascadedAttentionNetwork(CanConfig.paper(), mean, deviation).eval()
    plain = CascadedAttentionNetwork(CanConfig.paper()).eval()
    plain.load_state_dict(
        {**model.state_dict(), "mean": plain.mean.clone(), "deviation": plain.deviation.clone()}
    )
    x = windows()
    assert torch.equal(model(x).logits, plain((x - mean) / deviation).logits)
    assert torch.equal(model.state_dict()["mean"], mean)


# The paper's silences and contradictions, one by one.


def test_of_the_7x7_kernel_only_the_middle_row_meets_data() -> None:
    square = SpatialAttention(CanConfig(spatial_kernel=(7, 7)))
    row = SpatialAttention(CanConfig(spatial_kernel=(1, 7)))
    row.load_state_dict(
        {"conv.weight": square.conv.weight[:, :, 3:4], "conv.bias": square.conv.bias}
    )
    f1 = torch.randn(2, 30, 64)
    # Two convolution kernels of oneDNN add in another order.
    torch.testing.assert_close(square(f1), row(f1), atol=1e-6, rtol=0)
    square(f1).sum().backward()
    gradient = square.conv.weight.grad
    assert gradient is not None
    assert gradient[:, :, 3].ne(0).all()
    assert not gradient[:, :, [0, 1, 2, 4, 5, 6]].any()


@pytest.mark.parametrize("last_conv_activation", [False, True])
def test_the_relu_on_f3_works_only_without_one_after_conv4(last_conv_activation: bool) -> None:
    model = CascadedAttentionNetwork(CanConfig(last_conv_activation=last_conv_activation))
    f0 = model.conv(windows())
    assert bool((f0 < 0).any()) is not last_conv_activation
    f1 = f0 * model.attention.channel(f0)
    before_relu = f0 + f1 * model.attention.spatial(f1)
    assert torch.equal(model.attention(f0), before_relu) is last_conv_activation


@pytest.mark.parametrize("form", ["eq1", "cbam"])
def test_eq1_holds_only_for_a_linear_shared_network(form: Any) -> None:
    channel = ChannelAttention(CanConfig(channel_attention_form=form))
    f0 = torch.randn(3, 40, 64)
    average, maximum = f0.mean(1), f0.amax(1)

    def shared(descriptor: Tensor) -> Tensor:
        return channel.expand(channel.activation(channel.reduce(descriptor)))

    middle = torch.sigmoid(shared(average) + shared(maximum))
    right = torch.sigmoid(channel.expand(channel.reduce(average + maximum)))
    # float32, sums of 64 in another order.
    torch.testing.assert_close(channel(f0).squeeze(1), middle, atol=1e-6, rtol=0)
    assert torch.allclose(middle, right, atol=1e-6) is (form == "eq1")


@pytest.mark.parametrize("attention_scaled", [False, True])
def test_the_embedding_is_the_letter_of_eq3_to_5_and_average_pooling(
    attention_scaled: bool,
) -> None:
    config = CanConfig(attention_scaled=attention_scaled, head_width=48)
    fusion = HeadFusion(config).double()
    assert fusion.scale == pytest.approx(48**-0.5 if attention_scaled else 1.0)
    x = torch.randn(3, 50, 64, dtype=torch.float64, requires_grad=True)
    ours, letter = fusion(x), letter_of_eq3_to_5(fusion, x)
    inputs = [x, *fusion.parameters()]
    for a, b in zip(ours, letter, strict=True):
        torch.testing.assert_close(a, b)  # equal but for float64's rounding
    gradients = [torch.autograd.grad(e.square().sum(), inputs) for e, _ in (ours, letter)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_scaling_flattens_the_attention() -> None:
    plain, scaled = HeadFusion(CanConfig()), HeadFusion(CanConfig(attention_scaled=True))
    scaled.load_state_dict(plain.state_dict())
    x = 3 * torch.randn(3, 50, 64)
    assert plain(x)[1].std() > scaled(x)[1].std()


def test_without_self_attention_the_blstm_output_is_averaged() -> None:
    model = CascadedAttentionNetwork(CanConfig(self_attention=False)).eval()
    x = windows()
    output = model(x)
    sequence = model.blstm(model.attention(model.conv(x)))[0]
    torch.testing.assert_close(output.embedding, sequence.mean(1))
    assert torch.equal(output.attention, torch.full((3, 40), 1 / 40))


def test_a_normalized_embedding_leaves_the_logits_alone() -> None:
    plain = CascadedAttentionNetwork(CanConfig()).eval()
    unit = CascadedAttentionNetwork(CanConfig(normalize_embedding=True)).eval()
    unit.load_state_dict(plain.state_dict())
    x = windows()
    assert torch.equal(plain(x).logits, unit(x).logits)
    torch.testing.assert_close(unit(x).embedding.norm(dim=1), torch.ones(3))


def test_bfloat16_autocast_stays_near_float32() -> None:
    model = CascadedAttentionNetwork(CanConfig.paper()).eval()
    x = windows()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model(x)
    # bfloat16 keeps eight bits: 4e-3 relative, here on logits of about 0.1.
    torch.testing.assert_close(low.logits.float(), model(x).logits, atol=5e-3, rtol=0)


@pytest.mark.parametrize(
    "fields",
    [
        {"use_static": False, "use_delta": False, "use_delta_delta": False},
        {"conv_channels": (64,)},
        {"channel_attention_form": "se"},
        {"channel_reduction": 65},
        {"spatial_kernel": (6, 7)},
        {"dropout": 1.0},
    ],
)
def test_an_impossible_configuration_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        CanConfig(**fields)


@pytest.mark.parametrize(
    "deviation",
    [torch.ones(3, 26), torch.zeros(3, 26, 1), torch.full((3, 26, 1), torch.nan)],
    ids=["shape", "zero", "nan"],
)
def test_impossible_statistics_are_refused(deviation: Tensor) -> None:
    with pytest.raises(ConfigError, match="expected"):
        CascadedAttentionNetwork(CanConfig.paper(), deviation=deviation)
