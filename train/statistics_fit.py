"""How networks of statistics are trained: on statistics that are taken once, in seconds an epoch.

Apart from the CANs, because they want other things: many more steps, a larger mixup, and mixtures
of statistics. Statistics of a mixture of windows are those of no voice.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from streamer.arrays import WindowFeatures
from streamer.errors import ConfigError
from streamer.windows import cut_window
from train.config import FitConfig, StatisticsFitConfig
from train.dataset import NormalizedClip
from train.material import Material
from train.objective import objective
from train.schedule import one_cycle
from train.statistics_network import SpeechGate, StatisticsGroup
from train.strangers import Stranger
from train.truth import mix

_WINDOWS_PER_CLIP = 3
"""Of each copy of a clip, evenly over the windows that a turn's answer comes from."""
_WINDOWS_PER_NOISE = 8
_CHUNK = 128
_Hear: TypeAlias = Callable[[Tensor], Tensor]
"""Windows (n, 3, num_rows, T), over their floor, to statistics (n, num_inputs)."""
_Cut: TypeAlias = Callable[[Sequence[int]], Iterable[tuple[int, WindowFeatures]]]
"""Rows of a material's clips to windows of theirs, and whose they are."""


@dataclass(frozen=True)
class Sample:
    """Statistics of n windows, (n, num_inputs); whose they are, (n,); how often drawn, (n,).

    The first ``num_speech`` are speech, the others noise alone.
    """

    statistics: Tensor
    owners: NDArray[np.intp]
    probabilities: NDArray[np.float64]
    num_speech: int


def fit_statistics(
    networks: StatisticsGroup,
    material: Material,
    config: FitConfig,
    strangers: Sequence[Stranger] = (),
) -> None:
    """Train every member of ``networks``, which then stay as they are; the same for a seed.

    They are told of training speakers by ``strangers``, too, who have not heard them.
    """
    sample = _sample(networks, material, config, strangers)
    _set_scale(networks, sample)
    with torch.no_grad():
        inputs = networks.standardize(sample.statistics)
    for number in range(len(networks.members)):
        _fit_member(networks, number, inputs, sample, material, config)
    if networks.gate is not None:
        _fit_gate(networks.gate, inputs, sample, config)
    networks.requires_grad_(requires_grad=False)


def _sample(
    networks: StatisticsGroup,
    material: Material,
    config: FitConfig,
    strangers: Sequence[Stranger],
) -> Sample:
    """Take statistics of cold windows in all conditions; noise alone is drawn by its own share."""
    rng = np.random.default_rng(config.seed)
    anywhere = config.statistics.anywhere
    clips = material.train["clean", "cold"]
    noises = range(material.num_speech, len(clips))
    ears: list[tuple[_Hear, Sequence[int]]] = [(networks.statistics, range(material.num_speech))]
    for one in strangers:
        ears.append((one.statistics, [row for row in ears[0][1] if one.is_new_to(clips[row])]))
    parts: list[Tensor] = []
    owners, probabilities = [], []

    def add(cut: _Cut, share: float, hearing: Sequence[tuple[_Hear, Sequence[int]]]) -> None:
        """Let windows be drawn with a share in all, each clip as often as another."""
        taken = [_statistics_of(networks, hear, cut(rows)) for hear, rows in hearing]
        rows = np.concatenate([whose for _, whose in taken])
        clips, counts = np.unique(rows, return_inverse=True, return_counts=True)[1:]
        parts.extend(statistics for statistics, _ in taken)
        owners.append(rows)
        probabilities.append(share / counts[clips] / len(counts))

    for condition, share in config.shares.items():
        heard = material.train[condition, "cold"]
        add(partial(_answers, heard, config, _WINDOWS_PER_CLIP), share * (1.0 - anywhere), ears)
        if anywhere:
            add(partial(_anywhere, heard, config, rng), share * anywhere, ears)
    num_speech = sum(map(len, owners))
    if noises and config.noise_alone:
        cut = partial(_answers, clips, config, _WINDOWS_PER_NOISE)
        add(cut, config.noise_alone, [(networks.statistics, noises)])
    chances = np.concatenate(probabilities)
    return Sample(torch.cat(parts), np.concatenate(owners), chances / chances.sum(), num_speech)


def _answers(
    clips: Sequence[NormalizedClip], config: FitConfig, most: int, rows: Sequence[int]
) -> Iterator[tuple[int, WindowFeatures]]:
    """Windows that a turn's answer comes from, at most ``most`` a clip, and whose they are."""
    for row in rows:
        clip = clips[row]
        count = min(most, len(clip.answers))
        for place in np.linspace(0, len(clip.answers) - 1, count).round().astype(int):
            yield row, clip.window(int(clip.answers[place]), config.window.num_frames)


def _anywhere(
    clips: Sequence[NormalizedClip],
    config: FitConfig,
    rng: np.random.Generator,
    rows: Sequence[int],
) -> Iterator[tuple[int, WindowFeatures]]:
    """A window of each clip that begins anywhere, in the silence around its speech too."""
    num_frames = config.window.num_frames
    for row in rows:
        clip = clips[row]
        start = int(rng.integers(max(1, len(clip.frames) - num_frames + 1)))
        frames = clip.frames[start : start + num_frames].astype(np.float32)
        yield row, cut_window(frames, num_frames)


@torch.no_grad()
def _statistics_of(
    networks: StatisticsGroup, hear: _Hear, windows: Iterable[tuple[int, WindowFeatures]]
) -> tuple[Tensor, NDArray[np.intp]]:
    owners: list[int] = []
    found = [torch.empty(0, networks.num_inputs)]
    left = iter(windows)
    while chunk := list(itertools.islice(left, _CHUNK)):
        owners += [owner for owner, _ in chunk]
        stacked = np.stack([window for _, window in chunk])
        found.append(hear(networks.floor(torch.from_numpy(stacked))))
    return torch.cat(found), np.array(owners, np.intp)


def _set_scale(networks: StatisticsGroup, sample: Sample) -> None:
    """Let every statistic have mean 0 and deviation 1 over what is drawn."""
    weights = torch.from_numpy(sample.probabilities).float()[:, None]
    mean = (sample.statistics * weights).sum(0)
    networks.input_norm.running_mean = mean
    networks.input_norm.running_var = ((sample.statistics - mean).square() * weights).sum(0)


def _fit_member(
    networks: StatisticsGroup,
    number: int,
    inputs: Tensor,
    sample: Sample,
    material: Material,
    config: FitConfig,
) -> None:
    settings = config.statistics
    rng = np.random.default_rng([config.seed, number])
    torch.manual_seed(config.seed * 100003 + number)
    num_steps = math.ceil(settings.draws_per_clip * material.num_speech / settings.batch_size)
    member = networks.members[number].train()
    optimizer, scheduler = _one_cycle(member, settings, settings.epochs * num_steps)
    attention = inputs.new_zeros(settings.batch_size, 1)
    for _ in range(settings.epochs * num_steps):
        rows = rng.choice(len(inputs), settings.batch_size, p=sample.probabilities)
        batch, truth = inputs[torch.from_numpy(rows)], material.truth.of(sample.owners[rows])
        if settings.mixup:
            batch, truth = mix(batch, truth, settings.mixup)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(objective(member(batch, attention), truth, config)[0])
        optimizer.step()
        scheduler.step()
    member.eval()


def _fit_gate(gate: SpeechGate, inputs: Tensor, sample: Sample, config: FitConfig) -> None:
    """Teach it speech, in all the conditions that are drawn, from noise; each is half a batch."""
    settings = config.statistics
    if sample.num_speech == len(inputs):
        raise ConfigError(
            "a gate and no noise to learn from: expected noises in which a voice is heard"
        )
    rng = np.random.default_rng([config.seed, len(inputs)])
    torch.manual_seed(config.seed)
    half = settings.batch_size // 2
    chances = sample.probabilities[: sample.num_speech]
    truth = torch.cat([torch.ones(half, 1), torch.zeros(half, 1)])
    optimizer, scheduler = _one_cycle(gate, settings, settings.gate_steps)
    gate.train()
    for _ in range(settings.gate_steps):
        speech = rng.choice(sample.num_speech, half, p=chances / chances.sum())
        noise = rng.integers(sample.num_speech, len(inputs), half)
        batch = inputs[torch.from_numpy(np.concatenate([speech, noise]))]
        optimizer.zero_grad(set_to_none=True)
        loss = functional.binary_cross_entropy_with_logits(gate(batch), truth)
        torch.autograd.backward(loss)
        optimizer.step()
        scheduler.step()
    gate.eval()


def _one_cycle(
    network: nn.Module, settings: StatisticsFitConfig, num_steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    return optimizer, one_cycle(optimizer, settings.learning_rate, num_steps, 0.2)
