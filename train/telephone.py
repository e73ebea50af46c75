"""A telephone line: 8 kHz and G.711."""

from __future__ import annotations

import numpy as np

from streamer.arrays import Samples
from streamer.audio import AudioFormat, Decoder, Encoding, Resampler, encode_alaw, encode_mulaw


def telephone(samples: Samples, seed: int) -> Samples:
    """Return 16 kHz audio as a telephone would deliver it: 8 kHz, A-law or (odd seeds) mu-law."""
    narrow = Resampler(16000, 8000)
    samples = np.concatenate([narrow.receive(samples), narrow.flush()])
    encoding: Encoding = "mulaw" if seed % 2 else "alaw"
    encode = encode_mulaw if seed % 2 else encode_alaw
    decoder = Decoder(AudioFormat(encoding=encoding, sample_rate=8000, channels=1))
    parts = decoder.receive(encode(np.clip(samples, -1.0, 1.0))) + decoder.receive_end()
    return np.concatenate([part for _, part in parts])
