"""Networks that hear a window's statistics, not its course: what the committee's CANs miss.

Mean, deviation, quantiles and slope of each row and of each contour of the spectrum, of their
deltas, and of the voiced frames alone; more of the pitch, over the voiced frames; how rows go
together, and at what rates they move: the functionals that paralinguistics has long gone by
(openSMILE's ComParE and eGeMAPS sets take more of them, of more rows), then two layers. One more
such network hears whether it is speech at all.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from streamer.errors import ConfigError
from streamer.features import FeatureConfig
from train.can import CanOutput
from train.can_config import NUM_FEATURES, CanConfig
from train.contours import Contours
from train.floor import floor_of

_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)
_DELTA_TAIL = 0.1
_LEAST_DISTANCE = 0.02
"""Of a quantile from the mean, in the training frames' deviations."""
_PITCH_QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)
_VOICING_ROW = 1
"""Its place under the coefficients, where the features have pitch."""
_NUM_STATISTICS = 14
_NUM_PITCH_STATISTICS = 18
_LEAST_VOICED = 4
"""Frames; with fewer, statistics of pitch are 0."""
_LARGEST_STEP = 2.4
"""Semitones from a frame to the next, at most: more is the tracker changing its mind."""
_NUM_CORRELATED = 10
"""First coefficients whose correlations with each other, pitch and voicing are taken."""
_NUM_MODULATED = 14
"""First coefficients whose modulation is taken, beside that of pitch and voicing."""
_MODULATION_HZ = (0.5, 2.0, 4.0, 8.0, 14.0, 25.0, 50.0)
"""Edges of the bands of modulation; syllables come at 4 to 8 Hz."""


class StatisticsGroup(nn.Module):
    """``config.statistics_members`` networks that are told the same numbers of a window.

    They differ in what they were begun with. Each has ``config.statistics_width`` cells between
    those numbers and its classifier. Who inherits says which numbers they are.
    """

    def __init__(self, config: CanConfig, num_inputs: int) -> None:
        super().__init__()
        self.config = config
        self.num_inputs = num_inputs
        self.floor = floor_of(config)
        # Holds the scale, which training sets once; see standardize.
        self.input_norm = nn.BatchNorm1d(num_inputs, affine=False)
        self.members = nn.ModuleList(
            StatisticsMember(config, num_inputs) for _ in range(config.statistics_members)
        )
        self.gate = SpeechGate(num_inputs, config.gate_width) if config.gate_width else None

    def statistics(self, x: Tensor) -> Tensor:
        """(n, 3, num_rows, T) -> (n, num_inputs). Of what its floor returned."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> list[CanOutput]:
        """Score windows (n, 3, num_rows, T), features as they come from the front end."""
        return self.score(self.standardize(self.statistics(self.floor(x))))

    def standardize(self, statistics: Tensor) -> Tensor:
        """Put what :meth:`statistics` returned on one scale, and no number far off it."""
        mean, variance = self.input_norm.running_mean, self.input_norm.running_var
        assert mean is not None and variance is not None  # it tracks them
        scale = (variance + self.input_norm.eps).rsqrt()
        return ((statistics - mean) * scale).clamp(-5.0, 5.0)

    def score(self, inputs: Tensor) -> list[CanOutput]:
        """Score what :meth:`standardize` returned, (n, num_inputs)."""
        num_frames = self.config.num_frames
        attention = inputs.new_full((1, num_frames), 1.0 / num_frames)
        attention = attention + torch.zeros_like(inputs[:, :1])
        return [member(inputs, attention) for member in self.members]


class StatisticsNetworks(StatisticsGroup):
    """Windows of features -> logits of each of ``config.statistics_members`` networks.

    Features must have pitch: voiced frames are told by their voicing.

    Raises:
        ConfigError: features without pitch, or with too few coefficients.
    """

    mean: Tensor
    deviation: Tensor
    heard: Tensor
    ramp: Tensor
    row_ramp: Tensor
    pitch_places: Tensor
    pairs: Tensor

    def __init__(
        self, config: CanConfig, mean: Tensor | None = None, deviation: Tensor | None = None
    ) -> None:
        if config.num_ceps + _VOICING_ROW >= config.num_rows:
            raise ConfigError(
                f"{config.num_rows} rows, {config.num_ceps} of them coefficients: expected pitch "
                "and voicing below them, for a statistics network"
            )
        if config.num_ceps < _NUM_MODULATED:
            raise ConfigError(
                f"{config.num_ceps} coefficients: expected {_NUM_MODULATED} or more, for a "
                "statistics network"
            )
        shape = (NUM_FEATURES, config.num_rows, 1)
        correlated = _NUM_CORRELATED + 2
        first, second = torch.triu_indices(correlated, correlated, 1)
        contours, modulations = Contours(config.num_ceps), Modulations(config.num_frames)
        num_inputs = (
            _NUM_STATISTICS * (len(config.heard_rows) + contours.num_few)
            + _NUM_PITCH_STATISTICS
            + len(first)
            + (_NUM_MODULATED + 2) * modulations.num_bands
        )
        super().__init__(config, num_inputs)
        self.contours, self.modulations = contours, modulations
        self.register_buffer("mean", torch.zeros(shape) if mean is None else mean.clone())
        self.register_buffer(
            "deviation", torch.ones(shape) if deviation is None else deviation.clone()
        )
        self.register_buffer("heard", torch.tensor(config.heard_rows), persistent=False)
        ramp = torch.linspace(-1.0, 1.0, config.num_frames)
        self.register_buffer("ramp", ramp, persistent=False)
        places = torch.tensor([1.0 - share for share in _PITCH_QUANTILES])
        self.register_buffer("pitch_places", places, persistent=False)
        self.num_picked = config.num_frames // 2
        row_frames = self.num_picked if config.statistics_range_db else config.num_frames
        self.num_ordered = (row_frames + 1) // 2
        self.register_buffer("row_ramp", torch.linspace(-1.0, 1.0, row_frames), persistent=False)
        self.register_buffer("pairs", correlated * first + second, persistent=False)

    def statistics(self, x: Tensor) -> Tensor:
        """(n, 3, num_rows, T) -> (n, num_inputs): rows, pitch, correlations, modulations.

        Of what its floor returned.
        """
        voicing = x[:, 0, self.config.num_ceps + _VOICING_ROW]  # (n, T)
        is_voiced = torch.sigmoid(20.0 * (voicing - 0.5)).unsqueeze(1)
        scaled = (x - self.mean) / self.deviation
        contours = self.contours(x[:, :, : self.config.num_ceps])
        rows = torch.cat([scaled.index_select(2, self.heard), self.contours.few(contours)], dim=2)
        is_voiced_row = is_voiced
        if self.config.statistics_range_db:
            places = self._loud_frames(contours[:, 0, self.contours.level_row])
            rows = rows.gather(3, places[:, None, None, :].expand(-1, *rows.shape[1:3], -1))
            is_voiced_row = is_voiced.gather(2, places.unsqueeze(1))
        return torch.cat(
            [
                self._row_statistics(rows, is_voiced_row),
                self._pitch_statistics(x[:, 0, self.config.num_ceps], voicing),
                self._correlations(self._leading(scaled[:, 0], _NUM_CORRELATED), is_voiced),
                self.modulations(self._leading(scaled[:, 0], _NUM_MODULATED)),
            ],
            dim=1,
        )

    def _loud_frames(self, level: Tensor) -> Tensor:
        """(n, T) -> (n, T / 2): frames in range of the loudest, in order, evenly picked.

        Where fewer are in range some stand there twice. What is left out is silence, and the
        detector's margins around speech: they tell of the recording, not of the voice.
        """
        log_range = self.config.statistics_range_db * math.log(10.0) / 10.0  # of power, as level
        is_loud = level > level.max(1, keepdim=True).values - log_range
        num_so_far = is_loud.float().cumsum(1)
        odd = 2.0 * torch.arange(self.num_picked, device=level.device) + 1.0
        wanted = (odd * num_so_far[:, -1:] / (2.0 * self.num_picked)).floor() + 1.0
        return (num_so_far[:, None, :] < wanted[:, :, None]).float().sum(2).long()

    def _row_statistics(self, x: Tensor, is_voiced: Tensor) -> Tensor:
        """(n, 3, num_rows, T) and (n, 1, T) -> (n, 14 num_rows)."""
        static, delta, delta_delta = x[:, 0], x[:, 1], x[:, 2]
        mean = static.mean(2)
        voiced = is_voiced.sum(2) + 1.0  # at least one: whispering has a mean, too
        voiced_mean = ((static * is_voiced).sum(2) + mean) / voiced
        voiced_square = ((static - voiced_mean.unsqueeze(2)).square() * is_voiced).sum(2) / voiced
        low, lower, middle, upper, high = self._quantiles(static, _QUANTILES)
        fastest_fall, fastest_rise = self._tails(delta, _DELTA_TAIL)
        parts = [
            mean,
            _deviation(static).log(),
            _log_distance(mean - low),
            _log_distance(mean - lower),
            middle - mean,
            _log_distance(upper - mean),
            _log_distance(high - mean),
            (static * self.row_ramp).mean(2),
            _deviation(delta).log(),
            _deviation(delta_delta).log(),
            _log_distance(-fastest_fall),
            _log_distance(fastest_rise),
            voiced_mean - mean,
            (voiced_square + 1e-4).sqrt().log(),
        ]
        return torch.cat(parts, dim=1)

    def _quantiles(self, rows: Tensor, shares: tuple[float, ...]) -> list[Tensor]:
        """Quantiles over every second frame, the nearest's; (n, rows, T) -> (n, rows) each."""
        last = self.num_ordered - 1
        ordered = torch.topk(rows[:, :, ::2], self.num_ordered, dim=2).values
        return [ordered[:, :, round((1.0 - share) * last)] for share in shares]

    def _tails(self, rows: Tensor, share: float) -> list[Tensor]:
        """The quantiles ``share`` and ``1 - share``, as :meth:`_quantiles`: no need to sort all."""
        place = round(share * (self.num_ordered - 1))
        low, high = (
            torch.topk(rows[:, :, ::2], place + 1, dim=2, largest=largest).values[:, :, place]
            for largest in (False, True)
        )
        return [low, high]

    def _pitch_statistics(self, pitch: Tensor, voicing: Tensor) -> Tensor:
        """Of the voiced frames' pitch, in semitones: level, spread, course, steps; (n, 18)."""
        voiced = (voicing > 0.5).float()
        num_voiced = voiced.sum(1, keepdim=True)
        count = num_voiced.clamp(min=1.0)
        mean = (pitch * voiced).sum(1, keepdim=True) / count
        from_mean = (pitch - mean) * voiced
        deviation = (from_mean.square().sum(1, keepdim=True) / count + 1e-4).sqrt()
        ordered = torch.topk(pitch * voiced - 1e3 * (1.0 - voiced), pitch.shape[1], dim=1).values
        quantiles = ordered.gather(1, (self.pitch_places * (count - 1.0)).round().long())
        time = (self.ramp * voiced).sum(1, keepdim=True) / count
        from_middle = self.ramp - time
        spread = (from_middle.square() * voiced).sum(1, keepdim=True) / count
        rise = (from_middle * from_mean).sum(1, keepdim=True) / count
        both = voiced[:, 1:] * voiced[:, :-1]
        moves = pitch[:, 1:] - pitch[:, :-1]
        steps = moves.clamp(-_LARGEST_STEP, _LARGEST_STEP) * both
        num_steps = both.sum(1, keepdim=True).clamp(min=1.0)
        begun = (voiced[:, 1:] - voiced[:, :-1]).clamp(min=0.0)  # stretches of voice
        parts = [
            mean,
            deviation,
            quantiles,
            quantiles[:, -1:] - quantiles[:, :1],
            rise / (spread + 1e-2),
            steps.sum(1, keepdim=True) / num_steps,
            (steps.square().sum(1, keepdim=True) / num_steps + 1e-6).sqrt(),
            steps.abs().sum(1, keepdim=True) / num_steps,
            voiced.mean(1, keepdim=True),
            begun.sum(1, keepdim=True),
            (voicing * voiced).sum(1, keepdim=True) / count,
            moves.abs().mean(1, keepdim=True),
        ]
        return torch.cat(parts, dim=1) * (num_voiced >= _LEAST_VOICED).float()

    def _leading(self, rows: Tensor, count: int) -> Tensor:
        """First coefficients, pitch and voicing: (n, num_rows, T) -> (n, count + 2, T)."""
        pitch = self.config.num_ceps
        return torch.cat([rows[:, :count], rows[:, pitch : pitch + _VOICING_ROW + 1]], dim=1)

    def _correlations(self, rows: Tensor, is_voiced: Tensor) -> Tensor:
        """Of rows with each other over voiced frames: (n, r, T), (n, 1, T) -> (n, r(r - 1) / 2)."""
        num_voiced = is_voiced.sum(2, keepdim=True) + 1.0
        mean = (rows * is_voiced).sum(2, keepdim=True) / num_voiced
        rows = (rows - mean) * is_voiced
        products = rows @ rows.transpose(1, 2) / num_voiced
        deviation = (rows.square().sum(2, keepdim=True) / num_voiced + 1e-6).sqrt() + 1e-2
        products = products / deviation / deviation.transpose(1, 2)
        return products.flatten(1)[:, self.pairs]


class Modulations(nn.Module):
    """At what rates rows move: (n, r, T) -> (n, r * num_bands), log powers, band after band.

    The discrete Fourier transform along time as two products, which ONNX has and no FFT before its
    opset 20.
    """

    cosine: Tensor
    sine: Tensor
    bands: Tensor

    def __init__(self, num_frames: int) -> None:
        super().__init__()
        rate = torch.arange(1, num_frames // 2)
        phase = torch.arange(num_frames)[:, None] * rate * (2.0 * torch.pi / num_frames)
        features = FeatureConfig()
        hz = rate * features.sample_rate / features.frame_shift / num_frames
        edges = itertools.pairwise(_MODULATION_HZ)
        is_inside = torch.stack([(hz >= low) & (hz < high) for low, high in edges], dim=1).float()
        self.num_bands = is_inside.shape[1]
        # float16's numbers, as which the model file keeps them
        self.register_buffer("cosine", phase.cos().half().float(), persistent=False)
        self.register_buffer("sine", phase.sin().half().float(), persistent=False)
        share = is_inside / is_inside.sum(0).clamp(min=1.0) / num_frames
        self.register_buffer("bands", share, persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the mean power in each band."""
        rows = rows - rows.mean(2, keepdim=True)
        power = (rows @ self.cosine).square() + (rows @ self.sine).square()
        return (power @ self.bands + 1e-3).log().transpose(1, 2).flatten(1)


class StatisticsMember(nn.Module):
    """Two layers over the statistics."""

    def __init__(self, config: CanConfig, num_inputs: int) -> None:
        super().__init__()
        width = config.statistics_width
        self.hidden = nn.Sequential(*_hidden(num_inputs, width, 0.3, 0.5))
        self.classifier = nn.Linear(width, config.num_labels)
        self.emotions = nn.Linear(width, config.num_emotions) if config.num_emotions else None

    def forward(self, statistics: Tensor, attention: Tensor) -> CanOutput:
        """Score statistics (n, num_inputs); ``attention`` (n, T) is passed on."""
        embedding = self.hidden(statistics)
        emotions = None if self.emotions is None else self.emotions(embedding)
        return CanOutput(self.classifier(embedding), embedding, attention, emotions)


class SpeechGate(nn.Module):
    """Tells speech from whatever else a voice activity detector lets through."""

    def __init__(self, num_inputs: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_hidden(num_inputs, width, 0.1, 0.3), nn.Linear(width, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """Standardised statistics (n, num_inputs) -> log odds that it is speech, (n, 1)."""
        log_odds: Tensor = self.layers(inputs)
        return log_odds


def _hidden(num_inputs: int, width: int, before: float, after: float) -> list[nn.Module]:
    """One hidden layer, and the shares that are dropped before and after it."""
    return [
        nn.Dropout(before),
        nn.Linear(num_inputs, width, bias=False),
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Dropout(after),
    ]


def _log_distance(distance: Tensor) -> Tensor:
    """Spreads as logarithms: a line or a room that halves all of them moves each alike."""
    return distance.clamp(min=_LEAST_DISTANCE).log()


def _deviation(rows: Tensor) -> Tensor:
    return (rows.var(2, correction=0) + 1e-4).sqrt()
