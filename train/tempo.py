"""The same voice at another tempo, its pitch and formants as they were.

Waveform similarity overlap-add (WSOLA, Verhelst and Roelands 1993): short pieces follow each other
closer or further apart than they were, each taken from where it continues best what was laid
before.
"""

from __future__ import annotations

import numpy as np

from streamer.arrays import Samples

_PIECE = 640  # 40 ms at 16 kHz
_HOP = _PIECE // 2
_SEARCH = 160  # 10 ms to either side: a period of the lowest voice's


def change_tempo(samples: Samples, tempo: float) -> Samples:
    """Play samples (n,), 16 kHz, at ``tempo`` times their own: (about n / tempo,)."""
    if len(samples) < 2 * _PIECE:
        return samples
    num_pieces = max(1, int((len(samples) / tempo - _PIECE) // _HOP) + 1)
    padded = np.pad(samples, (_SEARCH, _PIECE + _HOP + 2 * _SEARCH))
    fade = np.hanning(_PIECE + 1)[:_PIECE].astype(np.float32)
    out = np.zeros((num_pieces - 1) * _HOP + _PIECE, np.float32)
    energies = np.concatenate([[0.0], np.cumsum(np.square(padded, dtype=np.float64))])
    follows = 0  # where in padded what was laid last would go on
    for piece in range(num_pieces):
        middle = min(round(piece * _HOP * tempo), len(samples) - 1)  # padded: of the search's begin
        start = middle + _SEARCH
        if piece:
            lags = padded[middle : middle + 2 * _SEARCH + _PIECE]
            likeness = np.correlate(lags, padded[follows : follows + _PIECE], "valid")
            ends = middle + np.arange(len(likeness))
            energy = energies[ends + _PIECE] - energies[ends]
            start = middle + int(np.argmax(likeness / np.sqrt(energy + 1e-6)))
        out[piece * _HOP :][:_PIECE] += fade * padded[start : start + _PIECE]
        follows = min(start + _HOP, len(padded) - _PIECE)
    out[:_HOP] += (1.0 - fade[:_HOP]) * padded[_SEARCH : _SEARCH + _HOP]
    return out
