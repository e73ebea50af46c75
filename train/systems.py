"""The networks that can be trained, by name: CAN, and those that Table 5 sets it beside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from streamer.errors import ConfigError
from train.baselines.acrnn import Acrnn
from train.baselines.attention_pooling import AttentionPooling
from train.baselines.cnn_lstm import CnnLstm
from train.baselines.head_fusion import HeadFusionCnn
from train.baselines.self_attention import SelfAttention
from train.baselines.triplet_cnn_lstm import TripletCnnLstm
from train.can_config import NUM_FEATURES, CanConfig
from train.committee import build_can
from train.loss import JointLossConfig

CROSS_ENTROPY = JointLossConfig(alpha=0.0)


@dataclass(frozen=True, kw_only=True)
class System:
    """One of Table 5's systems: what it is called there, how it is built, what it is trained with.

    ``build`` gets the training frames' mean and deviation, each (3, num_rows, 1), and the number of
    labels; the network maps (n, 3, num_rows, T) to a ``CanOutput``.
    """

    title: str
    build: Callable[[Tensor, Tensor, int], nn.Module]
    loss: JointLossConfig = CROSS_ENTROPY


BASELINES: dict[str, System] = {
    "cnn-lstm": System(title="CNN-LSTM [17]", build=CnnLstm),
    "acrnn": System(title="3-D ACRNN [5], a quarter as wide", build=Acrnn),
    "acrnn-full": System(title="3-D ACRNN [5]", build=partial(Acrnn, width=1.0)),
    "attention-pooling": System(title="CNN-Attn [18]", build=AttentionPooling),
    "self-attention": System(title="Self-Attn [15]", build=SelfAttention),
    "head-fusion": System(title="ACNN [10]", build=HeadFusionCnn),
    "triplet-cnn-lstm": System(
        title="CNN-LSTM, triplets (no augmentation) [16]",
        build=TripletCnnLstm,
        loss=JointLossConfig(alpha=0.5, margin=0.2, mining="semi_hard_or_hard"),
    ),
}


def build_network(
    system: str, config: CanConfig, mean: Tensor | None = None, deviation: Tensor | None = None
) -> nn.Module:
    """Build ``can``, as ``config`` says, or one of BASELINES, for windows of the same shape.

    ``mean`` and ``deviation``, each (3, num_rows, 1), are the training frames'; left out, 0 and 1.

    Raises:
        ConfigError: no such system.
    """
    if system == "can":
        return build_can(config, mean, deviation)
    if system not in BASELINES:
        raise ConfigError(f"system {system!r}: expected can or one of {', '.join(BASELINES)}")
    shape = (NUM_FEATURES, config.num_rows, 1)
    mean = torch.zeros(shape) if mean is None else torch.as_tensor(mean)
    deviation = torch.ones(shape) if deviation is None else torch.as_tensor(deviation)
    network = BASELINES[system].build(mean, deviation, config.num_labels)
    # As CAN has it: convolutions follow their weights' layout.
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]
