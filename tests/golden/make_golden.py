"""Make the golden arrays with an outside witness, librosa, which shares no code with ours.

Run from the root, in an environment that has the ``golden`` extra:

    python -m tests.golden.make_golden

It writes ``features.npz``: ``audio`` (16-bit samples) and, for each mel range, frames of shape
(num_frames, 3, 26).
"""

from __future__ import annotations

from pathlib import Path

import librosa
import numpy as np
from numpy.typing import NDArray

from tests.golden.synthetic import SAMPLE_RATE, golden_audio

MEL_RANGES_HZ = {"wide": (20.0, 7600.0), "narrow": (60.0, 3800.0)}
FRAME_LENGTH, FRAME_SHIFT, FFT_LENGTH = 640, 160, 1024


def frames(audio: NDArray[np.float64], low_hz: float, high_hz: float) -> NDArray[np.float32]:
    """Return MFCC, delta and delta-delta as librosa has them, shape (num_frames, 3, 26)."""
    # librosa puts a 640-sample window in the middle of the FFT's 1024: 192 samples in.
    margin = (FFT_LENGTH - FRAME_LENGTH) // 2
    place = np.arange(FRAME_LENGTH)
    hamming = 0.54 - 0.46 * np.cos(2 * np.pi * place / (FRAME_LENGTH - 1))
    spectrum = librosa.stft(
        np.pad(audio, margin),
        n_fft=FFT_LENGTH,
        hop_length=FRAME_SHIFT,
        win_length=FRAME_LENGTH,
        window=hamming,
        center=False,
        dtype=np.complex128,
    )
    filters = librosa.filters.mel(
        sr=SAMPLE_RATE,
        n_fft=FFT_LENGTH,
        n_mels=40,
        fmin=low_hz,
        fmax=high_hz,
        htk=True,
        norm=None,
        dtype=np.float64,
    )
    log_energy = np.log(np.maximum(filters @ np.abs(spectrum) ** 2, 1e-10))
    mfcc = librosa.feature.mfcc(S=log_energy, n_mfcc=26, dct_type=2, norm="ortho")
    delta = librosa.feature.delta(mfcc, width=5, mode="nearest")
    delta_delta = librosa.feature.delta(delta, width=5, mode="nearest")
    return np.stack([mfcc, delta, delta_delta]).transpose(2, 0, 1).astype(np.float32)


def main() -> None:
    """Write ``features.npz`` beside this script."""
    audio = golden_audio()
    made = {
        name: frames(audio / 32768.0, low_hz, high_hz)
        for name, (low_hz, high_hz) in MEL_RANGES_HZ.items()
    }
    np.savez_compressed(Path(__file__).with_name("features.npz"), audio=audio, **made)


if __name__ == "__main__":
    main()
