"""The voice encoder and who is told what it hears: shapes, numbers by hand, a file of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from export_onnx import INPUT_NAME, load_weights, to_onnx
from streamer.errors import ConfigError
from tests.test_committee import SMALL
from train.can_config import CanConfig
from train.committee import Committee, build_can
from train.voice import NUM_STATES, EncoderBlock, VoiceEncoder, VoiceNetworks

CONFIG = replace(
    SMALL,
    floors_db=(30.0,),
    statistics_members=1,
    gate_width=8,
    voice_members=2,
    voice_width=12,
    voice_channels=8,
    voice_blocks=3,
)


def windows(count: int = 3, num_frames: int = 40) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return 5.0 * torch.randn(count, 3, 28, num_frames, generator=generator)


def committee(config: CanConfig = CONFIG) -> Committee:
    torch.manual_seed(0)
    network = build_can(config)
    assert isinstance(network, Committee)
    return network.eval()


def test_it_says_64_numbers_every_fourth_frame() -> None:
    torch.manual_seed(0)
    encoder = VoiceEncoder(CONFIG, None, None).eval()
    with torch.inference_mode():
        assert encoder(windows(2)).shape == (2, 10, NUM_STATES)
        assert encoder(windows(2, 200)).shape == (2, 50, NUM_STATES)


def test_features_are_put_on_their_scale_first() -> None:
    mean, deviation = torch.randn(3, 28, 1), 0.5 + torch.rand(3, 28, 1)
    torch.manual_seed(0)
    scaled = VoiceEncoder(CONFIG, mean, deviation).eval()
    torch.manual_seed(0)
    plain = VoiceEncoder(CONFIG, None, None).eval()
    with torch.inference_mode():
        expected = plain((windows() - mean) / deviation)
        torch.testing.assert_close(scaled(windows()), expected)


def test_a_block_begins_as_nothing_and_adds_to_what_it_was_given() -> None:
    torch.manual_seed(0)
    block = EncoderBlock(8, 2).eval()
    x = torch.randn(2, 8, 1, 30)
    with torch.inference_mode():
        assert torch.equal(block(x), x)
        block.last_norm.weight.fill_(1.0)
        silenced = block(x) - x
        assert silenced.abs().mean() > 0.01
        block.narrow.weight.zero_()
        assert torch.equal(block(x), x)


@pytest.mark.parametrize("number", range(4))
def test_blocks_reach_further_and_further_in_turn(number: int) -> None:
    encoder = VoiceEncoder(replace(CONFIG, voice_blocks=4), None, None).eval()
    block = encoder.blocks[number]
    assert isinstance(block, EncoderBlock)
    with torch.inference_mode():
        block.last_norm.weight.fill_(1.0)
        x = torch.zeros(1, 8, 1, 61)
        silent = block(x)
        x[0, :, 0, 30] = 1.0
        reached = (block(x) - silent).abs().sum((0, 1, 2)).nonzero().flatten() - 30
    assert reached.max() == -reached.min() == 3 * (1, 2, 4, 1)[number]


def test_what_members_are_told_is_mean_and_deviation_of_the_states() -> None:
    torch.manual_seed(0)
    networks = VoiceNetworks(CONFIG).eval()
    with torch.inference_mode():
        states = networks.encoder(windows())
        told = networks.statistics(networks.floor(windows()))
        assert len(networks(windows())) == CONFIG.voice_members
    assert told.shape == (3, 2 * NUM_STATES) == (3, networks.num_inputs)
    np.testing.assert_allclose(told[:, :NUM_STATES], states.mean(1), rtol=1e-5, atol=1e-6)
    spread = np.sqrt(states.numpy().var(1, ddof=1) + 1e-4)
    np.testing.assert_allclose(told[:, NUM_STATES:], spread, rtol=1e-4, atol=1e-6)


def test_they_have_the_same_say_and_hear_no_floor() -> None:
    network = committee()
    assert [group.config.floors_db for group in network.groups] == [(30.0,), (0.0,)]
    assert network.gate is network.groups[0].gate and network.groups[1].gate is None
    with torch.inference_mode():
        outputs = network.outputs(windows())
        assert len(outputs) == 1 + 1 + CONFIG.voice_members
        voices = network.groups[1](windows())
        for own, given in zip(voices, outputs[2:], strict=True):
            torch.testing.assert_close(own.logits, given.logits)
        open_one = committee(replace(CONFIG, gate_width=0))
        open_one.load_state_dict(network.state_dict(), strict=False)
        each = torch.stack([one.logits.softmax(1) for one in open_one.outputs(windows())])
        torch.testing.assert_close(open_one(windows()).logits.exp(), each.mean(0))


def test_what_is_served_is_the_same_and_gives_its_weights_back(tmp_path: Path) -> None:
    network = committee()
    path = tmp_path / "voice.onnx"
    to_onnx(network, path)
    served = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in (1, 3):
        found = served.run(None, {INPUT_NAME: windows(count).numpy()})[0]
        with torch.inference_mode():
            expected = network(windows(count)).logits
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    other = committee(CONFIG)
    with torch.no_grad():
        for weight in other.parameters():
            weight.zero_()
    load_weights(other, path)
    for name, weight in network.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(other.state_dict()[name], weight), name


def test_without_statistics_the_gate_hears_the_voice() -> None:
    network = committee(replace(CONFIG, statistics_members=0))
    assert [group.config.floors_db for group in network.groups] == [(0.0,)]
    assert network.gate is not None and network.gate is network.groups[0].gate
    with torch.inference_mode():
        assert len(network.outputs(windows())) == 1 + CONFIG.voice_members
        told = network.groups[0].standardize(network.groups[0].statistics(windows()))
        speech = network.gate(told).sigmoid()
        outputs = network.outputs(windows())
        each = torch.stack([one.logits.softmax(1) for one in outputs]).mean(0)
        expected = speech * each + (1.0 - speech) / 4
        torch.testing.assert_close(network(windows()).logits.exp(), expected)


@pytest.mark.parametrize(
    "changes",
    [
        {"voice_members": 0},
        {"voice_channels": 0},
        {"voice_members": 17},
        {"voice_channels": -1},
        {"voice_blocks": 0},
    ],
)
def test_members_without_an_encoder_and_the_reverse_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=r"members over a voice encoder of .*: expected"):
        replace(CONFIG, **changes)  # type: ignore[arg-type]
