"""What a training hears of each utterance besides the utterance: the same words, otherwise.

``telephone`` sends it over the public network (300 to 3400 Hz), ``voip`` over the internet, which
keeps what is lower: both at 8 kHz in G.711. ``slow`` and ``fast`` play it at 0.86 to 0.95 and 1.05
to 1.16 of its speed, pitch and all, as another speaker's (a third of them over either network);
``noise`` adds a noise 5 to 25 dB below it, ``room`` plays it in a room. Each utterance has one copy
of a kind, whose draws follow from its id.
"""

from __future__ import annotations

import hashlib

import numpy as np
from scipy.signal import resample_poly

from streamer.arrays import Samples
from train.conditions import Surroundings, by_telephone, in_noise, in_room, sound
from train.corpora import CorpusError, Utterance, read_samples
from train.splits import NUM_FOLDS
from train.telephone import telephone

CHANGED = ("telephone", "slow", "fast", "noise", "room", "voip")
COPIES = ("clean", *CHANGED)
NOISE_CORPUS = "noise"
"""Corpus of the utterances that are noise and nothing else."""

_SPEEDS = {"slow": (0.86, 0.95), "fast": (1.05, 1.16)}
_SNR_DB = (5.0, 25.0)
_TELEPHONE_SHARE = 0.3


def copy_samples(utterance: Utterance, copy: str, surroundings: Surroundings) -> Samples:
    """Return one of COPIES of an utterance, 16 kHz, the same every time.

    Raises:
        CorpusError: the audio cannot be read, or there is no such noise or room.
    """
    if copy not in COPIES:
        raise CorpusError(f"copy {copy!r}: expected one of {', '.join(COPIES)}")
    samples = read_samples(utterance)
    if copy == "clean":
        return samples
    rng = np.random.default_rng([_seed(utterance), COPIES.index(copy)])
    law = int(rng.integers(2))
    if copy == "telephone":
        return by_telephone(samples, law)
    if copy == "voip":
        return telephone(samples, law)
    if copy in _SPEEDS:
        other = _at_another_speed(samples, copy, rng)
        if rng.random() >= _TELEPHONE_SHARE:
            return other
        return telephone(other, law) if rng.random() < 0.5 else by_telephone(other, law)
    if copy == "noise" and surroundings.noises:
        noise = sound(surroundings.noises[noise_of(utterance, surroundings)])
        return in_noise(samples, noise, rng.uniform(*_SNR_DB), int(rng.integers(2**31)))
    if copy == "room" and surroundings.rooms:
        return in_room(samples, sound(surroundings.rooms[rng.integers(len(surroundings.rooms))]))
    raise CorpusError(f"copy {copy!r}: expected the sounds that it is made of")


def played(utterance: Utterance, copy: str) -> Samples:
    """Return what a copy is made of, at the copy's speed: before line, room and noise, 16 kHz.

    Raises:
        CorpusError: the audio cannot be read.
    """
    samples = read_samples(utterance)
    if copy not in _SPEEDS:
        return samples
    rng = np.random.default_rng([_seed(utterance), COPIES.index(copy)])
    rng.integers(2)  # the line's law, which copy_samples draws first
    return _at_another_speed(samples, copy, rng)


def _at_another_speed(samples: Samples, copy: str, rng: np.random.Generator) -> Samples:
    percent = round(100 * rng.uniform(*_SPEEDS[copy]))
    other: Samples = resample_poly(samples, 100, percent).astype(np.float32)
    return other


def noise_of(utterance: Utterance, surroundings: Surroundings) -> int:
    """The place, in the sorted list, of the noise that an utterance's noisy copy has in it."""
    return _seed(utterance) % len(surroundings.noises)


def noise_utterances(surroundings: Surroundings) -> tuple[Utterance, ...]:
    """Noises as utterances of no emotion: windows of them must be told from speech.

    Their ``speaker`` is the fold that they test: nobody trains on his own fold's noises.
    """
    return tuple(
        Utterance(
            path=path,
            corpus=NOISE_CORPUS,
            speaker=str(place % NUM_FOLDS),
            label=None,
            duration_s=0.0,
            emotion="noise",
        )
        for place, path in enumerate(surroundings.noises)
    )


def _seed(utterance: Utterance) -> int:
    return int.from_bytes(hashlib.sha256(utterance.utterance_id.encode()).digest()[:4], "big")
