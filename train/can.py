"""The Cascaded Attention Network (CAN) of Liu et al. 2023, section 2.2, every part a switch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from streamer.errors import ConfigError
from train.can_config import NUM_FEATURES, CanConfig
from train.floor import floor_of


class CanOutput(NamedTuple):
    """What the network says of n windows of T frames."""

    logits: Tensor  # (n, num_labels), before the softmax
    embedding: Tensor  # (n, embedding_width)
    attention: Tensor  # (n, T), sums to 1: how much each frame contributed to the embedding
    emotions: Tensor | None = None  # (n, num_emotions), before the softmax; None if there are none


class ConvStack(nn.Module):
    """Table 1: three (3, 3) convolutions, then one as high as the map; each batch-normalised.

    (n, c, num_rows, T) -> F0 (n, T, conv_channels[-1]): from here on channels come last, as the
    BLSTM reads them.
    """

    def __init__(self, config: CanConfig) -> None:
        super().__init__()
        *inner, last = config.conv_channels
        layers: list[nn.Module] = []
        width = len(config.kept_features)
        for channels in inner:  # no bias: the normalisation's takes its place
            layers += [
                nn.Conv2d(width, channels, (3, 3), padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
            width = channels
        self.inner = nn.Sequential(*layers)
        self.last = nn.Conv2d(width, last, (len(config.heard_rows), 1), bias=False)
        self.last_norm = nn.BatchNorm2d(last)
        self.activation = nn.ReLU(inplace=True) if config.last_conv_activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve a batch of normalised features into F0."""
        f0: Tensor = self.activation(self.last_norm(self.last(self.inner(x))))
        return f0.squeeze(2).transpose(1, 2)


class TemporalStack(nn.Module):
    """Convolutions along time, each batch-normalised; the rows of all features are the channels.

    (n, c, num_rows, T) -> F0 (n, T / time_stride, conv_channels[-1]).
    """

    def __init__(self, config: CanConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = len(config.kept_features) * len(config.heard_rows)
        for number, channels in enumerate(config.conv_channels):
            size, stride = (5 if number < 2 else 3), (config.time_stride if number == 0 else 1)
            if number:
                layers += [nn.ReLU(inplace=True), nn.Dropout(config.dropout / 2)]
            layers += [
                nn.Conv1d(width, channels, size, stride, padding=size // 2, bias=False),
                nn.BatchNorm1d(channels),
            ]
            width = channels
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve a batch of normalised features into F0."""
        f0: Tensor = self.layers(x.flatten(1, 2))
        return f0.transpose(1, 2)


_FRONTS = {"paper": ConvStack, "temporal": TemporalStack}


class ChannelAttention(nn.Module):
    """Eq. 1: one weight a channel, from its average and maximum over time; (n, T, c) -> (n, 1, c).

    "cbam": sigmoid(W1 relu(W0 avg) + W1 relu(W0 max)); "eq1": sigmoid(W1 W0 (avg + max)). Without
    biases, as the equation writes it: with them its two sides would differ even when linear.
    """

    def __init__(self, config: CanConfig) -> None:
        super().__init__()
        channels = config.conv_channels[-1]
        self.reduce = nn.Linear(channels, channels // config.channel_reduction, bias=False)
        self.expand = nn.Linear(channels // config.channel_reduction, channels, bias=False)
        self.activation = nn.ReLU() if config.channel_attention_form == "cbam" else nn.Identity()

    def forward(self, f0: Tensor) -> Tensor:
        """Weigh the channels of F0: F1 is F0 times these weights."""
        average, maximum = self.reduce(f0.mean(1)), self.reduce(f0.amax(1))
        hidden = self.activation(average) + self.activation(maximum)
        return torch.sigmoid(self.expand(hidden)).unsqueeze(1)


class SpatialAttention(nn.Module):
    """Eq. 2: one weight a frame, from its channels' mean and maximum; (n, T, c) -> (n, T, 1)."""

    def __init__(self, config: CanConfig) -> None:
        super().__init__()
        height, width = config.spatial_kernel
        self.conv = nn.Conv2d(2, 1, (height, width), padding=(height // 2, width // 2))

    def forward(self, f1: Tensor) -> Tensor:
        """Weigh the frames of F1: F2 is F1 times these weights."""
        descriptors = torch.stack([f1.mean(2), f1.amax(2)], dim=1).unsqueeze(2)
        return torch.sigmoid(self.conv(descriptors)).squeeze(1).transpose(1, 2)


class SpatiotemporalAttention(nn.Module):
    """F0 -> F3: channel and spatial attention, skip connection; (n, T, c) -> (n, T, c)."""

    def __init__(self, config: CanConfig) -> None:
        super().__init__()
        self.channel = ChannelAttention(config) if config.channel_attention else None
        self.spatial = SpatialAttention(config) if config.spatial_attention else None
        self.skip_connection = config.skip_connection

    def forward(self, f0: Tensor) -> Tensor:
        """Turn F0 into F3, the input of the BLSTM."""
        f1 = f0 if self.channel is None else f0 * self.channel(f0)
        f2 = f1 if self.spatial is None else f1 * self.spatial(f1)
        return functional.relu(f0 + f2 if self.skip_connection else f2)


class HeadFusion(nn.Module):
    """Eq. 3-5 and the average over time; (n, T, c) -> embedding (n, head_width), attention (n, T).

    The same numbers as the letter, for less work, as heads and time are averaged after the softmax:
    Q_j K_j' = X (W_j^Q W_j^K') X', the two weights multiplied first; and mean_t (A_j V_j) =
    (mean_t A_j) X W_j^V, where averaging A_j first leaves one row a head.
    Heads lie beside the query time in one product, so nothing is transposed or repeated. Averaging
    over query time is a product too: as a reduction in bfloat16 it cost more than the softmax.
    """

    def __init__(self, config: CanConfig) -> None:
        super().__init__()
        width = 2 * config.lstm_cells
        shape = (config.num_heads, width, config.head_width)
        self.query = nn.Parameter(torch.empty(shape))
        self.key = nn.Parameter(torch.empty(shape))
        self.value = nn.Parameter(torch.empty(shape))
        bound = 1 / math.sqrt(width)  # nn.Linear's
        for weight in (self.query, self.key, self.value):
            nn.init.uniform_(weight, -bound, bound)
        self.scale = 1 / math.sqrt(config.head_width) if config.attention_scaled else 1.0

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse the BLSTM's output into one embedding a window, and say which frames made it."""
        num_heads, width, head_width = self.value.shape
        n, num_frames = x.shape[0], x.shape[1]
        form = (self.query * self.scale) @ self.key.transpose(1, 2)  # (heads, c, c)
        queries = x @ form.transpose(0, 1).reshape(width, num_heads * width)  # (n, T, heads * c)
        scores = queries.reshape(n, num_frames * num_heads, width) @ x.transpose(1, 2)
        weights = torch.softmax(scores, dim=-1)  # (n, T * heads, T)
        same_head = torch.eye(num_heads, dtype=x.dtype, device=x.device).repeat(1, num_frames)
        mean = torch.matmul(same_head, weights) / num_frames  # (n, heads, T)
        pooled = (mean @ x).reshape(n, num_heads * width)
        embedding = pooled @ (self.value / num_heads).reshape(num_heads * width, head_width)
        return embedding, mean.mean(1)


class CascadedAttentionNetwork(nn.Module):
    """CAN (Fig. 1): windows of features -> logits, embedding and the frames' attention.

    `mean` and `deviation`, each (3, num_rows, 1), are the training frames' statistics; they travel
    with the weights and are applied first. Left out, they are 0 and 1.

    Raises:
        ConfigError: a statistic has another shape, is not finite, or a deviation is not positive.
    """

    mean: Tensor
    deviation: Tensor
    kept: Tensor
    heard: Tensor

    def __init__(
        self, config: CanConfig, mean: Tensor | None = None, deviation: Tensor | None = None
    ) -> None:
        super().__init__()
        self.config = config
        shape = (NUM_FEATURES, config.num_rows, 1)
        mean = torch.zeros(shape) if mean is None else _statistic("mean", mean, shape)
        spread = (
            torch.ones(shape) if deviation is None else _statistic("deviation", deviation, shape)
        )
        if not bool((spread > 0).all()):
            raise ConfigError(f"smallest deviation is {spread.min().item()}: expected more than 0")
        self.register_buffer("mean", mean)
        self.register_buffer("deviation", spread)
        self.register_buffer("kept", torch.tensor(config.kept_features), persistent=False)
        self.register_buffer("heard", torch.tensor(config.heard_rows), persistent=False)
        self.floor = floor_of(config)
        self.conv = _FRONTS[config.front](config)
        self.attention = SpatiotemporalAttention(config)
        self.blstm = nn.LSTM(
            config.conv_channels[-1], config.lstm_cells, bidirectional=True, batch_first=True
        )
        self.fusion = HeadFusion(config) if config.self_attention else None
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.classifier = nn.Linear(config.embedding_width, config.num_labels)
        self.emotions = (
            nn.Linear(config.embedding_width, config.num_emotions) if config.num_emotions else None
        )
        # Convolutions follow their weights' layout: this takes a tenth off a step on a CPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def outputs(self, x: Tensor) -> list[CanOutput]:
        """Return the one output, as a committee of one."""
        return [self(x)]

    @property
    def cans(self) -> list[CascadedAttentionNetwork]:
        """The one CAN, as a committee of one."""
        return [self]

    def with_cans(self, cans: Sequence[nn.Module]) -> nn.Module:
        """Return the one of ``cans``, as a committee of one."""
        return cans[0]

    def forward(self, x: Tensor) -> CanOutput:
        """Score windows (n, 3, num_rows, T), features as they come from the front end."""
        return self.score(self.floor(x))

    def score(self, x: Tensor) -> CanOutput:
        """Score what its floor returned, whose mean and deviation are taken to be the features'."""
        x = (x - self.mean) / self.deviation
        if len(self.config.kept_features) < NUM_FEATURES:
            x = x.index_select(1, self.kept)
        if len(self.config.heard_rows) < self.config.num_rows:
            x = x.index_select(2, self.heard)
        f3 = self.attention(self.conv(x))
        sequence = self.blstm(self.dropout(f3))[0]  # (n, T, 2 * lstm_cells)
        if self.fusion is None:
            embedding = sequence.mean(1)
            attention = torch.ones_like(sequence[:, :, 0]) / sequence.shape[1]
        else:
            embedding, attention = self.fusion(sequence)
        if self.config.statistics_pooling:
            deviation = (sequence.var(1) + 1e-4).sqrt()
            embedding = torch.cat([embedding, sequence.mean(1), deviation], dim=1)
        if (stride := self.config.time_stride) > 1:  # a step's attention is shared by its frames
            attention = (attention / stride).repeat_interleave(stride, dim=1)
        seen = self.dropout(embedding)
        logits = self.classifier(seen)
        emotions = None if self.emotions is None else self.emotions(seen)
        if self.config.normalize_embedding:
            embedding = functional.normalize(embedding, dim=1)
        return CanOutput(logits, embedding, attention, emotions)


def count_parameters(model: nn.Module) -> int:
    """Number of trained values in `model`: buffers are not counted."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _statistic(name: str, value: Tensor, shape: tuple[int, ...]) -> Tensor:
    value = torch.as_tensor(value, dtype=torch.float32).clone()
    if tuple(value.shape) != shape:
        raise ConfigError(f"{name} has shape {tuple(value.shape)}: expected {shape}")
    if not bool(value.isfinite().all()):
        raise ConfigError(f"{name} has values that are not finite: expected finite ones")
    return value
