"""Sounds made from a seed: what every test of the signal path can have without real speech."""

from __future__ import annotations

import numpy as np

from streamer.arrays import Samples

SAMPLE_RATE = 16_000


def at_level(samples: np.ndarray, level_dbfs: float) -> Samples:
    """Return samples scaled to an RMS of ``level_dbfs``, clipped at full scale."""
    rms = np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
    scaled = samples * (10.0 ** (level_dbfs / 20.0) / rms)
    return np.clip(scaled, -1.0, 1.0).astype(np.float32)


def silence(duration_s: float) -> Samples:
    """Return digital silence."""
    return np.zeros(round(duration_s * SAMPLE_RATE), np.float32)


def hiss(duration_s: float, level_dbfs: float, seed: int = 0) -> Samples:
    """Return white noise."""
    rng = np.random.default_rng(seed)
    return at_level(rng.standard_normal(round(duration_s * SAMPLE_RATE)), level_dbfs)


def voice(duration_s: float, level_dbfs: float = -25.0, seed: int = 0) -> Samples:
    """Return syllables of a gliding vowel: harmonics of a moving pitch under three resonances.

    Syllables, because a steady sound soon counts as background noise.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(round(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    low_hz, high_hz = rng.uniform(90, 130), rng.uniform(150, 220)
    pitch_hz = low_hz + (high_hz - low_hz) * (0.5 - 0.5 * np.cos(2 * np.pi * 0.7 * time))
    phase = 2 * np.pi * np.cumsum(pitch_hz) / SAMPLE_RATE
    glide = 0.5 + 0.5 * np.sin(2 * np.pi * 1.3 * time)
    samples = np.zeros_like(time)
    for number in range(1, 40):
        harmonic_hz = number * pitch_hz
        gain = np.zeros_like(time)
        for start_hz, end_hz in ((700, 350), (1100, 2200), (2500, 2900)):
            centre_hz = start_hz + (end_hz - start_hz) * glide
            gain += 1.0 / (1.0 + ((harmonic_hz - centre_hz) / 120.0) ** 2)
        samples += gain * np.sin(number * phase)
    syllables = np.sin(np.pi * 4.0 * time + 0.3) ** 2
    return at_level(samples * (0.03 + syllables), level_dbfs)


def golden_audio() -> np.ndarray:
    """Return 1.5 s of 16-bit samples: a glide, hiss, digital silence, a burst that clips."""
    parts = [
        voice(0.6, -20.0, seed=2023),
        hiss(0.3, -50.0, seed=2024),
        silence(0.25),
        hiss(0.05, 0.0, seed=2025),
        voice(0.3, -45.0, seed=2026),
    ]
    return np.rint(np.concatenate(parts) * 32767).astype(np.int16)
