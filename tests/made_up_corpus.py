"""A corpus that nobody spoke, small enough to train on in a test."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import soundfile

from streamer.windows import WindowConfig
from tests.golden.synthetic import SAMPLE_RATE, voice
from train.can_config import CanConfig
from train.config import FitConfig, config_to_dict
from train.corpora import LABELS, Utterance, load_manifest

TINY = FitConfig(
    name="tiny",
    network=CanConfig(
        conv_channels=(4, 4, 4, 8), lstm_cells=4, num_heads=1, head_width=8, num_frames=50
    ),
    window=WindowConfig(num_frames=50, first_frames=25),
    epochs=3,
    batch_size=8,
    learning_rate=1e-2,
)
"""Windows of half a second and a network of two thousand weights."""


def tiny(**changes: object) -> FitConfig:
    """Return the tiny configuration, changed."""
    return replace(TINY, **changes)  # type: ignore[arg-type]


def write_config(path: Path, config: FitConfig) -> Path:
    """Write a configuration as a file of one's own; JSON's numbers, strings, lists are TOML's."""
    lines, tables = [], []
    for key, value in config_to_dict(config).items():
        if isinstance(value, dict):
            tables += [f"[{key}]", *(f"{k} = {json.dumps(v)}" for k, v in value.items())]
        else:
            lines.append(f"{key} = {json.dumps(value)}")
    path.write_text("\n".join(lines + tables) + "\n", encoding="utf-8")
    return path


def write_corpus(
    folder: Path, *, num_speakers: int = 3, seconds: Sequence[float] = (0.5, 0.9), seed: int = 0
) -> Path:
    """Write wavs and their manifest, one file a speaker, label and length; return the manifest.

    A label is a level, which even a tiny network can hear.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = ["path,speaker,gender,label,corpus"]
    number = seed * 1000
    for speaker in range(num_speakers):
        for index, label in enumerate(LABELS):
            for length_s in seconds:
                name = f"{speaker}-{label}-{length_s:g}.wav"
                sound = voice(length_s, level_dbfs=-14.0 - 6.0 * index, seed=number)
                quiet = np.zeros(SAMPLE_RATE // 5, np.float32)
                soundfile.write(folder / name, np.concatenate([quiet, sound, quiet]), SAMPLE_RATE)
                gender = ("female", "male")[speaker % 2]
                rows.append(f"{name},s{speaker},{gender},{label},made-up")
                number += 1
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return manifest


def silence_file(utterance: Utterance) -> None:
    """Replace an utterance's audio by silence of the same length."""
    silent = np.zeros(round(utterance.duration_s * SAMPLE_RATE), np.float32)
    soundfile.write(utterance.path, silent, SAMPLE_RATE)


def make_corpus(folder: Path, **options: object) -> list[Utterance]:
    """Write a corpus and return its utterances."""
    return list(load_manifest(write_corpus(folder, **options)))  # type: ignore[arg-type]
