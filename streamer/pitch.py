"""Pitch and voicing of each frame: what a cepstrum throws away and a voice tells.

The autocorrelation of a tapered frame over that of the taper (Boersma 1993, section 2), which costs
one more inverse FFT of the power spectrum that the MFCCs need anyway. The strongest local maximum
between 65 and 500 Hz is the pitch, its height the voicing.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import scipy.fft
from numpy.typing import NDArray

_Rows: TypeAlias = NDArray[np.float64]

LOW_HZ = 65.0
HIGH_HZ = 500.0
_REFERENCE_HZ = 100.0
_VOICED = 0.5
"""Voicing from which on a frame's pitch is believed; below it the last one is held."""
_START_HZ = 157.0
"""Pitch before anything was voiced: between men's and women's."""
_OCTAVE_COST = 0.02
"""Taken from a candidate for each octave under HIGH_HZ: of equal peaks the shortest lag wins."""


class PitchTracker:
    """Power spectra of one stream's frames in, pitch and voicing out; it looks at no later frame.

    Args:
        taper: the window that frames are multiplied with before their FFT, shape (frame_length,).
        fft_length: of that FFT, in samples.
        sample_rate: in Hz.
    """

    def __init__(self, taper: NDArray[np.float64], fft_length: int, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._first_lag = int(sample_rate / HIGH_HZ)
        self._last_lag = int(sample_rate / LOW_HZ)
        spectrum = scipy.fft.rfft(taper, 2 * fft_length)
        own = scipy.fft.irfft(spectrum.real**2 + spectrum.imag**2)[: self._last_lag + 2]
        self._taper_correlation = own / own[0]
        lags = np.arange(self._first_lag, self._last_lag + 1)
        self._cost = _OCTAVE_COST * np.log2(lags / self._first_lag)
        self._num_rumble_bins = int(np.ceil(0.9 * LOW_HZ * fft_length / sample_rate))
        self._held = 12.0 * np.log2(_START_HZ / _REFERENCE_HZ)

    def receive(self, power: _Rows) -> _Rows:
        """Take the next frames' power spectra, shape (n, fft_length // 2 + 1).

        Returns:
            Shape (n, 2): semitones above 100 Hz, held from the last voiced frame where one is not;
            and voicing, 0 to 1.
        """
        power = power.copy()
        power[:, : self._num_rumble_bins] = 0.0
        correlation = scipy.fft.irfft(power, axis=1)[:, : self._last_lag + 2]
        loudness = correlation[:, :1] + 1e-9 * len(self._taper_correlation)
        correlation = correlation / loudness / self._taper_correlation
        lag, voicing = self._strongest(correlation)
        semitones = 12.0 * np.log2(self._sample_rate / lag / _REFERENCE_HZ)
        return np.stack([self._hold(semitones, voicing), voicing], axis=1)

    def _strongest(self, correlation: _Rows) -> tuple[_Rows, _Rows]:
        """Lag and height of the best local maximum, each by a parabola through three points.

        The height too: a peak between two samples would lose to one an octave lower that is not.
        """
        first, last = self._first_lag, self._last_lag
        before, peak, after = (
            correlation[:, first + step : last + 1 + step] for step in (-1, 0, 1)
        )
        is_peak = (peak >= before) & (peak >= after)
        curve = np.minimum(before - 2.0 * peak + after, -1e-12)
        shift = np.clip(0.5 * (before - after) / curve, -0.5, 0.5)
        height = np.clip(peak - 0.25 * (before - after) * shift, 0.0, 1.0)
        best = np.where(is_peak, height - self._cost, -1.0).argmax(axis=1)
        row = np.arange(len(best))
        voicing = np.where(is_peak[row, best], height[row, best], 0.0)
        return best + first + shift[row, best], voicing

    def _hold(self, semitones: _Rows, voicing: _Rows) -> _Rows:
        if not len(semitones):
            return semitones
        place = np.where(voicing > _VOICED, np.arange(len(semitones)), -1)
        place = np.maximum.accumulate(place)
        held = np.where(place >= 0, semitones[np.maximum(place, 0)], self._held)
        self._held = float(held[-1])
        return held
