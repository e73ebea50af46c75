"""What is there before the training loop begins: a network, and all in it that is no CAN, trained.

Networks of statistics are trained on what they are told (``train.statistics_fit``), a voice encoder
by the teacher (``train.distill``); both then stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from train.can import CascadedAttentionNetwork
from train.checkpoint import read_weights
from train.committee import Committee, build_can
from train.config import FitConfig
from train.corpora import Utterance
from train.distill import distill
from train.emphasis import emphasize
from train.material import Material, draw_epoch
from train.statistics_fit import fit_statistics
from train.teacher import copy_heard, load_states
from train.voice import VoiceEncoder


@dataclass(frozen=True)
class Taught:
    """Where a voice encoder comes from: the checkpoint ``encoder`` if any, or the teacher."""

    encoder: Path | None
    utterances: Sequence[Utterance]
    cache: Path
    note: Callable[[str], None]
    advance: Callable[[float], None]


def build(material: Material, config: FitConfig) -> CascadedAttentionNetwork | Committee:
    """Begin a network, with the features' mean and deviation, the same for a seed."""
    torch.manual_seed(config.seed)
    num_emotions = len(material.truth.emotion_names) if config.emotion_weight else 0
    return build_can(
        replace(config.network, num_emotions=num_emotions),
        torch.from_numpy(material.mean),
        torch.from_numpy(material.deviation),
    )


def lay_groundwork(
    network: CascadedAttentionNetwork | Committee,
    material: Material,
    config: FitConfig,
    taught: Taught,
) -> None:
    """Train all that is not a CAN: the voice encoder, then whatever is told numbers of a window."""
    _set_floored_scales(network, material, config)
    if not isinstance(network, Committee):
        return
    if network.voice is not None:
        _teach_encoder(network.voice.encoder, material, config, taught)
    for group in network.groups:
        fit_statistics(group, material, config)


def _teach_encoder(
    encoder: VoiceEncoder, material: Material, config: FitConfig, taught: Taught
) -> None:
    if taught.encoder is not None:
        _take_over(encoder, taught.encoder)
        return
    states = {
        copy: load_states(taught.utterances, copy, config.features, taught.cache)
        for copy in sorted({copy_heard(copy) for copy in config.shares})
    }
    error = distill(encoder, material, emphasize(states, material, config), config, taught.advance)
    taught.note(f"its voice encoder has learnt from the teacher: mean squared error {error:.3f}")


def _take_over(encoder: VoiceEncoder, path: Path) -> None:
    """Give an encoder the weights of that in a checkpoint, scales of its features and all."""
    weights = read_weights(path)
    start = "voice.encoder."
    encoder.load_state_dict(
        {key.removeprefix(start): value for key, value in weights.items() if key.startswith(start)}
    )
    encoder.eval().requires_grad_(requires_grad=False)


@torch.no_grad()
def _set_floored_scales(
    network: CascadedAttentionNetwork | Committee, material: Material, config: FitConfig
) -> None:
    """Give each CAN over a floor the mean and deviation of what it hears in an epoch's draws."""
    floored = [can for can in network.cans if can.config.floors_db[0]]
    if not floored:
        return
    windows = draw_epoch(material, config, 0)[0]
    for can in floored:
        heard = torch.cat([can.floor(part.float()) for part in torch.split(windows, 256)])
        variance, mean = torch.var_mean(heard, dim=(0, 3), correction=0)
        can.mean.copy_(mean[:, :, None])
        can.deviation.copy_((variance + 1e-8).sqrt()[:, :, None])
