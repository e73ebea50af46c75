"""Which of what the teacher says is worth learning: what tells emotions, a sixth of it.

Most of it is of words and of who speaks, and a small network that has to say all of it alike spends
itself on that. So training speakers' labels choose: a linear map from the states to 64 numbers,
trained together with two layers over their mean and deviation in a window (the x-vector's pooling,
Snyder et al. 2018), which are thrown away. What is learnt from the teacher is those numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from train.can import CanOutput
from train.can_config import FRAMES_A_STEP
from train.config import FitConfig
from train.dataset import NormalizedClip
from train.material import Material
from train.objective import objective
from train.schedule import one_cycle
from train.statistics_network import StatisticsMember
from train.teacher import States, copy_heard
from train.voice import NUM_STATES

_WIDTH = 128
_BATCH_SIZE = 64
_LEARNING_RATE, _WEIGHT_DECAY = 2e-3, 0.05
_NOISE = 0.2
"""On the states, in their deviations."""


class _Listener(nn.Module):
    """States (n, steps, s) and which of them are there (n, steps) -> labels of the window."""

    def __init__(self, num_states: int, config: FitConfig, num_emotions: int) -> None:
        super().__init__()
        self.projection = nn.Linear(num_states, NUM_STATES, bias=False)
        nn.init.orthogonal_(self.projection.weight)
        self.norm = nn.BatchNorm1d(2 * NUM_STATES, affine=False)
        width = replace(config.network, statistics_width=_WIDTH, num_emotions=num_emotions)
        self.member = StatisticsMember(width, 2 * NUM_STATES)

    def forward(self, states: Tensor, is_there: Tensor) -> CanOutput:
        said = self.projection(states)
        weights = (is_there / is_there.sum(1, keepdim=True).clamp(min=1.0)).unsqueeze(2)
        mean = (said * weights).sum(1)
        variance = ((said - mean.unsqueeze(1)).square() * weights).sum(1)
        pooled = self.norm(torch.cat([mean, (variance + 1e-4).sqrt()], dim=1))
        output: CanOutput = self.member(pooled, is_there)
        return output


def emphasize(
    states: Mapping[str, States], material: Material, config: FitConfig
) -> dict[str, States]:
    """Return 64 numbers a step of what the teacher says of training speech, by copy: (n, 64) each.

    Chosen on copies that labels go with. The same for a seed.
    """
    labelled = sorted({copy_heard(copy) for copy in config.shares})
    scaled, num_states = _Scaled(states, material, labelled), _num_states(states)
    batch_size = min(_BATCH_SIZE, material.num_speech)
    num_steps = material.num_speech // batch_size
    torch.manual_seed(config.seed)
    rng = np.random.default_rng([config.seed, num_states])
    num_emotions = len(material.truth.emotion_names) if config.emotion_weight else 0
    listener = _Listener(num_states, config, num_emotions)
    optimizer = torch.optim.AdamW(
        listener.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY
    )
    schedule = one_cycle(optimizer, _LEARNING_RATE, config.distill.listening_epochs * num_steps)
    steps = config.window.num_frames // FRAMES_A_STEP
    for _ in range(config.distill.listening_epochs):
        order = rng.permutation(material.num_speech)
        for rows in np.split(order[: num_steps * batch_size], num_steps):
            heard, is_there = scaled.draw(rows, steps, rng)
            heard += _NOISE * torch.randn_like(heard)
            truth = material.truth.of(rows)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(objective(listener(heard, is_there), truth, config)[0])
            optimizer.step()
            schedule.step()
    projection = listener.projection.weight.detach().numpy().T
    ids = [clip.utterance.utterance_id for clip in material.train["clean", "cold"]]
    return {
        copy: {key: scaled.of(said[key], projection) for key in ids[: material.num_speech]}
        for copy, said in states.items()
    }


class _Scaled:
    """The teacher's states, of mean 0 and deviation 1 over training speakers' clean speech."""

    def __init__(
        self, states: Mapping[str, States], material: Material, copies: Sequence[str]
    ) -> None:
        self._clips: dict[str, Sequence[NormalizedClip]] = {
            copy: material.train[copy, "cold"][: material.num_speech] for copy in copies
        }
        self._states = states
        self._mean, self._deviation = scale_of(states, material)

    def of(self, said: NDArray[np.float16], projection: NDArray[np.float32]) -> NDArray[np.float16]:
        scaled = (said.astype(np.float32) - self._mean) / self._deviation
        return np.asarray(scaled @ projection, np.float16)

    def draw(
        self, rows: NDArray[np.intp], num_steps: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw a window of each clip's turns, of a copy: (n, num_steps, s), (n, num_steps)."""
        heard = np.zeros((len(rows), num_steps, len(self._mean)), np.float32)
        is_there = np.zeros((len(rows), num_steps), np.float32)
        copies = list(self._clips)
        for place, row in enumerate(rows):
            copy = copies[int(rng.integers(len(copies)))]
            clip = self._clips[copy][row]
            first, end = clip.spans[0, 0] // FRAMES_A_STEP, clip.spans[-1, 1] // FRAMES_A_STEP
            said = self._states[copy][clip.utterance.utterance_id][first:end]
            count = min(num_steps, len(said))
            start = int(rng.integers(len(said) - count + 1))
            heard[place, :count] = said[start : start + count]
            is_there[place, :count] = 1.0
        scaled = (heard - self._mean) / self._deviation * is_there[:, :, None]
        return torch.from_numpy(scaled), torch.from_numpy(is_there)


def scale_of(
    states: Mapping[str, States], material: Material
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and deviation of what is said of training speakers' clean speech, (s,) each."""
    num_states = _num_states(states)
    total, total_squares, count = np.zeros(num_states), np.zeros(num_states), 0
    for clip in material.train["clean", "cold"][: material.num_speech]:
        said = states["clean"][clip.utterance.utterance_id].astype(np.float64)
        total, total_squares = total + said.sum(0), total_squares + np.square(said).sum(0)
        count += len(said)
    mean = total / count
    deviation = np.sqrt(np.maximum(total_squares / count - mean**2, 1e-6))
    return mean.astype(np.float32), deviation.astype(np.float32)


def _num_states(states: Mapping[str, States]) -> int:
    num_states: int = next(iter(states["clean"].values())).shape[1]
    return num_states
