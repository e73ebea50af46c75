"""What the teacher hears of a sound: power spectra of 25 ms every 10 ms, in Slaney's mel bands."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import get_window

from streamer.arrays import Samples
from streamer.features import triangles
from train.corpora import SAMPLE_RATE

WINDOW, HOP = 400, 160


def mel_spectrogram(samples: Samples, num_mel: int) -> NDArray[np.float64]:
    """Power in mel bands of frames centred on every 10 ms: (n,) at 16 kHz to (n / 160 + 1, bands).

    Before the first sample and after the last the sound is mirrored.
    """
    padded = np.pad(samples, WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP]
    spectrum = np.abs(np.fft.rfft(frames * get_window("hann", WINDOW))) ** 2
    power: NDArray[np.float64] = spectrum @ slaney_filters(num_mel, WINDOW, SAMPLE_RATE).T
    return power


def slaney_filters(num_mel: int, size: int, rate: int) -> NDArray[np.float64]:
    """Triangles on Slaney's mel scale (Auditory Toolbox, 1998), each of area 1: (num_mel, bins).

    Linear to 1 kHz, then 27 bands to the factor 6.4.
    """
    per_octave = np.log(6.4) / 27.0
    top = 15.0 + np.log(rate / 2.0 / 1000.0) / per_octave
    mels = np.linspace(0.0, top, num_mel + 2)
    edges = np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * np.exp((mels - 15.0) * per_octave))
    filters = triangles(edges, np.fft.rfftfreq(size, 1.0 / rate))
    return filters * (2.0 / (edges[2:] - edges[:-2]))[:, None]
