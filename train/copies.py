"""What a training hears of each utterance besides the utterance: the same words, otherwise.

``telephone`` sends it over the public network (300 to 3400 Hz), ``voip`` over the internet, which
keeps what is lower: both at 8 kHz in G.711. ``slow`` and ``fast`` play it at 0.86 to 0.95 and 1.05
to 1.16 of its speed, pitch and all, as another speaker's (a third of them over either network);
``noise`` adds a noise 5 to 25 dB below it, ``room`` plays it in a room. VOICES are further from who
spoke: pitch and formants at 0.78 to 1.28 of theirs, and a tempo of its own, 0.8 to 1.25 (a third of
them over a network, too). Nobody knows whether that still sounds as what was felt, so labels go
with none of them; what a teacher says of them is as true as of any other voice. Each utterance has
one copy of a kind, whose draws follow from its id.
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
from train.tempo import change_tempo

CHANGED = ("telephone", "slow", "fast", "noise", "room", "voip")
VOICES = ("voice1", "voice2", "voice3", "voice4")
"""Copies for a voice encoder alone; see ``train.distill``."""
COPIES = ("clean", *CHANGED, *VOICES)
NOISE_CORPUS = "noise"
"""Corpus of the utterances that are noise and nothing else."""

_SPEEDS = {"slow": (0.86, 0.95), "fast": (1.05, 1.16)}
ANOTHERS = (*_SPEEDS, *VOICES)
"""Copies that are another voice's, before line, room and noise."""

_PITCHES, _TEMPI = (0.78, 1.28), (0.8, 1.25)
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
    if copy in ANOTHERS:
        other = _in_another_voice(samples, copy, rng)
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
    if copy not in ANOTHERS:
        return samples
    rng = np.random.default_rng([_seed(utterance), COPIES.index(copy)])
    rng.integers(2)  # the line's law, which copy_samples draws first
    return _in_another_voice(samples, copy, rng)


def _in_another_voice(samples: Samples, copy: str, rng: np.random.Generator) -> Samples:
    if copy in _SPEEDS:
        return _at_speed(samples, rng.uniform(*_SPEEDS[copy]))
    pitch, tempo = (np.exp(rng.uniform(*np.log(bounds))) for bounds in (_PITCHES, _TEMPI))
    return change_tempo(_at_speed(samples, pitch), tempo / pitch)


def _at_speed(samples: Samples, speed: float) -> Samples:
    """Play samples at so many times their speed, to a hundredth."""
    other: Samples = resample_poly(samples, 100, round(100 * speed)).astype(np.float32)
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
