"""How a voice encoder learns from the teacher: to say step by step what it says.

Hidden states as targets (as FitNets, Romero et al. 2015), or rather what matters of them
(``train.emphasis``): there are 64 numbers every 40 ms, where a label is one of four every two
seconds, and they are the same function of speech for everybody, so that what is learnt from
training speakers holds for those who were not heard. Of copies that a line, a room or a noise has
spoilt it learns what the teacher says of the speech itself. The teacher is not asked for feelings,
so it can be asked of voices that nobody has, too: each utterance is heard in a few of them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from streamer.errors import ConfigError
from streamer.windows import cut_window
from train.augment import AugmentConfig, augment_frames
from train.can_config import FRAMES_A_STEP
from train.checkpoint import halved
from train.config import FitConfig
from train.emphasis import scale_of
from train.material import Material
from train.progress import Advance
from train.schedule import one_cycle
from train.teacher import States, copy_heard
from train.voice import NUM_STATES, VoiceEncoder


@dataclass(frozen=True)
class _Scale:
    mean: Tensor
    deviation: Tensor


def distill(
    encoder: VoiceEncoder,
    material: Material,
    states: Mapping[str, States],
    config: FitConfig,
    advance: Advance = lambda share: None,
    *,
    without: Collection[str] = (),
) -> float:
    """Teach an encoder; return the last epoch's mean squared error, of states of deviation 1.

    ``states`` are the teacher's by copy; speakers ``without`` are not heard. AdamW, one cycle;
    every copy is drawn as often as another.

    Raises:
        ConfigError: fewer utterances than a batch has, or windows that are no whole steps.
    """
    settings = config.distill
    clips = material.train["clean", "cold"][: material.num_speech]
    heard = [row for row, clip in enumerate(clips) if clip.utterance.speaker_id not in without]
    num_steps = _num_steps(len(heard), config)
    torch.manual_seed(config.seed)
    rng = np.random.default_rng([config.seed, NUM_STATES])
    mean, deviation = scale_of(states, material)
    scale = _Scale(torch.from_numpy(mean), torch.from_numpy(deviation))
    optimizer = torch.optim.AdamW(
        encoder.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    schedule = one_cycle(optimizer, settings.learning_rate, settings.epochs * num_steps)
    encoder.train()
    error = 0.0
    for epoch in range(settings.epochs):
        order, total = rng.permutation(heard), 0.0
        for step in range(num_steps):
            rows = order[step * settings.batch_size : (step + 1) * settings.batch_size]
            loss = _loss(encoder, _draw(rows, material, states, scale, config, rng), config)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(encoder.parameters(), 2.0)
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        error = total / num_steps
        advance((epoch + 1) / settings.epochs)
    _finish(encoder)
    return error


def _num_steps(num_utterances: int, config: FitConfig) -> int:
    """Batches in an epoch."""
    settings = config.distill
    if config.window.num_frames % FRAMES_A_STEP:
        raise ConfigError(
            f"windows of {config.window.num_frames} frames: expected a multiple of {FRAMES_A_STEP},"
            " the frames of a voice encoder's step"
        )
    num_steps = num_utterances // settings.batch_size
    if not num_steps:
        raise ConfigError(
            f"distill.batch_size {settings.batch_size} with {num_utterances} utterances: "
            "expected so many at least"
        )
    return num_steps


def _loss(encoder: VoiceEncoder, batch: tuple[Tensor, Tensor, Tensor], config: FitConfig) -> Tensor:
    """Mean squared error of what is said of the steps that are not filled up."""
    windows, targets, is_heard = batch
    is_half = config.precision == "bfloat16"
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_half):
        said = encoder(windows)
    errors = (said.float() - targets).square().mean(2)
    mean: Tensor = (errors * is_heard).sum() / is_heard.sum()
    return mean


@torch.no_grad()
def _finish(encoder: VoiceEncoder) -> None:
    """Let it stay as it is, its weights those that will be served to all who hear it."""
    encoder.eval()
    encoder.requires_grad_(requires_grad=False)
    for weight in encoder.parameters():
        weight.copy_(halved(weight))


def _draw(
    rows: np.ndarray,
    material: Material,
    states: Mapping[str, States],
    scale: _Scale,
    config: FitConfig,
    rng: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw windows that begin anywhere in a clip; return them and what is to be said of them.

    (n, 3, num_rows, T); (n, T / 4, 64); and which steps are not filled up, (n, T / 4).
    """
    num_frames = config.window.num_frames
    level = AugmentConfig(level_db=config.augment.level_db)
    copies = [copy for copy, start in material.train if start == "cold"]
    windows = np.empty((len(rows), 3, config.features.num_rows, num_frames), np.float32)
    said = np.empty((len(rows), num_frames // FRAMES_A_STEP, NUM_STATES), np.float32)
    is_heard = np.zeros((len(rows), num_frames // FRAMES_A_STEP), np.float32)
    for place, row in enumerate(rows):
        copy = copies[int(rng.integers(len(copies)))]
        clip = material.train[copy, "cold"][row]
        target = states[copy_heard(copy)][clip.utterance.utterance_id]
        num_steps = min(len(clip.frames) // FRAMES_A_STEP, len(target))
        count = min(num_steps, num_frames // FRAMES_A_STEP)
        start = int(rng.integers(num_steps - count + 1))
        frames = clip.frames[FRAMES_A_STEP * start : FRAMES_A_STEP * (start + count)]
        frames = augment_frames(frames.astype(np.float32), level, config.features, rng)
        windows[place] = cut_window(frames, num_frames)
        steps = np.arange(-said.shape[1], 0) % count  # as cut_window fills up what is missing
        said[place] = target[start : start + count][steps]
        is_heard[place, -count:] = 1.0
    targets = (torch.from_numpy(said) - scale.mean) / scale.deviation
    return torch.from_numpy(windows), targets, torch.from_numpy(is_heard)
