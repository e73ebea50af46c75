"""A network that hears a window's statistics, not its course: what the committee's CANs miss.

Mean, deviation, quantiles and slope of each row, of its deltas, and of the voiced frames alone;
and more of the pitch, over the voiced frames: the functionals that paralinguistics has long gone
by (openSMILE's ComParE and eGeMAPS sets take more of them, of more rows), then two layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamer.errors import ConfigError
from train.can import NUM_FEATURES, CanConfig, CanOutput

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_DELTA_QUANTILES = (0.1, 0.9)
_PITCH_QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
_VOICING_ROW = 1
"""Its place under the coefficients, where the features have pitch."""
_NUM_STATISTICS = 14
_NUM_PITCH_STATISTICS = 18
_LEAST_VOICED = 4
"""Frames; with fewer, statistics of pitch are 0."""
_LARGEST_STEP = 2.4
"""Semitones from a frame to the next, at most: more is the tracker changing its mind."""


class StatisticsNetworks(nn.Module):
    """Windows of features -> logits of each of ``config.statistics_members`` networks.

    They share the statistics, and differ in what they were begun with. Each has
    ``config.statistics_width`` cells between statistics and classifier. Features must have pitch:
    voiced frames are told by their voicing.

    Raises:
        ConfigError: features without pitch.
    """

    mean: Tensor
    deviation: Tensor
    ramp: Tensor

    def __init__(
        self, config: CanConfig, mean: Tensor | None = None, deviation: Tensor | None = None
    ) -> None:
        super().__init__()
        self.config = config
        if config.num_ceps + _VOICING_ROW >= config.num_rows:
            raise ConfigError(
                f"{config.num_rows} rows, {config.num_ceps} of them coefficients: expected pitch "
                "and voicing below them, for a statistics network"
            )
        shape = (NUM_FEATURES, config.num_rows, 1)
        self.register_buffer("mean", torch.zeros(shape) if mean is None else mean.clone())
        self.register_buffer(
            "deviation", torch.ones(shape) if deviation is None else deviation.clone()
        )
        ramp = torch.linspace(-1.0, 1.0, config.num_frames)
        self.register_buffer("ramp", ramp, persistent=False)
        self.num_inputs = _NUM_STATISTICS * config.num_rows + _NUM_PITCH_STATISTICS
        self.input_norm = nn.BatchNorm1d(self.num_inputs, affine=False)
        self.members = nn.ModuleList(
            StatisticsMember(config, self.num_inputs) for _ in range(config.statistics_members)
        )

    def forward(self, x: Tensor) -> list[CanOutput]:
        """Score windows (n, 3, num_rows, T), features as they come from the front end."""
        return self.score(self.statistics(x))

    def score(self, statistics: Tensor) -> list[CanOutput]:
        """Score what :meth:`statistics` returned, (n, num_inputs)."""
        statistics = self.input_norm(statistics).clamp(-5.0, 5.0)
        num_frames = self.config.num_frames
        attention = statistics.new_full((1, num_frames), 1.0 / num_frames)
        attention = attention + torch.zeros_like(statistics[:, :1])
        return [member(statistics, attention) for member in self.members]

    @torch.no_grad()
    def round_weights(self) -> None:
        """Make the largest weights float16's numbers: a model file then holds them in half."""
        for member in self.members:
            weight = member.hidden[1].weight  # type: ignore[union-attr, index]
            weight.copy_(weight.half().float())

    def statistics(self, x: Tensor) -> Tensor:
        """(n, 3, num_rows, T) -> (n, num_inputs): of each row, then of the pitch alone."""
        voicing = x[:, 0, self.config.num_ceps + _VOICING_ROW]  # (n, T)
        scaled = (x - self.mean) / self.deviation
        return torch.cat(
            [
                self._row_statistics(scaled, torch.sigmoid(20.0 * (voicing - 0.5)).unsqueeze(1)),
                self._pitch_statistics(x[:, 0, self.config.num_ceps], voicing),
            ],
            dim=1,
        )

    def _row_statistics(self, x: Tensor, is_voiced: Tensor) -> Tensor:
        """(n, 3, num_rows, T) and (n, 1, T) -> (n, 14 num_rows)."""
        static, delta, delta_delta = x[:, 0], x[:, 1], x[:, 2]
        mean = static.mean(2)
        voiced = is_voiced.sum(2) + 1.0  # at least one: whispering has a mean, too
        voiced_mean = ((static * is_voiced).sum(2) + mean) / voiced
        voiced_square = ((static - voiced_mean.unsqueeze(2)).square() * is_voiced).sum(2) / voiced
        parts = [
            mean,
            _deviation(static),
            *(quantile - mean for quantile in self._quantiles(static, _QUANTILES)),
            (static * self.ramp).mean(2),
            _deviation(delta),
            _deviation(delta_delta),
            *self._quantiles(delta, _DELTA_QUANTILES),
            voiced_mean - mean,
            (voiced_square + 1e-4).sqrt(),
        ]
        return torch.cat(parts, dim=1)

    def _quantiles(self, rows: Tensor, shares: tuple[float, ...]) -> list[Tensor]:
        """Quantiles over every second frame, the nearest's; (n, rows, T) -> (n, rows) each."""
        num_frames = (self.config.num_frames + 1) // 2
        ordered = torch.topk(rows[:, :, ::2], num_frames, dim=2).values
        return [ordered[:, :, round((1.0 - share) * (num_frames - 1))] for share in shares]

    def _pitch_statistics(self, pitch: Tensor, voicing: Tensor) -> Tensor:
        """Of the voiced frames' pitch, in semitones: level, spread, course, steps; (n, 18)."""
        voiced = (voicing > 0.5).float()
        num_voiced = voiced.sum(1)
        count = num_voiced.clamp(min=1.0)
        mean = (pitch * voiced).sum(1) / count
        deviation = (((pitch - mean[:, None]).square() * voiced).sum(1) / count + 1e-4).sqrt()
        ordered = torch.topk(pitch * voiced - 1e3 * (1.0 - voiced), pitch.shape[1], dim=1).values
        places = [((1.0 - share) * (count - 1.0)).round().long() for share in _PITCH_QUANTILES]
        quantiles = [ordered.gather(1, place[:, None])[:, 0] for place in places]
        time = (self.ramp * voiced).sum(1) / count
        spread = ((self.ramp - time[:, None]).square() * voiced).sum(1) / count
        rise = ((self.ramp - time[:, None]) * (pitch - mean[:, None]) * voiced).sum(1) / count
        both = voiced[:, 1:] * voiced[:, :-1]
        steps = (pitch[:, 1:] - pitch[:, :-1]).clamp(-_LARGEST_STEP, _LARGEST_STEP) * both
        num_steps = both.sum(1).clamp(min=1.0)
        parts = [
            mean,
            deviation,
            *quantiles,
            quantiles[-1] - quantiles[0],
            rise / (spread + 1e-2),
            steps.sum(1) / num_steps,
            (steps.square().sum(1) / num_steps + 1e-6).sqrt(),
            steps.abs().sum(1) / num_steps,
            voiced.mean(1),
            (voiced[:, 1:] - voiced[:, :-1]).clamp(min=0.0).sum(1),  # stretches of voice begun
            (voicing * voiced).sum(1) / count,
            (pitch[:, 1:] - pitch[:, :-1]).abs().mean(1),
        ]
        return torch.stack(parts, dim=1) * (num_voiced >= _LEAST_VOICED).float()[:, None]


class StatisticsMember(nn.Module):
    """Two layers over the statistics."""

    def __init__(self, config: CanConfig, num_inputs: int) -> None:
        super().__init__()
        width = config.statistics_width
        self.hidden = nn.Sequential(
            nn.Dropout(0.1),
            nn.Linear(num_inputs, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(),
            nn.Dropout(0.5),
        )
        self.classifier = nn.Linear(width, config.num_labels)
        self.emotions = nn.Linear(width, config.num_emotions) if config.num_emotions else None

    def forward(self, statistics: Tensor, attention: Tensor) -> CanOutput:
        """Score statistics (n, num_inputs); ``attention`` (n, T) is passed on."""
        embedding = self.hidden(statistics)
        emotions = None if self.emotions is None else self.emotions(embedding)
        return CanOutput(self.classifier(embedding), embedding, attention, emotions)


def _deviation(rows: Tensor) -> Tensor:
    return (rows.var(2, correction=0) + 1e-4).sqrt()
