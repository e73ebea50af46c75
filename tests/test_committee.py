"""Networks that answer as one: by their mean, in torch as in what is served."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from export_onnx import export, load_weights, make_card, real_windows, to_onnx
from streamer.errors import ConfigError
from streamer.features import FeatureConfig
from streamer.model import Model
from train.can import CascadedAttentionNetwork, count_parameters
from train.can_config import CanConfig
from train.checkpoint import LARGE, Checkpoint, halved
from train.committee import Committee, build_can
from train.config import FitConfig

SMALL = CanConfig(
    conv_channels=(4, 4, 4, 8),
    lstm_cells=4,
    num_heads=1,
    head_width=8,
    num_rows=28,
    num_frames=40,
    statistics_width=16,
)
"""A network of pitch and voicing as well, of two thousand weights."""

NUM_ROWS = 28 + 10 + 12
"""Features, every second band, and shapes: what each statistic is taken of."""

COUNTS = [(2, 0), (0, 2), (1, 1), (1, 3), (3, 2)]
"""Numbers of CANs and of networks of statistics."""


def committee(num_cans: int, num_statistics: int, **changes: object) -> Committee:
    """Return a committee whose members disagree."""
    torch.manual_seed(0)
    config = replace(SMALL, members=num_cans, statistics_members=num_statistics)
    network = build_can(replace(config, **changes))  # type: ignore[arg-type]
    assert isinstance(network, Committee)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith("classifier.weight"):
                weight.mul_(20.0)
    return network.eval()


def windows(count: int = 3) -> Tensor:
    return torch.randn(count, *SMALL.input_shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("num_cans", "num_statistics"), COUNTS)
def test_the_answer_is_the_mean_with_the_same_say_for_each(
    num_cans: int, num_statistics: int
) -> None:
    network = committee(num_cans, num_statistics)
    with torch.inference_mode():
        each = [output.logits.softmax(1) for output in network.outputs(windows())]
        found = network(windows()).logits
    assert len(each) == num_cans + num_statistics
    assert len({tuple(one.flatten().tolist()) for one in each}) == len(each), "they differ"
    expected = torch.stack(each).mean(0)
    # float32: the logarithm's way there and back
    torch.testing.assert_close(found.exp(), expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(3), atol=1e-6, rtol=0.0)


def test_a_member_that_is_sure_beyond_float32_leaves_the_answer_finite() -> None:
    network = committee(1, 1)
    with torch.no_grad():
        network.members[0].classifier.bias.copy_(torch.tensor([1e4, 0.0, 0.0, 0.0]))  # type: ignore[union-attr, operator]
    with torch.inference_mode():
        found = network(windows()).logits
        other = network.outputs(windows())[1].logits.softmax(1)
    assert found.isfinite().all()
    expected = 0.5 * other + torch.tensor([0.5, 0.0, 0.0, 0.0])
    torch.testing.assert_close(found.exp(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("log_odds", [-30.0, -2.0, 0.0, 3.0, 30.0])
def test_the_gate_takes_back_what_is_said_of_no_speech(log_odds: float) -> None:
    network = committee(1, 2, gate_width=8)
    open_one = committee(1, 2)
    open_one.load_state_dict(network.state_dict(), strict=False)
    assert network.gate is not None
    last = network.gate.layers[-1]
    with torch.no_grad():
        last.weight.zero_()  # type: ignore[union-attr, operator]
        last.bias.fill_(log_odds)  # type: ignore[union-attr, operator]
    with torch.inference_mode():
        found, whole = (one(windows()).logits.exp() for one in (network, open_one))
    speech = 1.0 / (1.0 + np.exp(-log_odds))
    torch.testing.assert_close(found, speech * whole + (1.0 - speech) / 4, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(found.sum(1), torch.ones(3), atol=1e-5, rtol=0.0)


def test_embeddings_are_side_by_side_and_attention_is_the_mean() -> None:
    network = committee(2, 3)
    with torch.inference_mode():
        outputs, whole = network.outputs(windows()), network(windows())
    assert whole.embedding.shape == (3, 2 * 8 + 3 * 16)
    assert torch.equal(whole.embedding[:, 8:16], outputs[1].embedding)
    assert torch.equal(whole.embedding[:, -16:], outputs[4].embedding)
    can = (outputs[0].attention + outputs[1].attention) / 5
    even = 3 / 5 / SMALL.num_frames  # statistics listen to all frames alike
    torch.testing.assert_close(whole.attention, can + even)
    torch.testing.assert_close(whole.attention.sum(1), torch.ones(3))


def test_one_member_is_a_plain_network() -> None:
    mean, deviation = torch.full((3, 28, 1), 2.0), torch.full((3, 28, 1), 3.0)
    one = build_can(SMALL, mean, deviation)
    assert type(one) is CascadedAttentionNetwork
    assert torch.equal(one.mean, mean) and torch.equal(one.deviation, deviation)
    assert type(build_can(replace(SMALL, statistics_members=1))) is Committee


@pytest.mark.parametrize(("num_cans", "num_statistics"), [(0, 0), (-1, 3), (17, 0), (1, 17)])
def test_a_committee_of_nobody_or_of_too_many_is_refused(
    num_cans: int, num_statistics: int
) -> None:
    with pytest.raises(ConfigError, match="expected 0 to 16 of both, and one at least"):
        committee(num_cans, num_statistics)


def test_every_member_takes_the_features_statistics_off() -> None:
    mean, deviation = torch.full((3, 28, 1), 2.0), torch.full((3, 28, 1), 4.0)
    mean[0, 26:], deviation[0, 26:] = 0.0, 1.0  # pitch and voicing are told as they come
    plain = committee(2, 2)
    shifted = build_can(plain.config, mean, deviation).eval()
    weights = dict(plain.named_parameters())
    missing = shifted.load_state_dict(weights, strict=False).missing_keys
    assert "members.1.deviation" in missing and "statistics.0.deviation" in missing
    x = windows()
    with torch.inference_mode():
        expected = [can(x) for can in plain.cans]
        found = [can(deviation * x + mean) for can in shifted.cans]
        rows, same_rows = (
            network.groups[0].statistics(y)[:, : 14 * NUM_ROWS].reshape(3, 14, NUM_ROWS)
            for network, y in ((plain, x), (shifted, deviation * x + mean))
        )
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other.logits, one.logits, atol=1e-4, rtol=1e-4)
    # The spectrum's contours, below the rows, are those of the coefficients as they come.
    torch.testing.assert_close(same_rows[:, :, :28], rows[:, :, :28], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("num_cans", "num_statistics", "gate_width"), [(2, 0, 0), (0, 2, 0), (1, 2, 0), (1, 1, 8)]
)
def test_what_is_served_is_the_committee(
    tmp_path: Path, num_cans: int, num_statistics: int, gate_width: int
) -> None:
    network = committee(num_cans, num_statistics, num_frames=200, gate_width=gate_width)
    config = FitConfig(
        name="committee",
        network=network.config,
        noise_alone=0.1 if gate_width else 0.0,
        features=FeatureConfig(num_pitch=2),
        normalize=False,
    )
    checkpoint = Checkpoint(
        network=network,
        config=config,
        normalization=None,
        training_data={"mine": {"utterances": 4, "speakers": 2}},
        fold=None,
        epoch=0,
        validation={},
    )
    card = make_card(checkpoint, name="committee", results={})
    export(checkpoint, card, tmp_path / "committee.onnx", None)
    model = Model.load(tmp_path / "committee.onnx", provider="cpu")
    assert model.card.training["parameters"] == count_parameters(network)
    batch = real_windows(card, None)[:5]
    with torch.inference_mode():
        each = [output.logits.softmax(1) for output in network.outputs(torch.from_numpy(batch))]
    expected = torch.stack(each).mean(0).numpy()
    if gate_width:
        with torch.inference_mode():
            gated = network(torch.from_numpy(batch)).logits.exp().numpy()
        assert np.abs(gated - expected).max() > 1e-3, "the gate has its say"
        expected = gated
    found = np.exp(model.score(batch).logits)
    np.testing.assert_allclose(found, expected, atol=1e-4)  # the promise of the export


def test_rounded_weights_take_half_the_room_and_come_back(tmp_path: Path) -> None:
    network = committee(1, 2)
    to_onnx(network, tmp_path / "whole.onnx")
    with torch.no_grad():
        for weight in network.parameters():
            weight.copy_(halved(weight))
    to_onnx(network, tmp_path / "rounded.onnx")
    graph = onnx.load(tmp_path / "rounded.onnx").graph
    constants = [node.attribute[0].t for node in graph.node if node.op_type == "Constant"]
    tensors = [item for item in (*graph.initializer, *constants) if math.prod(item.dims) >= LARGE]
    assert tensors and {item.data_type for item in tensors} == {onnx.TensorProto.FLOAT16}
    saved = (tmp_path / "whole.onnx").stat().st_size - (tmp_path / "rounded.onnx").stat().st_size
    assert saved == pytest.approx(2 * 2 * 16 * network.groups[0].num_inputs, abs=1000)
    again = committee(1, 2)
    for weight in again.parameters():
        torch.nn.init.zeros_(weight)
    load_weights(again, tmp_path / "rounded.onnx")
    for key, value in network.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
