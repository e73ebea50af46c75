"""Several networks that answer as one: their mean probability, which errs less than any of them."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from train.can import CanOutput, CascadedAttentionNetwork
from train.can_config import CanConfig
from train.statistics_network import SpeechGate, StatisticsGroup, StatisticsNetworks
from train.voice import VoiceNetworks


class Committee(nn.Module):
    """``config.members`` CANs, ``config.statistics_members`` networks of statistics, and of voice.

    Each is begun otherwise, and each has the same say. ``config.floors_db`` are theirs in turn, the
    CANs' and those of ``statistics``: a group for each floor, whose members share what they hear.
    What the first group's gate takes for something else than speech, by that much has no emotion:
    the same probability for all.
    """

    def __init__(
        self, config: CanConfig, mean: Tensor | None = None, deviation: Tensor | None = None
    ) -> None:
        super().__init__()
        self.config = config
        floors = config.floors_db
        one = replace(
            config,
            members=1,
            statistics_members=0,
            gate_width=0,
            voice_members=0,
            voice_channels=0,
        )
        self.members = nn.ModuleList(
            CascadedAttentionNetwork(
                replace(one, floors_db=(floors[number % len(floors)],)), mean, deviation
            )
            for number in range(config.members)
        )
        self.statistics = nn.ModuleList(
            StatisticsNetworks(
                replace(
                    config,
                    floors_db=(floor,),
                    statistics_members=len(range(number, config.statistics_members, len(floors))),
                    gate_width=0 if number else config.gate_width,
                ),
                mean,
                deviation,
            )
            for number, floor in enumerate(floors[: config.statistics_members])
        )
        self.voice = VoiceNetworks(config, mean, deviation) if config.voice_members else None

    @property
    def cans(self) -> list[CascadedAttentionNetwork]:
        """The CANs among the members."""
        return [part for part in self.members if isinstance(part, CascadedAttentionNetwork)]

    def with_cans(self, cans: Sequence[nn.Module]) -> Committee:
        """Return a copy of the committee in which ``cans`` themselves are the CANs."""
        return copy.deepcopy(self, {id(self.members): nn.ModuleList(cans)})

    @property
    def groups(self) -> list[StatisticsGroup]:
        """Networks that are told the same: of statistics, those with the same floor; of voice."""
        groups = [part for part in self.statistics if isinstance(part, StatisticsNetworks)]
        return [*groups, self.voice] if self.voice is not None else [*groups]

    @property
    def gate(self) -> SpeechGate | None:
        """What tells speech from noise, if there is one."""
        return self.groups[0].gate if self.groups else None

    def outputs(self, x: Tensor) -> list[CanOutput]:
        """Return each member's own output for windows (n, 3, num_rows, T)."""
        return self._hear(x)[0]

    def _hear(self, x: Tensor) -> tuple[list[CanOutput], list[Tensor]]:
        """Return each member's output and each group's statistics; each floor is laid once."""
        floors = {part.config.floors_db: part.floor for part in self.groups}
        floors |= {can.config.floors_db: can.floor for can in self.cans}
        over = {key: floor(x) for key, floor in floors.items()}
        outputs = [can.score(over[can.config.floors_db]) for can in self.cans]
        inputs = [
            group.standardize(group.statistics(over[group.config.floors_db]))
            for group in self.groups
        ]
        for group, statistics in zip(self.groups, inputs, strict=True):
            outputs += group.score(statistics)
        return outputs, inputs

    def forward(self, x: Tensor) -> CanOutput:
        """Score windows: logits are the logarithm of the members' mean probability.

        The embedding is the members' side by side, the attention their mean.
        """
        outputs, inputs = self._hear(x)
        log_probabilities = [torch.log_softmax(output.logits, dim=1) for output in outputs]
        mean = torch.logsumexp(torch.stack(log_probabilities), dim=0) - math.log(len(outputs))
        if self.gate is not None:
            mean = _taken_back(mean, self.gate(inputs[0]))
        embedding = torch.cat([output.embedding for output in outputs], dim=1)
        attention = torch.stack([output.attention for output in outputs]).mean(0)
        return CanOutput(mean, embedding, attention)


def _taken_back(log_probabilities: Tensor, log_odds: Tensor) -> Tensor:
    """Mix (n, labels) with no answer at all, by how likely it is speech, (n, 1)."""
    speech = log_probabilities + functional.logsigmoid(log_odds)
    none = functional.logsigmoid(-log_odds) - math.log(log_probabilities.shape[1])
    return torch.logsumexp(torch.stack([speech, none.expand_as(speech)]), dim=0)


def build_can(
    config: CanConfig, mean: Tensor | None = None, deviation: Tensor | None = None
) -> CascadedAttentionNetwork | Committee:
    """Build the network of a configuration: one, or a committee.

    Raises:
        ConfigError: as :class:`CascadedAttentionNetwork`.
    """
    if config.members == 1 and not (config.statistics_members or config.voice_members):
        return CascadedAttentionNetwork(config, mean, deviation)
    return Committee(config, mean, deviation)
