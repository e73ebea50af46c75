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
from train.copies import VOICES
from train.corpora import Utterance
from train.dataset import load_clips, normalize_clips
from train.distill import distill
from train.emphasis import emphasize
from train.material import Material, draw_epoch
from train.progress import Advance, part_of
from train.statistics_fit import fit_statistics
from train.strangers import (
    FILE_NAME,
    Stranger,
    read_strangers,
    teach_strangers,
    write_strangers,
)
from train.teacher import copy_heard, load_states
from train.voice import VoiceEncoder


@dataclass(frozen=True)
class Taught:
    """Where a voice encoder comes from: the checkpoint ``encoder`` if any, or the teacher.

    Its strangers are in that checkpoint's folder, or will be in ``folder``.
    """

    encoder: Path | None
    folder: Path
    utterances: Sequence[Utterance]
    cache: Path
    note: Callable[[str], None]
    advance: Advance


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
    strangers: list[Stranger] = []
    if network.voice is not None:
        strangers = _teach_encoder(network.voice.encoder, material, config, taught)
    for group in network.groups:
        fit_statistics(group, material, config, strangers if group is network.voice else ())


def _teach_encoder(
    encoder: VoiceEncoder, material: Material, config: FitConfig, taught: Taught
) -> list[Stranger]:
    """Teach an encoder, or take it over; return the strangers that go with it."""
    if taught.encoder is not None:
        _take_over(encoder, taught.encoder)
        path = taught.encoder.parent / FILE_NAME
        return read_strangers(path, config) if config.distill.strangers else []
    states = {
        copy: load_states(taught.utterances, copy, config.features, taught.cache)
        for copy in sorted({copy_heard(copy) for copy in config.copies_taught})
    }
    heard = _with_voices(material, config, taught)
    said = emphasize(states, heard, config)
    half = 0.5 if config.distill.strangers else 1.0  # they cost about as much as it does
    error = distill(encoder, heard, said, config, part_of(taught.advance, 0.0, half))
    taught.note(f"its voice encoder has learnt from the teacher: mean squared error {error:.3f}")
    strangers = teach_strangers(heard, said, config, part_of(taught.advance, half, 1.0))
    if strangers:
        write_strangers(strangers, taught.folder / FILE_NAME)
    return strangers


def _with_voices(material: Material, config: FitConfig, taught: Taught) -> Material:
    """Add what training speakers say in the voices that are made for the encoder alone."""
    train = dict(material.train)
    ids = [clip.utterance.utterance_id for clip in train["clean", "cold"][: material.num_speech]]
    for voice in VOICES[: config.distill.voices]:
        clips = load_clips(taught.utterances, voice, config.features, config.window, taught.cache)
        by_id = {clip.utterance.utterance_id: clip for clip in clips}
        chosen = [by_id[key] for key in ids]
        train[voice, "cold"] = normalize_clips(chosen, material.normalization, "cold", config.seed)
    return replace(material, train=train)


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
