"""What one training hears: its clips in every condition, normalised, and one epoch's windows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamer.arrays import Frames
from streamer.errors import ConfigError
from streamer.normalization import NormalizationConfig
from streamer.windows import cut_window
from train.augment import augment_frames
from train.conditions import Surroundings
from train.config import FitConfig
from train.copies import noise_of, noise_utterances
from train.corpora import CorpusError, Utterance
from train.dataset import (
    STARTS,
    Clip,
    NormalizedClip,
    feature_statistics,
    load_clips,
    normalize_clips,
    speech_mean,
)
from train.splits import NUM_FOLDS, Split
from train.truth import Truth, emotion_of, tell_truth

Variants = dict[tuple[str, str], list[NormalizedClip]]


@dataclass(frozen=True, kw_only=True)
class Material:
    """What one fit hears: its training clips in every condition, and validation clips.

    The first ``num_speech`` clips are speech, the rest noise alone. ``num_without_speech``
    utterances of the two are not among them: the voice activity detection finds no turn there, so
    serving would have no window to score.
    """

    train: Variants
    num_speech: int
    truth: Truth
    validation: list[NormalizedClip]
    normalization: NormalizationConfig | None
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    num_without_speech: int


def prepare(split: Split, config: FitConfig, cache: Path, aux: Path | None = None) -> Material:
    """Load a split's clips, with statistics from its training speakers alone.

    The cache holds whole corpora, so that all folds share it. ``aux`` holds noises and rooms.

    Raises:
        CorpusError: no speech in anything to train on, or to validate with; audio that cannot be
            read.
        ConfigError: copies in noise or rooms are asked for where there is none.
    """
    surroundings = find_surroundings(config, aux)
    by_condition = _by_condition(split.utterances, config, cache, surroundings)
    everything = itertools.chain(*by_condition.values())
    silent = {clip.utterance.utterance_id for clip in everything if not len(clip.spans)}
    heard = [item for item in split.train if item.label or config.emotion_weight]
    chosen = _with_speech(heard, silent, "to train on")
    held_out = _with_speech(_labelled(split.validation), silent, "to validate with")
    train = {
        condition: [clip for clip in clips if clip.utterance.utterance_id in chosen]
        for condition, clips in by_condition.items()
    }
    if "noise" in train:
        train["noise"] = _without_noises_of(
            split.fold, train["noise"], train["clean"], surroundings
        )
    normalization = _normalization(train, config)
    noises = _noise_clips(split.fold, config, cache, surroundings)
    variants = {
        (condition, start): normalize_clips(clips + noises, normalization, start, config.seed)
        for condition, clips in train.items()
        for start in STARTS
    }
    num_speech = len(train["clean"])
    mean, deviation = feature_statistics(
        [clip for name in train for clip in variants[name, "cold"][:num_speech]]
    )
    validation = [clip for clip in by_condition["clean"] if clip.utterance.utterance_id in held_out]
    return Material(
        train=variants,
        num_speech=num_speech,
        truth=tell_truth(variants["clean", "cold"], config.balance),
        validation=normalize_clips(validation, normalization, "cold", config.seed),
        normalization=normalization,
        mean=mean,
        deviation=deviation,
        num_without_speech=len(heard) + len(_labelled(split.validation)) - len(chosen | held_out),
    )


def _by_condition(
    utterances: Sequence[Utterance], config: FitConfig, cache: Path, surroundings: Surroundings
) -> dict[str, list[Clip]]:
    return {
        condition: load_clips(
            utterances,
            condition,
            config.features,
            config.window,
            cache,
            surroundings=surroundings,
        )
        for condition in config.shares
    }


def _normalization(train: dict[str, list[Clip]], config: FitConfig) -> NormalizationConfig | None:
    normalization = None
    if config.normalize:
        normalization = NormalizationConfig(
            mean=speech_mean(
                [clip for clips in train.values() for clip in clips],
                config.features.num_channel_rows,
            ),
            prior_frames=config.prior_frames,
            memory_frames=config.memory_frames,
        )
    return normalization


def find_surroundings(config: FitConfig, aux: Path | None) -> Surroundings:
    """Find the noises and rooms that a configuration needs.

    Raises:
        ConfigError: they are not there.
    """
    if not (config.noise or config.room or config.noise_alone):
        return Surroundings()
    found = Surroundings.find(aux) if aux is not None else Surroundings()
    if not (found.noises and found.rooms):
        raise ConfigError(
            f"{config.name} trains on noises and rooms: expected some under {aux}/esc10 and "
            f"{aux}/rir, or noise=0, room=0 and noise_alone=0"
        )
    return found


def _labelled(utterances: Sequence[Utterance]) -> list[Utterance]:
    return [item for item in utterances if item.label]


def _without_noises_of(
    fold: int | None, noisy: list[Clip], clean: list[Clip], surroundings: Surroundings
) -> list[Clip]:
    """Put the clean clip where the noise in a noisy one tests this fold."""
    return [
        other if noise_of(clip.utterance, surroundings) % NUM_FOLDS == fold else clip
        for clip, other in zip(noisy, clean, strict=True)
    ]


def _noise_clips(
    fold: int | None, config: FitConfig, cache: Path, surroundings: Surroundings
) -> list[Clip]:
    """Clips of noise alone, but for those that test this fold."""
    if not config.noise_alone:
        return []
    noises = noise_utterances(surroundings)
    clips = load_clips(noises, "clean", config.features, config.window, cache)
    return [clip for clip in clips if len(clip.spans) and clip.utterance.speaker != str(fold)]


def _with_speech(utterances: Sequence[Utterance], silent: set[str], purpose: str) -> set[str]:
    """Ids of the utterances that are not silent in any condition."""
    found = {item.utterance_id for item in utterances} - silent
    if utterances and not found:
        raise CorpusError(
            f"found no speech in any of the {len(utterances)} utterances {purpose}, expected some"
        )
    return found


def draw_epoch(
    material: Material, config: FitConfig, epoch: int
) -> tuple[Tensor, NDArray[np.intp]]:
    """Draw one epoch's windows: float16 (n, 3, num_rows, num_frames), and whose they are (n,)."""
    rng = np.random.default_rng([config.seed, epoch])
    num_clips, variants = material.num_speech, material.train
    num_noises = len(variants["clean", "cold"]) - num_clips
    order = np.concatenate([rng.permutation(num_clips) for _ in range(config.windows_per_clip)])
    if num_noises:
        picks = rng.integers(num_noises, size=round(config.noise_alone * len(order)))
        order = rng.permutation(np.concatenate([order, num_clips + picks]))
    conditions, shares = list(config.shares), list(config.shares.values())
    num_frames, num_rows = config.window.num_frames, config.features.num_rows
    alike = _alike(variants["clean", "cold"]) if config.paste else []
    windows = np.empty((len(order), 3, num_rows, num_frames), np.float16)
    for row, index in enumerate(order):
        condition = conditions[int(rng.choice(len(shares), p=shares))]
        clips = variants[condition, STARTS[int(rng.random() < config.warm)]]
        frames = _draw_frames(clips[index], config, rng)
        if config.paste and rng.random() < config.paste:
            other = clips[int(rng.choice(alike[index]))]
            frames = _paste(_draw_frames(other, config, rng), frames, num_frames, rng)
        frames = augment_frames(frames, config.augment, config.features, rng)[-num_frames:]
        windows[row] = cut_window(frames, num_frames)
    return torch.from_numpy(windows), order


def _draw_frames(clip: NormalizedClip, config: FitConfig, rng: np.random.Generator) -> Frames:
    """Draw the frames of one of a clip's windows, shape (n, 3, num_rows)."""
    choice = clip.answers if rng.random() < config.answers else np.arange(len(clip.spans))
    return clip.frames_of(int(rng.choice(choice)))


def _alike(clips: Sequence[NormalizedClip]) -> list[NDArray[np.intp]]:
    """Of each clip the places of those in which its speaker says anything with its emotion."""
    keys = [(clip.utterance.speaker_id, emotion_of(clip)) for clip in clips]
    places: dict[tuple[str, str], list[int]] = {}
    for place, key in enumerate(keys):
        places.setdefault(key, []).append(place)
    groups = {key: np.array(found) for key, found in places.items()}
    return [groups[key] for key in keys]


def _paste(before: Frames, after: Frames, num_frames: int, rng: np.random.Generator) -> Frames:
    """Let a window begin as one and go on as another, from a fifth to four fifths of the way."""
    seam = int(rng.integers(num_frames // 5, 4 * num_frames // 5))
    first, second = (cut_window(part, num_frames).transpose(2, 0, 1) for part in (before, after))
    return np.concatenate([first[:seam], second[seam:]])
