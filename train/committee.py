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
from train.statistics_network import StatisticsNetworks


class Committee(nn.Module):
    """``config.members`` CANs and ``config.statistics_members`` networks of statistics.

    Each is begun otherwise, and each has the same say. What the gate takes for something else than
    speech, by that much has no emotion: the same probability for all.
    """

    def __init__(
        self, config: CanConfig, mean: Tensor | None = None, deviation: Tensor | None = None
    ) -> None:
        super().__init__()
        self.config = config
        one = replace(config, members=1, statistics_members=0, gate_width=0)
        self.members = nn.ModuleList(
            CascadedAttentionNetwork(one, mean, deviation) for _ in range(config.members)
        )
        self.statistics = (
            StatisticsNetworks(config, mean, deviation) if config.statistics_members else None
        )

    @property
    def cans(self) -> list[nn.Module]:
        """The CANs among the members."""
        return [*self.members]

    def with_cans(self, cans: Sequence[nn.Module]) -> Committee:
        """Return a copy of the committee in which ``cans`` themselves are the CANs."""
        return copy.deepcopy(self, {id(self.members): nn.ModuleList(cans)})

    def outputs(self, x: Tensor) -> list[CanOutput]:
        """Return each member's own output for windows (n, 3, num_rows, T)."""
        outputs = [can(x) for can in self.cans]
        return outputs if self.statistics is None else outputs + self.statistics(x)

    def forward(self, x: Tensor) -> CanOutput:
        """Score windows: logits are the logarithm of the members' mean probability.

        The embedding is the members' side by side, the attention their mean.
        """
        outputs, log_odds = [can(x) for can in self.cans], None
        if self.statistics is not None:
            inputs = self.statistics.standardized(x)
            outputs = outputs + self.statistics.score(inputs)
            log_odds = None if self.statistics.gate is None else self.statistics.gate(inputs)
        log_probabilities = [torch.log_softmax(output.logits, dim=1) for output in outputs]
        mean = torch.logsumexp(torch.stack(log_probabilities), dim=0) - math.log(len(outputs))
        if log_odds is not None:
            mean = _taken_back(mean, log_odds)
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
    if config.members == 1 and not config.statistics_members:
        return CascadedAttentionNetwork(config, mean, deviation)
    return Committee(config, mean, deviation)
