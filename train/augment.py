"""More speakers, rates, rooms and levels out of few: changes of a window's frames, drawn anew.

All of them act on MFCC, delta and delta-delta alike, so an epoch never touches audio:

* ``warp``: vocal tract length perturbation (Jaitly and Hinton 2013). The mel axis is stretched by a
  factor of 1 +- ``warp``; between truncated cepstra that is a matrix, so deltas take the same one.
* ``stretch``: the time axis, by a factor of 1 +- ``stretch``; deltas shrink with it.
* ``tilt``: a constant added to the MFCCs, one draw a coefficient, as a channel's response adds it.
* ``level_db``: the same for loudness: a change by ``x`` dB moves c0 alone.
* ``num_masks``: SpecAugment (Park et al. 2019) over time: stretches of up to ``mask_frames`` frames
  are replaced by the window's mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from streamer.arrays import Frames
from streamer.errors import ConfigError
from streamer.features import FeatureConfig, hz_to_mel, mel_to_hz

_WARP_STEPS = 12


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """How strong each change is; 0 turns it off.

    Raises:
        ConfigError: a strength out of range.
    """

    warp: float = 0.0
    stretch: float = 0.0
    tilt: float = 0.0
    level_db: float = 0.0
    num_masks: int = 0
    mask_frames: int = 25

    def __post_init__(self) -> None:
        if not (0 <= self.warp < 0.5 and 0 <= self.stretch < 0.5):
            raise ConfigError(
                f"warp {self.warp:g}, stretch {self.stretch:g}: expected 0 or more, less than 0.5"
            )
        if min(self.tilt, self.level_db, self.num_masks) < 0 or self.mask_frames < 1:
            raise ConfigError(
                f"tilt {self.tilt:g}, level {self.level_db:g} dB, {self.num_masks} masks of "
                f"{self.mask_frames} frames: expected 0 or more, masks of 1 frame or more"
            )


def augment_frames(
    frames: Frames, config: AugmentConfig, features: FeatureConfig, rng: np.random.Generator
) -> Frames:
    """Return a changed copy of a span's frames, (n, 3, num_ceps); ``stretch`` changes n."""
    if config.stretch:
        frames = stretch_time(frames, 1.0 + rng.uniform(-config.stretch, config.stretch))
    if config.warp:
        step = int(rng.integers(-_WARP_STEPS, _WARP_STEPS + 1))
        factor = 1.0 + config.warp * step / _WARP_STEPS
        frames = frames @ warp_matrix(features, factor).T
    else:
        frames = frames.copy()
    if config.tilt:
        frames[:, 0] += config.tilt * rng.standard_normal(frames.shape[2], np.float32)
    if config.level_db:
        frames[:, 0, 0] += level_shift(rng.uniform(-config.level_db, config.level_db), features)
    for _ in range(config.num_masks):
        length = int(rng.integers(0, config.mask_frames + 1))
        start = int(rng.integers(0, max(1, len(frames) - length)))
        frames[start : start + length] = frames.mean(axis=0)
    return frames


def level_shift(level_db: float, features: FeatureConfig) -> float:
    """What ``level_db`` more loudness adds to c0 of an orthonormal DCT of log powers."""
    return level_db * math.sqrt(features.num_mel) * math.log(10.0) / 10.0


def stretch_time(frames: Frames, factor: float) -> Frames:
    """Make frames ``factor`` times as many: slower speech, whose deltas are as much smaller."""
    num_out = max(1, round(len(frames) * factor))
    place = np.linspace(0, len(frames) - 1, num_out)
    left = np.floor(place).astype(np.intp)
    right = np.minimum(left + 1, len(frames) - 1)
    share = (place - left).astype(np.float32)[:, None, None]
    scale = np.array([1.0, 1.0 / factor, 1.0 / factor**2], np.float32)[:, None]
    stretched: Frames = (frames[left] * (1 - share) + frames[right] * share) * scale
    return stretched


@lru_cache(maxsize=64)
def warp_matrix(features: FeatureConfig, factor: float) -> NDArray[np.float32]:
    """Matrix (num_ceps, num_ceps): what stretching the frequency axis does to cepstra.

    Cepstra to log mel energies, those read at warped centre frequencies, and back. Past the top
    band its value is held.
    """
    num_mel, num_ceps = features.num_mel, features.num_ceps
    low, high = hz_to_mel(np.array([features.mel_low_hz, features.mel_high_hz]))
    centres = np.linspace(low, high, num_mel + 2)[1:-1]
    wanted = hz_to_mel(mel_to_hz(centres) * factor)
    to_mel = scipy.fft.idct(np.eye(num_mel)[:num_ceps], type=2, norm="ortho", axis=1)
    warped = np.stack([np.interp(wanted, centres, row) for row in to_mel])
    back = scipy.fft.dct(warped, type=2, norm="ortho", axis=1)[:, :num_ceps]
    matrix: NDArray[np.float32] = back.T.astype(np.float32)
    return matrix
