"""Causal normalisation: the channel's own mean, known from the past alone.

The paper normalises by the whole speaker, which a live stream has not heard yet. Here each frame's
MFCCs lose the channel's running mean over its speech frames so far, drawn towards the card's mean
while little has been heard. Deltas have no mean to lose. Deviations are fixed and in the graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamer.arrays import Frames
from streamer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class NormalizationConfig:
    """How fast a channel's mean is believed; part of the card.

    The card's ``mean`` (one number a row, for the first rows; those without one, such as voicing,
    are left as they are) counts as ``prior_frames`` speech frames; once
    ``memory_frames`` have been heard the mean forgets exponentially with that time constant.

    Raises:
        ConfigError: a negative prior or an empty memory.
    """

    mean: tuple[float, ...]
    prior_frames: int = 200
    memory_frames: int = 3000

    def __post_init__(self) -> None:
        if self.prior_frames < 0 or self.memory_frames < 1:
            raise ConfigError(
                f"normalisation prior of {self.prior_frames} frames, memory of "
                f"{self.memory_frames}: expected 0 or more, and 1 or more"
            )


class CausalNormalizer:
    """The running mean of one channel. Each frame passes once, in order."""

    def __init__(self, config: NormalizationConfig) -> None:
        self._prior = config.prior_frames
        self._memory = config.memory_frames
        self._seed: NDArray[np.float64] = np.array(config.mean, np.float64)
        self._total = np.zeros_like(self._seed)
        self._offset = np.zeros_like(self._seed)
        self.num_speech_frames = 0
        """Speech frames heard; the weight of the channel's own mean grows with it."""

    def normalize(self, frames: Frames, is_speech: NDArray[np.bool_]) -> Frames:
        """Return the frames less the channel's offset from the card's mean, as of each frame.

        Args:
            frames: shape (n, 3, num_rows), the stream's next ones.
            is_speech: shape (n,); only these frames move the mean.

        Returns:
            A new array of the same shape; only its MFCC row differs.
        """
        if not len(frames):
            return frames.copy()
        num_normalized = len(self._seed)
        offsets = np.empty((len(frames), num_normalized))
        deviations = frames[:, 0, :num_normalized] - self._seed
        counts = self.num_speech_frames + np.cumsum(is_speech)
        # A mean of all frames so far, up to where memory begins to fade. Sums are taken one by one,
        # in order, so that no cut of the stream shows in their last bits.
        young = int(np.searchsorted(counts, self._memory, side="right"))
        if young:
            steps = np.where(is_speech[:young, None], deviations[:young], 0.0)
            totals = np.add.accumulate(np.concatenate([self._total[None], steps]), axis=0)[1:]
            offsets[:young] = totals / np.maximum(counts[:young, None] + self._prior, 1)
            self._total, self._offset = totals[-1], offsets[young - 1]
        for row in range(young, len(frames)):
            if is_speech[row]:
                step = (deviations[row] - self._offset) / (self._memory + self._prior)
                self._offset = self._offset + step
            offsets[row] = self._offset
        self.num_speech_frames = int(counts[-1])
        normalized = frames.copy()
        normalized[:, 0, :num_normalized] -= offsets
        return normalized
