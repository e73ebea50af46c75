"""From utterances to training windows: the windows that serving would score, cut by its own code.

Audio is touched once: each utterance goes through ``streamer.frontend.FrontEnd`` as a call of its
own, in each acoustic condition, and its frames, speech flags and spans are kept on disk. Statistics
and normalisation depend on who trains and are made when a fold is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from streamer.arrays import Frames, WindowFeatures
from streamer.features import FeatureConfig
from streamer.frontend import FrontEnd, FrontEndConfig, WindowCut
from streamer.normalization import CausalNormalizer, NormalizationConfig
from streamer.windows import WindowConfig, cut_window
from train.conditions import Surroundings
from train.copies import copy_samples
from train.corpora import LABELS, CorpusError, Utterance

STARTS = ("cold", "warm")
_WARM_UTTERANCES = 2
_CACHE_VERSION = 4
_NOWHERE = Surroundings()
_Made = TypeVar("_Made")


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One utterance, in one condition of ``train.copies.COPIES``.

    ``frames`` (n, 3, num_rows) float16, not normalised; ``is_speech`` (n,); ``spans`` (m, 2): the
    start and end frames of the windows that serving scores, in order; ``is_full`` (m,).
    """

    utterance: Utterance
    condition: str
    frames: NDArray[np.float16]
    is_speech: NDArray[np.bool_]
    spans: NDArray[np.int32]
    is_full: NDArray[np.bool_]


def extract(
    utterance: Utterance,
    condition: str,
    config: FrontEndConfig,
    surroundings: Surroundings = _NOWHERE,
) -> Clip:
    """Run one utterance through the front end as a call of its own.

    ``surroundings`` are the noises and rooms that a condition may need.

    Raises:
        CorpusError: its audio cannot be read, or is too short for a single frame.
    """
    samples = copy_samples(utterance, condition, surroundings)
    front_end = FrontEnd(config, history_frames=len(samples) // config.features.frame_shift + 8)
    happenings = front_end.receive(samples) + front_end.flush()
    num_frames = front_end.num_frames_computed
    if num_frames == 0:
        raise CorpusError(f"{utterance.path}: no frame in {len(samples)} samples: expected 640")
    cuts = [cut.span for cut in happenings if isinstance(cut, WindowCut)]
    frames, is_speech = front_end.frames(0, num_frames)
    return Clip(
        utterance=utterance,
        condition=condition,
        frames=frames.astype(np.float16),
        is_speech=is_speech,
        spans=np.array([(cut.start_frame, cut.end_frame) for cut in cuts], np.int32).reshape(-1, 2),
        is_full=np.array([cut.is_full for cut in cuts], np.bool_),
    )


def cache_clips(
    utterances: Sequence[Utterance],
    condition: str,
    features: FeatureConfig,
    window: WindowConfig,
    cache: Path,
    advance: Callable[[], None] = lambda: None,
    *,
    surroundings: Surroundings = _NOWHERE,
) -> list[Path]:
    """Compute the clips that ``cache`` has not got yet; return its files, one a corpus.

    A file is of one corpus, condition and configuration, and of the audio as it is on disk now.
    ``advance`` is called once an utterance, computed or there already, for a progress bar.

    Raises:
        CorpusError: audio that cannot be read, or is too short for a single frame.
    """
    config = FrontEndConfig(features=features, normalization=None, window=window)
    return cache_by_corpus(
        utterances,
        cache,
        lambda corpus, members: (
            f"{corpus}-{condition}-{_digest(members, condition, config, surroundings)}"
        ),
        lambda utterance: extract(utterance, condition, config, surroundings),
        _pack,
        advance,
    )


def cache_by_corpus(
    utterances: Sequence[Utterance],
    cache: Path,
    name_of: Callable[[str, Sequence[Utterance]], str],
    make: Callable[[Utterance], _Made],
    pack: Callable[[Sequence[_Made]], dict[str, NDArray[Any]]],
    advance: Callable[[], None],
) -> list[Path]:
    """Make of each utterance what ``cache`` has not got yet; return its files, one a corpus.

    ``name_of`` names a corpus's file by all that its content depends on, ``pack`` makes arrays of
    what was made. ``advance`` is called once an utterance, made now or there already.
    """
    paths = []
    for corpus, members in by_corpus(utterances).items():
        path = cache / f"{name_of(corpus, members)}.npz"
        paths.append(path)
        is_there = path.is_file()
        made = []
        for utterance in members:
            if not is_there:
                made.append(make(utterance))
            advance()
        if not is_there:
            cache.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(f".{os.getpid()}.part.npz")
            np.savez(part, allow_pickle=False, **pack(made))
            part.replace(path)
    return paths


def load_clips(
    utterances: Sequence[Utterance],
    condition: str,
    features: FeatureConfig,
    window: WindowConfig,
    cache: Path,
    *,
    surroundings: Surroundings = _NOWHERE,
) -> list[Clip]:
    """Return the utterances' clips by corpus, from what :func:`cache_clips` keeps.

    Raises:
        CorpusError: as :func:`cache_clips`.
    """
    paths = cache_clips(utterances, condition, features, window, cache, surroundings=surroundings)
    clips: list[Clip] = []
    for path, members in zip(paths, by_corpus(utterances).values(), strict=True):
        with np.load(path) as stored:
            clips += _unpack(members, condition, {name: stored[name] for name in stored.files})
    return clips


def by_corpus(utterances: Sequence[Utterance]) -> dict[str, list[Utterance]]:
    """Group utterances; corpora come sorted, each one's utterances as they came."""
    return {
        corpus: [utterance for utterance in utterances if utterance.corpus == corpus]
        for corpus in sorted({utterance.corpus for utterance in utterances})
    }


def audio_key(utterances: Sequence[Utterance]) -> list[list[Any]]:
    """Say which audio that is, as it is on disk now: by its size and the time of its change.

    Raises:
        CorpusError: a file is missing.
    """
    audio: list[list[Any]] = []
    for item in utterances:
        try:
            found = item.path.stat()
        except OSError as error:
            raise CorpusError(f"{item.path}: expected an audio file: {error.strerror}") from error
        part = [item.start_s, item.end_s]
        audio.append([item.utterance_id, str(item.path), *part, found.st_size, found.st_mtime_ns])
    return audio


def _digest(
    utterances: Sequence[Utterance],
    condition: str,
    config: FrontEndConfig,
    surroundings: Surroundings,
) -> str:
    """Name all that clips depend on."""
    sounds = {"noise": surroundings.noises, "room": surroundings.rooms}.get(condition, ())
    names = [path.name for path in sounds]
    key = json.dumps([_CACHE_VERSION, condition, asdict(config), names, audio_key(utterances)])
    return hashlib.sha256(key.encode()).hexdigest()[:16]


def _pack(clips: Sequence[Clip]) -> dict[str, NDArray[Any]]:
    return {
        "frames": np.concatenate([clip.frames for clip in clips]),
        "is_speech": np.concatenate([clip.is_speech for clip in clips]),
        "spans": np.concatenate([clip.spans for clip in clips]),
        "is_full": np.concatenate([clip.is_full for clip in clips]),
        "num_frames": np.array([len(clip.frames) for clip in clips]),
        "num_spans": np.array([len(clip.spans) for clip in clips]),
    }


def _unpack(
    utterances: Sequence[Utterance], condition: str, stored: dict[str, NDArray[Any]]
) -> list[Clip]:
    frame_cuts = np.cumsum(stored["num_frames"])[:-1]
    span_cuts = np.cumsum(stored["num_spans"])[:-1]
    frames = np.split(stored["frames"], frame_cuts)
    is_speech = np.split(stored["is_speech"], frame_cuts)
    spans = np.split(stored["spans"], span_cuts)
    is_full = np.split(stored["is_full"], span_cuts)
    return [
        Clip(
            utterance=utterance,
            condition=condition,
            frames=frames[i],
            is_speech=is_speech[i],
            spans=spans[i],
            is_full=is_full[i],
        )
        for i, utterance in enumerate(utterances)
    ]


def speech_mean(clips: Sequence[Clip], num_rows: int | None = None) -> tuple[float, ...]:
    """Mean over the clips' speech frames: what a channel's mean is taken to be at first.

    Of the first ``num_rows`` of a frame's MFCCs and pitch, or of all.
    """
    num_rows = clips[0].frames.shape[2] if num_rows is None else num_rows
    total = np.zeros(num_rows)
    count = 0
    for clip in clips:
        total += clip.frames[clip.is_speech, 0, :num_rows].sum(axis=0, dtype=np.float64)
        count += int(clip.is_speech.sum())
    return tuple(float(value) for value in total / max(1, count))


@dataclass(frozen=True, kw_only=True)
class NormalizedClip:
    """A clip after causal normalisation: frames (n, 3, num_rows) float16, label index or -1."""

    utterance: Utterance
    label: int
    frames: NDArray[np.float16]
    spans: NDArray[np.int32]
    is_full: NDArray[np.bool_]

    @property
    def answers(self) -> NDArray[np.intp]:
        """The windows that a turn's answer comes from: the full ones, or else the last."""
        full = np.flatnonzero(self.is_full)
        return full if len(full) else np.array([len(self.spans) - 1])

    def frames_of(self, index: int) -> Frames:
        """Return the frames of window ``index``, shape (n, 3, num_rows), float32."""
        start, end = self.spans[index]
        return self.frames[start:end].astype(np.float32)

    def window(self, index: int, num_frames: int) -> WindowFeatures:
        """Return window ``index``, shape (3, num_rows, num_frames), float32."""
        return cut_window(self.frames_of(index), num_frames)


def normalize_clips(
    clips: Sequence[Clip], config: NormalizationConfig | None, start: str, seed: int
) -> list[NormalizedClip]:
    """Normalise clips as a session would.

    ``cold``: one that begins with the clip; ``warm``: one that heard two others of its speaker
    before. The same code, in the same order of frames.
    """
    by_speaker: dict[str, list[Clip]] = {}
    for clip in clips:
        by_speaker.setdefault(clip.utterance.speaker_id, []).append(clip)
    rng = np.random.default_rng(seed)
    normalized = []
    for clip in clips:
        frames = clip.frames.astype(np.float32)
        if config is not None:
            normalizer = CausalNormalizer(config)
            if start == "warm":
                others = by_speaker[clip.utterance.speaker_id]
                for index in rng.integers(len(others), size=_WARM_UTTERANCES):
                    other = others[index]
                    speech = other.frames[other.is_speech].astype(np.float32)
                    normalizer.normalize(speech, np.ones(len(speech), np.bool_))
            frames = normalizer.normalize(frames, clip.is_speech)
        label = clip.utterance.label
        normalized.append(
            NormalizedClip(
                utterance=clip.utterance,
                label=LABELS.index(label) if label else -1,
                frames=frames.astype(np.float16),
                spans=clip.spans,
                is_full=clip.is_full,
            )
        )
    return normalized


def feature_statistics(
    clips: Sequence[NormalizedClip],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and deviation over the frames of all windows, each (3, num_rows, 1): the graph's."""
    total = total_squares = np.zeros(clips[0].frames.shape[1:])
    count = 0
    for clip in clips:
        for start, end in clip.spans:
            frames = clip.frames[start:end].astype(np.float64)
            total = total + frames.sum(axis=0)
            total_squares = total_squares + (frames**2).sum(axis=0)
            count += len(frames)
    mean = total / count
    deviation = np.sqrt(np.maximum(total_squares / count - mean**2, 1e-8))
    return mean[:, :, None].astype(np.float32), deviation[:, :, None].astype(np.float32)
