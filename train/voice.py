"""Networks that hear as a far larger one does, which knows the voices of the world; we have 65.

A CAN's body (convolutions, attention, BLSTM) that has learnt to say step by step what matters of
what that network says (``train/teacher.py``, ``train/distill.py``); and small networks that are
told the mean and the deviation of that over a window.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from train.can import ResidualStack, SpatiotemporalAttention
from train.can_config import FRAMES_A_STEP, NUM_FEATURES, CanConfig
from train.statistics_network import StatisticsGroup

NUM_STATES = 64
"""What is said of a step."""


class VoiceEncoder(nn.Module):
    """Windows of features (n, 3, num_rows, T) -> what the teacher would say, (n, T / 4, 64).

    Of mean 0 and deviation 1 over its training speech. ``mean`` and ``deviation`` are the
    features', as a CAN's.
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
        body = replace(
            config,
            front="residual",
            conv_channels=(config.voice_channels,) * config.voice_layers,
            time_stride=FRAMES_A_STEP,
            heard_ceps=0,
            dropout=0.0,  # what it learns does not run out: it hears others as well as its own
        )
        self.conv = ResidualStack(body)
        self.attention = SpatiotemporalAttention(body)
        self.blstm = nn.LSTM(
            config.voice_channels, config.voice_cells, bidirectional=True, batch_first=True
        )
        self.states = nn.Linear(2 * config.voice_cells, NUM_STATES)
        # As CascadedAttentionNetwork: convolutions follow their weights' layout.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Hear features as they come from the front end."""
        f3 = self.attention(self.conv((x - self.mean) / self.deviation))
        states: Tensor = self.states(self.blstm(f3)[0])
        return states


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
        states = self.encoder(x)
        return torch.cat([states.mean(1), (states.var(1) + 1e-4).sqrt()], dim=1)
