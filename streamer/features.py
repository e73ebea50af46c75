"""MFCC, delta and delta-delta, one stream implementation: offline is the stream fed at once.

26 MFCC from 40 ms Hamming windows every 10 ms (Liu et al. 2023, section 2.1). What the paper leaves
open is fixed here: power spectrum of 1024 points, 40 mel bands on the HTK scale (triangles linear
in Hz, peak 1), natural log with a fixed floor, orthonormal DCT-II, c0 kept, no pre-emphasis, frames
not centred. With ``num_pitch``, rows of :mod:`streamer.pitch` stand below the coefficients. Deltas
are the regression deltas of the HTK book (section 5.9, window 2) with the edge frame replicated at
either end of the stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from streamer.arrays import Frames, Samples
from streamer.errors import AudioError, ConfigError
from streamer.pitch import LOW_HZ, PitchTracker

_BLOCK_FRAMES = 32
"""Frames transformed at once: what fits the cache, a third of the time of 256 at once."""


@dataclass(frozen=True, kw_only=True)
class FeatureConfig:
    """What a feature vector is; part of the card, because a model hears nothing else.

    Raises:
        ConfigError: a band edge above the Nyquist frequency, or a size that is not positive.
    """

    sample_rate: int = 16000
    frame_length: int = 640
    frame_shift: int = 160
    fft_length: int = 1024
    num_mel: int = 40
    num_ceps: int = 26
    mel_low_hz: float = 20.0
    mel_high_hz: float = 7600.0
    energy_floor: float = 1e-10
    delta_window: int = 2
    num_pitch: int = 0
    """Rows under the coefficients: 0; 2, pitch and voicing; 3, pitch once more.

    Channel normalisation makes the first one relative to the speaker; the third is left as it is.
    """

    def __post_init__(self) -> None:
        if not 0 <= self.mel_low_hz < self.mel_high_hz <= self.sample_rate / 2:
            raise ConfigError(
                f"mel range {self.mel_low_hz:g}-{self.mel_high_hz:g} Hz: expected "
                f"0 <= low < high <= {self.sample_rate / 2:g} Hz"
            )
        if not 0 < self.frame_shift <= self.frame_length <= self.fft_length:
            raise ConfigError(
                f"frame shift {self.frame_shift}, length {self.frame_length}, FFT "
                f"{self.fft_length}: expected 0 < shift <= length <= FFT"
            )
        if not 0 < self.num_ceps <= self.num_mel or self.delta_window < 1:
            raise ConfigError(
                f"{self.num_ceps} coefficients of {self.num_mel} bands, delta window "
                f"{self.delta_window}: expected 0 < coefficients <= bands and a window of 1 or more"
            )
        if self.num_pitch not in (0, 2, 3):
            raise ConfigError(f"{self.num_pitch} pitch rows: expected 0, 2 or 3")
        if self.num_pitch and self.sample_rate / LOW_HZ + 2 > self.fft_length - self.frame_length:
            raise ConfigError(
                f"an FFT of {self.fft_length} for frames of {self.frame_length} samples: expected "
                f"{self.sample_rate / LOW_HZ:.0f} more than the frame, the longest pitch period"
            )
        if not 0 < self.energy_floor < float("inf"):
            raise ConfigError(
                f"energy floor of {self.energy_floor:g}: expected a positive, finite number"
            )

    def count_frames(self, num_samples: int) -> int:
        """Frames that so many samples hold."""
        return max(0, (num_samples - self.frame_length) // self.frame_shift + 1)

    @property
    def num_rows(self) -> int:
        """Numbers of one frame, and of its delta, and of its delta-delta."""
        return self.num_ceps + self.num_pitch

    @property
    def num_channel_rows(self) -> int:
        """Rows that a channel's mean is taken from: the coefficients and the first of pitch."""
        return self.num_ceps + (self.num_pitch > 0)

    @property
    def frame_shift_s(self) -> float:
        """Seconds from one frame's first sample to the next frame's."""
        return self.frame_shift / self.sample_rate

    @property
    def look_ahead_s(self) -> float:
        """Seconds of audio after a frame's own that its delta-delta waits for (40 ms)."""
        return 2 * self.delta_window * self.frame_shift_s


def hz_to_mel(hz: NDArray[np.float64]) -> NDArray[np.float64]:
    """Hertz to mel, HTK book section 5.4: 2595 log10(1 + f / 700)."""
    return 2595.0 * np.log10(1.0 + hz / 700.0)


def mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mel to hertz: the inverse of :func:`hz_to_mel`."""
    return 700.0 * (10.0 ** (mel / 2595.0) - 1.0)


@lru_cache(maxsize=8)
def mel_filters(config: FeatureConfig) -> NDArray[np.float64]:
    """Triangular filters, shape (num_mel, fft_length // 2 + 1), each with a peak of 1."""
    low_mel, high_mel = hz_to_mel(np.array([config.mel_low_hz, config.mel_high_hz]))
    edges = mel_to_hz(np.linspace(low_mel, high_mel, config.num_mel + 2))
    return triangles(edges, np.fft.rfftfreq(config.fft_length, 1.0 / config.sample_rate))


def triangles(edges: NDArray[np.float64], hz: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """At frequencies (n,), triangles from each of the edges to the second one after it, peak 1.

    Edges (m + 2,) give m of them: (m, n).
    """
    rising = (hz - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - hz) / (edges[2:] - edges[1:-1])[:, None]
    result: NDArray[np.float64] = np.maximum(0.0, np.minimum(rising, falling))
    return result


@lru_cache(maxsize=8)
def _sparse_bands(
    config: FeatureConfig,
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.intp]]:
    """The filters' non-zero bins, their weights, and where each band begins among them."""
    filters = mel_filters(config)
    counts = np.count_nonzero(filters, axis=1)
    if not counts.all():
        raise ConfigError(
            f"mel band {int(np.argmin(counts))} of {config.num_mel} holds no FFT bin: expected "
            "fewer bands, a wider range or a longer FFT"
        )
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    return np.nonzero(filters)[1], filters[filters > 0], starts


class FeatureStream:
    """Samples in, feature vectors out, each computed once.

    Frame number ``i`` covers samples ``[i * frame_shift, i * frame_shift + frame_length)`` and
    comes out once the frames of its deltas' look-ahead are there. Any cut of the same samples gives
    the same bits: no operation here mixes rows, as a BLAS product would in its last digits.
    """

    def __init__(self, config: FeatureConfig) -> None:
        self.config = config
        self.num_frames_computed = 0
        """Static frames computed since the start: equal to the frames that the audio holds."""
        self._tail = np.zeros(0, np.float64)
        self._taper = np.hamming(config.frame_length)
        self._bands = _sparse_bands(config)
        self._pitch = (
            PitchTracker(self._taper, config.fft_length, config.sample_rate)
            if config.num_pitch
            else None
        )
        self._delta = _DeltaStream(config.delta_window, config.num_rows)
        self._delta_delta = _DeltaStream(config.delta_window, config.num_rows)
        self._static_waiting = np.zeros((0, config.num_rows), np.float64)
        self._delta_waiting = np.zeros((0, config.num_rows), np.float64)

    def receive(self, samples: Samples) -> Frames:
        """Take audio and return the frames that it completes.

        Args:
            samples: mono audio at ``config.sample_rate``, shape (n,), any n.

        Returns:
            Frames of shape (m, 3, num_rows): MFCC (and pitch), delta, delta-delta.

        Raises:
            AudioError: not one-dimensional.
        """
        if samples.ndim != 1:
            raise AudioError(f"samples of shape {samples.shape}: expected one dimension")
        return self._emit(self._static_frames(samples), last=False)

    def flush(self) -> Frames:
        """Return the last frames, their look-ahead replaced by the edge frame; ends the stream."""
        return self._emit(np.zeros((0, self.config.num_rows), np.float64), last=True)

    def _static_frames(self, samples: Samples) -> NDArray[np.float64]:
        config = self.config
        audio = np.concatenate([self._tail, samples.astype(np.float64)])
        num_frames = config.count_frames(len(audio))
        self._tail = audio[num_frames * config.frame_shift :].copy()
        self.num_frames_computed += num_frames
        if num_frames == 0:
            return np.zeros((0, config.num_rows), np.float64)
        cuts = np.lib.stride_tricks.sliding_window_view(audio, config.frame_length)
        cuts = cuts[:: config.frame_shift][:num_frames]
        blocks = [
            self._rows(cuts[first : first + _BLOCK_FRAMES])
            for first in range(0, num_frames, _BLOCK_FRAMES)
        ]
        return np.concatenate(blocks)

    def _rows(self, cuts: NDArray[np.float64]) -> NDArray[np.float64]:
        """One row a frame: its coefficients, then its pitch."""
        spectrum = scipy.fft.rfft(cuts * self._taper, self.config.fft_length, axis=1)
        power = spectrum.real**2 + spectrum.imag**2
        bins, weights, starts = self._bands
        energy = np.add.reduceat(power[:, bins] * weights, starts, axis=1)
        log_energy = np.log(np.maximum(energy, self.config.energy_floor))
        ceps = scipy.fft.dct(log_energy, type=2, norm="ortho", axis=1)
        ceps = ceps[:, : self.config.num_ceps]
        if self._pitch is None:
            return np.ascontiguousarray(ceps)
        pitch = self._pitch.receive(power)
        return np.concatenate([ceps, pitch, pitch[:, : self.config.num_pitch - 2]], axis=1)

    def _emit(self, static: NDArray[np.float64], *, last: bool) -> Frames:
        delta = self._delta.receive(static, last=last)
        delta_delta = self._delta_delta.receive(delta, last=last)
        static = np.concatenate([self._static_waiting, static])
        delta = np.concatenate([self._delta_waiting, delta])
        ready = len(delta_delta)
        self._static_waiting, self._delta_waiting = static[ready:], delta[ready:]
        return np.stack([static[:ready], delta[:ready], delta_delta], axis=1).astype(np.float32)


class _DeltaStream:
    """Regression deltas of one stream (HTK book, Eq. 5.16), ``window`` frames behind its input."""

    def __init__(self, window: int, num_rows: int) -> None:
        self._window = window
        self._context = np.zeros((0, num_rows), np.float64)
        self._norm = 2.0 * sum(n * n for n in range(1, window + 1))

    def receive(self, rows: NDArray[np.float64], *, last: bool) -> NDArray[np.float64]:
        window = self._window
        if len(self._context) == 0 and len(rows):
            self._context = np.repeat(rows[:1], window, axis=0)
        rows = np.concatenate([self._context, rows])
        if last and len(rows):
            rows = np.concatenate([rows, np.repeat(rows[-1:], window, axis=0)])
        num_out = len(rows) - 2 * window
        if num_out <= 0:
            self._context = rows
            return np.zeros((0, rows.shape[1]), np.float64)
        self._context = rows[num_out:].copy()
        slope = np.zeros((num_out, rows.shape[1]), np.float64)
        for n in range(1, window + 1):
            ahead = rows[window + n : window + n + num_out]
            behind = rows[window - n : window - n + num_out]
            slope += n * (ahead - behind)
        return slope / self._norm
