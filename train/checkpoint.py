"""What a training leaves behind, read back: configuration, network, normalisation, card."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from streamer.card import Calibration, Card
from streamer.errors import ConfigError
from streamer.normalization import NormalizationConfig
from train.can import CascadedAttentionNetwork
from train.committee import Committee, build_can
from train.config import FitConfig, config_from_dict, config_to_dict
from train.corpora import LABELS

REFIT = "refit"
"""Folder, in a fold's own, of the network that has heard the validation speakers, too."""

LARGE = 4_096
"""Values from which on a weight is worth the node that casts it from half."""

_KEYS = ("config", "epoch", "fold", "model", "normalization", "training_data", "validation")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained network on the CPU, in evaluation mode, and all that it has to be served with.

    ``training_data`` counts each corpus's utterances and speakers; ``fold`` is None where nobody
    was held out; ``validation`` holds the UAR of each corpus at ``epoch``, the one that was kept.
    """

    network: CascadedAttentionNetwork | Committee
    config: FitConfig
    normalization: NormalizationConfig | None
    training_data: dict[str, dict[str, int]]
    fold: int | None
    epoch: int
    validation: dict[str, float]


def halved(weight: torch.Tensor) -> torch.Tensor:
    """Return a large weight's nearest in float16, which a model file keeps in half; others as is.

    Of 11 bits each, the weights err less than the bfloat16 that they were trained in.
    """
    is_large = weight.dtype == torch.float32 and weight.numel() >= LARGE
    return weight.half().float() if is_large else weight


def load_checkpoint(path: Path) -> Checkpoint:
    """Read ``best.pt`` or ``last.pt`` as :func:`train.loop.fit` writes them.

    Raises:
        ConfigError: no such file, not a checkpoint, or one whose weights do not fit its own
            configuration.
    """
    content = _read(path, _KEYS)
    config = config_from_dict(content["config"], f"{path}")
    network = build_can(config.network)
    try:
        network.load_state_dict(content["model"])
    except RuntimeError as error:
        raise ConfigError(f"{path}: its weights are not its configuration's: {error}") from error
    stored = content["normalization"]
    return Checkpoint(
        network=network.eval(),
        config=config,
        normalization=stored and NormalizationConfig(**{**stored, "mean": tuple(stored["mean"])}),
        training_data=content["training_data"],
        fold=content["fold"],
        epoch=content["epoch"],
        validation=content["validation"],
    )


def card_of(checkpoint: Checkpoint) -> Card:
    """Return a card to score with here: all temperatures 1, nothing said of data or results."""
    return Card(
        name=checkpoint.config.name,
        description="a checkpoint of a training",
        labels=LABELS,
        features=checkpoint.config.features,
        normalization=checkpoint.normalization,
        window=checkpoint.config.window,
        calibration=Calibration(),
        data=(),
        licence="",
    )


def read_resumable(path: Path) -> dict[str, Any]:
    """Return what is in a ``last.pt``, tensors on the CPU.

    Raises:
        ConfigError: no such file, or not such a checkpoint.
    """
    return _read(path, (*_KEYS, "learners", "state"))


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Return the weights that are in a checkpoint, by name.

    Raises:
        ConfigError: no such file, or not a checkpoint.
    """
    weights: dict[str, torch.Tensor] = _read(path, _KEYS)["model"]
    return weights


def num_epochs_done(folder: Path) -> int:
    """Epochs that the training in ``folder`` has behind it; 0 where there is none."""
    path = folder / "last.pt"
    return int(read_resumable(path)["state"]["epoch"]) if path.is_file() else 0


def is_finished(folder: Path, config: FitConfig) -> bool:
    """Tell whether ``folder`` holds a training of this configuration that has come to its end."""
    path = folder / "last.pt"
    if not path.is_file():
        return False
    content = read_resumable(path)
    state = content["state"]
    ended = state["epoch"] >= config.num_epochs or state["stale"] >= config.patience
    return bool(ended) and content["config"] == config_to_dict(config)


def _read(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    if not path.is_file():
        raise ConfigError(f"no checkpoint {path}: expected one that `python -m train fit` wrote")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zipfile and pickle each raise their own
        raise ConfigError(f"{path} cannot be read as a checkpoint: {error}") from error
    if not isinstance(content, dict) or not set(keys) <= set(content):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ConfigError(f"{path} holds {found}: expected {', '.join(keys)}")
    return content
