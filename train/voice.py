"""Networks that hear as a far larger one does, which knows the voices of the world; we have 65.

An encoder that has learnt to say step by step what matters of what that network says
(``train/teacher.py``, ``train/distill.py``); and small networks that are told the mean and the
deviation of that over a window.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from train.can_config import NUM_FEATURES, CanConfig
from train.statistics_network import StatisticsGroup

NUM_STATES = 64
"""What is said of a step."""
_KERNEL = 7
_DILATIONS = (1, 2, 4)
"""Of the blocks in turn: three of them hear 1.7 s around a step."""


class EncoderBlock(nn.Module):
    """A convolution of each channel along time, then two layers a step, added to what they heard.

    As ConvNeXt's (Liu et al. 2022, fig. 4), with batch normalisation, which is part of a
    convolution when it is served, and a ReLU. It begins as doing nothing. (n, channels, 1, steps)
    to the same: an image one row high, as runtimes have more ways to convolve images.
    """

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__()
        self.along_time = nn.Conv2d(
            channels,
            channels,
            (1, _KERNEL),
            padding=(0, _KERNEL // 2 * dilation),
            dilation=(1, dilation),
            groups=channels,
            bias=False,
        )
        self.norm = nn.BatchNorm2d(channels)
        self.widen = nn.Conv2d(channels, 2 * channels, 1)
        self.narrow = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.last_norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.last_norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Add to each step what it tells of those around it."""
        wide = torch.relu(self.widen(self.norm(self.along_time(x))))
        added: Tensor = self.last_norm(self.narrow(wide))
        return x + added


class VoiceEncoder(nn.Module):
    """Windows of features (n, 3, num_rows, T) -> what the teacher would say, (n, T / 4, 64).

    Of mean 0 and deviation 1 over its training speech. Convolutions along time alone, the rows are
    channels: two that halve it, then ``config.voice_blocks`` of :class:`EncoderBlock`. ``mean`` and
    ``deviation`` are the features', as a CAN's.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, config: CanConfig, mean: Tensor | None, deviation: Tensor | None) -> None:
        super().__init__()
        shape = (NUM_FEATURES, config.num_rows, 1)
        self.register_buffer("mean", torch.zeros(shape) if mean is None else mean.clone())
        self.register_buffer(
            "deviation", torch.ones(shape) if deviation is None else deviation.clone()
        )
        channels = config.voice_channels
        rows, between = NUM_FEATURES * config.num_rows, channels // 2
        self.stem = nn.Sequential(*_halve(rows, between), *_halve(between, channels))
        self.blocks = nn.Sequential(
            *(
                EncoderBlock(channels, _DILATIONS[number % len(_DILATIONS)])
                for number in range(config.voice_blocks)
            )
        )
        self.states = nn.Conv2d(channels, NUM_STATES, 1)
        # As CascadedAttentionNetwork: convolutions follow their weights' layout.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Hear features as they come from the front end."""
        scaled = (x - self.mean) / self.deviation
        states: Tensor = self.states(self.blocks(self.stem(scaled.flatten(1, 2).unsqueeze(2))))
        return states.squeeze(2).transpose(1, 2)


def _halve(num_inputs: int, channels: int) -> tuple[nn.Module, ...]:
    """A convolution over five steps, every second of them: (n, num_inputs, 1, T) to T / 2."""
    convolution = nn.Conv2d(num_inputs, channels, (1, 5), (1, 2), padding=(0, 2), bias=False)
    return convolution, nn.BatchNorm2d(channels), nn.ReLU()


def pool_states(states: Tensor) -> Tensor:
    """(n, steps, 64) -> (n, 128): the states' means, then their deviations."""
    return torch.cat([states.mean(1), (states.var(1) + 1e-4).sqrt()], dim=1)


class VoiceNetworks(StatisticsGroup):
    """Windows of features -> logits of each of ``config.voice_members`` networks.

    Two layers each over the mean and the deviation of the encoder's states.
    """

    def __init__(
        self, config: CanConfig, mean: Tensor | None = None, deviation: Tensor | None = None
    ) -> None:
        own = replace(
            config,
            floors_db=(0.0,),
            statistics_members=config.voice_members,
            statistics_width=config.voice_width,
            gate_width=0 if config.statistics_members else config.gate_width,
        )
        super().__init__(own, 2 * NUM_STATES)
        self.encoder = VoiceEncoder(config, mean, deviation)

    def statistics(self, x: Tensor) -> Tensor:
        """(n, 3, num_rows, T) -> (n, 128): the states' means, then their deviations."""
        return pool_states(self.encoder(x))
