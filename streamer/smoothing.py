"""From a window's logits to calibrated, steadied output: everything in audio time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from streamer.arrays import Scores
from streamer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SmoothingConfig:
    """How scores are averaged and how slowly the label follows; an operator may change it.

    Scores are an exponential average with ``time_constant_s``. The label moves to another one only
    if that leads by ``margin`` (hysteresis) and the label has stood for ``dwell_s``.

    Raises:
        ConfigError: a value outside its range.
    """

    time_constant_s: float = 1.0
    margin: float = 0.1
    dwell_s: float = 1.0

    def __post_init__(self) -> None:
        if not (self.time_constant_s >= 0 and 0 <= self.margin < 1 and self.dwell_s >= 0):
            raise ConfigError(
                f"smoothing over {self.time_constant_s:g} s, margin {self.margin:g}, dwell "
                f"{self.dwell_s:g} s: expected times of 0 or more and 0 <= margin < 1"
            )


def softmax(logits: ArrayLike) -> Scores:
    """Logits to probabilities along the last axis, float64."""
    values: NDArray[np.float64] = np.asarray(logits, np.float64)
    exponents = np.exp(values - values.max(axis=-1, keepdims=True))
    result: Scores = exponents / exponents.sum(axis=-1, keepdims=True)
    return result


def calibrate(probabilities: ArrayLike, temperature: float) -> Scores:
    """Temper probabilities: softmax(log(p) / T) (Guo et al. 2017, temperature scaling).

    On a window's softmax this is temperature scaling of its logits; on an average of several it is
    the same with the average's own temperature.
    """
    logs = np.log(np.maximum(np.asarray(probabilities, np.float64), 1e-12))
    return softmax(logs / temperature)


class ScoreSmoother:
    """Exponential average of probabilities whose weights depend on audio time alone."""

    def __init__(self, config: SmoothingConfig) -> None:
        self._time_constant_s = config.time_constant_s
        self._average: Scores | None = None
        self._weight = 0.0
        self._time_s = 0.0

    def update(self, probabilities: Scores, time_s: float) -> Scores:
        """Take the probabilities of the window that ends at ``time_s``; return the average.

        The first ones stand for themselves: the average is corrected for its start.
        """
        if self._average is None or self._time_constant_s == 0:
            self._average, self._weight = probabilities, 1.0
        else:
            decay = math.exp((self._time_s - time_s) / self._time_constant_s)
            old = self._weight * decay
            self._weight = old + 1.0
            self._average = (old * self._average + probabilities) / self._weight
        self._time_s = time_s
        return self._average


class LabelSteadier:
    """The label shown: follows the leading score with hysteresis and a minimum dwell.

    Uncertain is one label more, whose score is always ``threshold``: it leads where every other
    score is below that, and is entered and left by the same margin and dwell as any label.
    """

    def __init__(self, config: SmoothingConfig, threshold: float = 0.0) -> None:
        self._config = config
        self._threshold = threshold
        self._index: int | None = None
        self._since_s = 0.0

    def update(self, scores: Scores, time_s: float) -> int | None:
        """Take the smoothed scores at ``time_s``; return the index to show, None for uncertain."""
        values = np.append(scores, self._threshold)
        leader = int(np.argmax(values))
        if self._index is None:
            self._index, self._since_s = leader, time_s
        elif leader != self._index:
            leads = values[leader] - values[self._index] >= self._config.margin
            if leads and time_s - self._since_s >= self._config.dwell_s:
                self._index, self._since_s = leader, time_s
        return self._index if self._index < len(scores) else None
