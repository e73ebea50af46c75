"""How an utterance sounds on its way to us: clean, by telephone, in noise, in a room.

Every choice (which noise, which room, which of G.711's laws) follows from the utterance's id, so
an utterance sounds the same in every evaluation.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, fftconvolve, sosfilt

from streamer.arrays import Samples
from train.corpora import SAMPLE_RATE, CorpusError, Utterance, read_samples
from train.splits import NUM_FOLDS
from train.telephone import telephone

SNR_DB = {"noise20": 20.0, "noise10": 10.0, "noise0": 0.0}
CONDITIONS = ("clean", "telephone", *SNR_DB, "room")
TELEPHONE_BAND_HZ = (300.0, 3400.0)
_FOLDERS = ("esc10", "rir")
_ACTIVE_DB = 30.0  # a block is speech if it is within so much of the loudest


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """Noises and room responses on disk: ``aux/esc10/flac`` and ``aux/rir/flac``, sorted."""

    noises: tuple[Path, ...] = ()
    rooms: tuple[Path, ...] = ()

    @classmethod
    def find(cls, aux: Path) -> Surroundings:
        """Look for them under ``aux``; what is not there is left empty."""
        noises, rooms = (tuple(sorted((aux / name / "flac").glob("*.flac"))) for name in _FOLDERS)
        return cls(noises=noises, rooms=rooms)

    def noises_of(self, fold: int | None) -> tuple[Path, ...]:
        """Return the noises that test fold ``fold``: no network of that fold has trained on them.

        They are those whose place in the sorted list is the fold, modulo 5; None is all.
        """
        if fold is None:
            return self.noises
        return self.noises[fold % NUM_FOLDS :: NUM_FOLDS]

    def allow(self, condition: str) -> bool:
        """Tell whether a condition can be made from what is here."""
        if condition in SNR_DB:
            return len(self.noises) >= NUM_FOLDS
        return condition != "room" or bool(self.rooms)


@lru_cache(maxsize=64)
def sound(path: Path) -> Samples:
    """Read any sound as 16 kHz mono, shape (n,).

    Raises:
        CorpusError: it cannot be read.
    """
    return read_samples(
        Utterance(path=path, corpus=path.parent.name, speaker="", label=None, duration_s=0.0)
    )


def condition_samples(
    utterance: Utterance,
    condition: str,
    surroundings: Surroundings | None = None,
    fold: int | None = None,
) -> Samples:
    """Return an utterance's samples as they sound in one of CONDITIONS, the same every time.

    ``telephone``: 300 to 3400 Hz, 8 kHz, G.711 of either law. ``noise20`` and the like: a noise of
    ``fold`` at so many dB below the speech. ``room``: through one of the room responses, as loud
    as before.

    Raises:
        CorpusError: the audio cannot be read, or the condition needs sounds that are not there.
    """
    samples = read_samples(utterance)
    if condition == "clean":
        return samples
    digest = hashlib.sha256(utterance.utterance_id.encode()).digest()
    if condition == "telephone":
        return by_telephone(samples, digest[0])
    surroundings = surroundings or Surroundings()
    if condition not in CONDITIONS or not surroundings.allow(condition):
        raise CorpusError(f"condition {condition!r}: expected the sounds that it is made of")
    if condition == "room":
        return in_room(samples, sound(surroundings.rooms[digest[1] % len(surroundings.rooms)]))
    noises = surroundings.noises_of(fold)
    noise = sound(noises[int.from_bytes(digest[1:3], "big") % len(noises)])
    return in_noise(samples, noise, SNR_DB[condition], int.from_bytes(digest[3:7], "big"))


def by_telephone(samples: Samples, seed: int) -> Samples:
    """Return 16 kHz audio as a telephone delivers it: 300 to 3400 Hz, 8 kHz, G.711; at 16 kHz."""
    narrow: Samples = sosfilt(_telephone_band(), samples).astype(np.float32)
    return telephone(narrow, seed)


@lru_cache(maxsize=1)
def _telephone_band() -> NDArray[np.float64]:
    sections: NDArray[np.float64] = butter(
        4, TELEPHONE_BAND_HZ, "bandpass", fs=SAMPLE_RATE, output="sos"
    )
    return sections


def in_noise(samples: Samples, noise: Samples, snr_db: float, seed: int) -> Samples:
    """Add a stretch of noise, repeated where it is too short, ``snr_db`` below the speech itself.

    The speech's power is that of its active 20 ms blocks, so that silence around it does not count;
    the noise's that of the whole clip, which may be one bark in five seconds.
    """
    start = seed % max(1, len(noise))
    stretch = noise[(start + np.arange(len(samples))) % len(noise)]
    power = max(float(np.mean(noise.astype(np.float64) ** 2)), 1e-12)
    gain = np.sqrt(active_power(samples) / power / 10.0 ** (snr_db / 10.0))
    return _within_full_scale(samples + np.float32(gain) * stretch)


def in_room(samples: Samples, response: Samples) -> Samples:
    """Play samples through a room response, from its direct sound on; as loud as before."""
    wet = fftconvolve(samples, response[int(np.argmax(np.abs(response))) :])
    gain = np.sqrt(active_power(samples) / max(active_power(wet), 1e-12))
    return _within_full_scale((gain * wet).astype(np.float32))


def active_power(samples: Samples) -> float:
    """Mean power of the 20 ms blocks that are within 30 dB of the loudest."""
    length = SAMPLE_RATE // 50
    blocks = samples[: len(samples) // length * length].reshape(-1, length).astype(np.float64)
    if not len(blocks):
        return 1e-12
    powers = (blocks**2).mean(axis=1)
    return max(float(powers[powers >= powers.max() / 10.0 ** (_ACTIVE_DB / 10.0)].mean()), 1e-12)


def _within_full_scale(samples: Samples) -> Samples:
    """Turn down what would clip: speech and noise alike, so their ratio stays."""
    within: Samples = samples / max(np.float32(1.0), np.abs(samples).max(initial=0.0))
    return within
