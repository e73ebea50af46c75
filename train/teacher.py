"""The teacher: a speaker encoder that has heard thousands of people, and what it says of speech.

Resemblyzer's voice encoder (https://github.com/resemble-ai/Resemblyzer, Apache-2.0): three LSTM
layers over 40 mel bands, trained to tell speakers apart (GE2E loss, Wan et al. 2018) on
LibriSpeech, VoxCeleb1 and VoxCeleb2, none of which are among our corpora. To tell voices apart it
has learnt what a voice can do, moods included: its second layer knows more of emotion than its
last. Only the package's file of weights is used, and only to train: nothing of it is in a model
file.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import get_window
from torch import Tensor, nn

from streamer.arrays import Samples
from streamer.errors import ConfigError
from streamer.features import FeatureConfig, triangles
from train.copies import played
from train.corpora import SAMPLE_RATE, Utterance
from train.dataset import audio_key, by_corpus, cache_by_corpus
from train.voice import FRAMES_A_STEP, NUM_STATES

WEIGHTS_SHA256 = "39373b86598fa3da9fcddee6142382efe09777e8d37dc9c0561f41f0070f134e"
INSTALL = "pip install --no-deps resemblyzer==0.1.4"
TEACHER = (
    "Resemblyzer 0.1.4's voice encoder (Apache-2.0), itself trained on LibriSpeech, VoxCeleb1 and "
    "VoxCeleb2"
)

_NUM_MEL = 40
_WINDOW, _HOP = 400, 160
_LEVEL_DB = -30.0
_LAYERS = 2
_CACHE_VERSION = 1

States: TypeAlias = dict[str, NDArray[np.float16]]
"""By utterance id, what the teacher said: (n / 2, 256) for n frames of ours."""


class Teacher:
    """The first two layers of the encoder, on the CPU."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self._lstm = nn.LSTM(_NUM_MEL, NUM_STATES, _LAYERS, batch_first=True)
        self._lstm.load_state_dict(
            {name: weights[f"lstm.{name}"] for name in self._lstm.state_dict()}
        )
        self._mel = slaney_filters(_NUM_MEL, _WINDOW, SAMPLE_RATE)
        self._taper = get_window("hann", _WINDOW).astype(np.float32)

    @classmethod
    def load(cls) -> Teacher:
        """Read the weights of the package where it is installed; the package itself is not run.

        Raises:
            ConfigError: it is not installed, or its weights are others than expected.
        """
        spec = find_spec("resemblyzer")
        places = [] if spec is None else list(spec.submodule_search_locations or ())
        path = Path(places[0], "pretrained.pt") if places else Path("pretrained.pt")
        if not places or not path.is_file():
            raise ConfigError(f"found no teacher to learn from: expected one, by `{INSTALL}`")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != WEIGHTS_SHA256:
            raise ConfigError(f"{path} has SHA-256 {found}: expected {WEIGHTS_SHA256}")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return cls(content["model_state"])

    @torch.no_grad()
    def hear(self, samples: Samples, features: FeatureConfig) -> NDArray[np.float16]:
        """Return its states at every second of our frames: (n,) at 16 kHz to (frames / 2, 256).

        Its own frames are centred; ours are not, and ``features`` says how long they are.
        """
        power = np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
        gain = 10.0 ** (_LEVEL_DB / 20.0) / max(float(power), 1e-6)
        padded = np.pad(np.float32(gain) * samples, _WINDOW // 2)
        frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
        spectrum = np.abs(np.fft.rfft(frames * self._taper)) ** 2
        mel = torch.from_numpy((spectrum @ self._mel.T).astype(np.float32))
        states = self._lstm(mel[None])[0][0].numpy()
        num_frames = 1 + (len(samples) - features.frame_length) // features.frame_shift
        first = features.frame_length // 2 // _HOP
        return np.asarray(states[first : first + num_frames : FRAMES_A_STEP], np.float16)


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


def copy_heard(copy: str) -> str:
    """Which copy the teacher hears when a network hears ``copy``: the same speech, undisturbed."""
    return copy if copy in ("slow", "fast") else "clean"


def cache_states(
    utterances: Sequence[Utterance],
    copy: str,
    features: FeatureConfig,
    cache: Path,
    advance: Callable[[], None] = lambda: None,
) -> list[Path]:
    """Hear what ``cache`` does not know yet; return its files, one a corpus, as it is on disk now.

    ``advance`` is called once an utterance, heard now or known, for a progress bar.

    Raises:
        ConfigError: as :meth:`Teacher.load`.
        CorpusError: audio that cannot be read.
    """
    load = functools.cache(Teacher.load)  # only where something has to be heard
    return cache_by_corpus(
        utterances,
        cache,
        lambda corpus, members: f"{corpus}-{copy}-teacher-{_digest(members, copy, features)}",
        lambda utterance: load().hear(played(utterance, copy), features),
        _pack,
        advance,
    )


def _pack(states: Sequence[NDArray[np.float16]]) -> dict[str, NDArray[Any]]:
    counts = np.array([len(item) for item in states])
    return {"states": np.concatenate(states), "counts": counts}


def load_states(
    utterances: Sequence[Utterance], copy: str, features: FeatureConfig, cache: Path
) -> States:
    """Return what the teacher says of one of the utterances' copies.

    Raises:
        ConfigError, CorpusError: as :func:`cache_states`.
    """
    states: States = {}
    paths = cache_states(utterances, copy, features, cache)
    for path, members in zip(paths, by_corpus(utterances).values(), strict=True):
        with np.load(path) as stored:
            parts = np.split(stored["states"], np.cumsum(stored["counts"])[:-1])
        states |= {item.utterance_id: part for item, part in zip(members, parts, strict=True)}
    return states


def _digest(utterances: Sequence[Utterance], copy: str, features: FeatureConfig) -> str:
    frame = [features.frame_length, features.frame_shift]
    key = json.dumps([_CACHE_VERSION, WEIGHTS_SHA256, copy, frame, audio_key(utterances)])
    return hashlib.sha256(key.encode()).hexdigest()[:16]
