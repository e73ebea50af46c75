"""The teacher: an ear that has heard the world speak, and what it says of speech.

Smart Turn v3.2 (https://github.com/pipecat-ai/smart-turn, BSD-2-Clause), which hears from words and
melody whether somebody has finished: the encoder of Whisper tiny (Radford et al. 2022, MIT; 680,000
hours of speech in some hundred languages), trained further on turns of two dozen of them. Nobody
told it an emotion, nor are our corpora among what it is said to have heard. Its second layer of
four knows more of emotion than the others, and than any other network that we have tried: how a
thing is said has to be heard before what is said can be written. Only the package's file of weights
is used, and only to train: nothing of it is in a model file.
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
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx.utils import Extractor

from streamer.arrays import Samples
from streamer.errors import ConfigError
from streamer.features import FeatureConfig
from train.can_config import FRAMES_A_STEP
from train.copies import ANOTHERS, played
from train.corpora import Utterance
from train.dataset import audio_key, by_corpus, cache_by_corpus
from train.spectrum import HOP, mel_spectrogram

PACKAGE, WEIGHTS = "pipecat", "audio/turn/smart_turn/data/smart-turn-v3.2-cpu.onnx"
WEIGHTS_SHA256 = "2bb026316b14a660486a75b1733cd3fbab8c2fd0314dc9af7be49f8cca967e4f"
INSTALL = "pip install --no-deps pipecat-ai==1.14.0"
TEACHER = "the encoder of Smart Turn 3.2 (BSD-2-Clause), which is that of Whisper tiny (MIT)"

NUM_TOLD = 384
"""Channels of its layers: what it says of a step."""

_NUM_MEL = 80
_OWN_STEP = 2 * HOP  # its second convolution has a stride of 2
_OWN_IN_A_STEP = 2
_PIECE = 400  # of its own steps: 8 s at once, which what is shorter ends
_PIECE_SAMPLES = _PIECE * _OWN_STEP
_SEEN_AROUND = 25
"""Of its own steps: what a piece of longer speech must have heard before and after one."""
_INPUT, _SECOND_LAYER = "input_features", "add_268"
_CACHE_VERSION = 2

States: TypeAlias = dict[str, NDArray[np.float16]]
"""By utterance id, what was said of it: (n / 4, 384) for n frames of ours."""


class Teacher:
    """The encoder up to its second layer, on the CPU."""

    def __init__(self, model: onnx.ModelProto) -> None:
        """Take its graph, from Whisper's features to the second layer."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    @classmethod
    def load(cls) -> Teacher:
        """Read the weights of the package where it is installed; the package itself is not run.

        Raises:
            ConfigError: it is not installed, or its weights are others than expected.
        """
        spec = find_spec(PACKAGE)
        places = [] if spec is None else list(spec.submodule_search_locations or ())
        path = Path(places[0], WEIGHTS) if places else Path(WEIGHTS)
        if not places or not path.is_file():
            raise ConfigError(f"found no teacher to learn from: expected one, by `{INSTALL}`")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != WEIGHTS_SHA256:
            raise ConfigError(f"{path} has SHA-256 {found}: expected {WEIGHTS_SHA256}")
        return cls(first_layers(path))

    def hear(self, samples: Samples, features: FeatureConfig) -> NDArray[np.float16]:
        """Return its states at every fourth of our frames: (n,) at 16 kHz to (frames / 4, 384).

        Of those four frames its own two steps' mean; ``features`` says how long a frame is. Eight
        seconds are heard at once, which begin with silence where there is less, as it was trained;
        of longer speech pieces that overlap.
        """
        num_steps = features.count_frames(len(samples)) // FRAMES_A_STEP
        first = features.frame_length // 2 // _OWN_STEP  # where our first frame is centred
        whole = np.pad(samples, (_PIECE_SAMPLES, -len(samples) % _OWN_STEP))
        length = len(whole) // _OWN_STEP - _PIECE
        states = np.empty((_OWN_IN_A_STEP * num_steps, NUM_TOLD), np.float32)
        done = 0
        while done < len(states):
            end = min(length, max(0, first + done - _SEEN_AROUND) + _PIECE)
            known = len(states) if end == length else end - _SEEN_AROUND - first
            heard = self._hear_piece(whole[end * _OWN_STEP :][:_PIECE_SAMPLES])
            begin = first + _PIECE - end
            states[done:known] = heard[begin + done : begin + known]
            done = known
        pairs = states.reshape(num_steps, _OWN_IN_A_STEP, NUM_TOLD)
        return np.asarray(pairs.mean(1), np.float16)

    def _hear_piece(self, samples: Samples) -> NDArray[np.float32]:
        """Hear eight seconds: (400, 384). Features as Whisper's, of a sound of deviation 1."""
        scaled = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-10)
        mel = np.log10(np.maximum(mel_spectrogram(scaled, _NUM_MEL)[:-1], 1e-10))
        mel = (np.maximum(mel, mel.max() - 8.0) + 4.0) / 4.0
        states: NDArray[np.float32] = self._session.run(
            [_SECOND_LAYER], {_INPUT: mel.T[None].astype(np.float32)}
        )[0][0]
        return states


def first_layers(path: Path) -> onnx.ModelProto:
    """Cut the graph in a file after its second layer.

    Raises:
        ConfigError: it has no such place.
    """
    model = onnx.load(path)
    if _SECOND_LAYER not in {name for node in model.graph.node for name in node.output}:
        raise ConfigError(f"{path} has no output {_SECOND_LAYER!r}: expected Smart Turn v3.2")
    place = onnx.helper.make_tensor_value_info(_SECOND_LAYER, onnx.TensorProto.FLOAT, None)
    model.graph.value_info.append(place)
    return Extractor(model).extract_model([_INPUT], [_SECOND_LAYER])


def copy_heard(copy: str) -> str:
    """Which copy the teacher hears when a network hears ``copy``: the same speech, undisturbed."""
    return copy if copy in ANOTHERS else "clean"


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
