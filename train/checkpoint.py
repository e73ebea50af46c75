"""What a training leaves behind, read back: configuration, network, normalisation, card."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from streamer.card import Calibration, Card
from streamer.errors import ConfigError
from streamer.normalization import NormalizationConfig
from train.can import CascadedAttentionNetwork
from train.config import FitConfig, config_from_dict, config_to_dict
from train.corpora import LABELS


class Checkpoint(NamedTuple):
    """A trained network on the CPU, in evaluation mode, and all that it has to be served with.

    ``content`` is the file's, whole: ``fold``, ``epoch``, ``validation``, ``training_data`` and
    the rest.
    """

    config: FitConfig
    network: CascadedAttentionNetwork
    normalization: NormalizationConfig | None
    content: dict[str, Any]


def load_checkpoint(path: Path) -> Checkpoint:
    """Read ``best.pt`` or ``last.pt`` as :func:`train.loop.fit` writes them.

    Raises:
        ConfigError: no such file, not a checkpoint, or one whose weights do not fit its own
            configuration.
    """
    content = _read(path)
    try:
        config = config_from_dict(content["config"], str(path))
        stored = content["normalization"]
        normalization = stored and NormalizationConfig(**{**stored, "mean": tuple(stored["mean"])})
        network = CascadedAttentionNetwork(config.network)
        network.load_state_dict(content["model"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise ConfigError(
            f"{path}: expected a checkpoint that `python -m train fit` wrote: {error}"
        ) from error
    return Checkpoint(config, network.eval(), normalization or None, content)


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


def num_epochs_done(folder: Path) -> int:
    """Epochs that the training in ``folder`` has behind it; 0 where there is none."""
    path = folder / "last.pt"
    return int(_read(path)["state"]["epoch"]) if path.is_file() else 0


def is_finished(folder: Path, config: FitConfig) -> bool:
    """Tell whether ``folder`` holds a training of this configuration that has come to its end."""
    path = folder / "last.pt"
    if not path.is_file():
        return False
    content = _read(path)
    state = content["state"]
    ended = state["epoch"] >= config.epochs or state["stale"] >= config.patience
    return bool(ended) and content["config"] == config_to_dict(config)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: expected a checkpoint, found no file") from error
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path}: expected a checkpoint, cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected a checkpoint, found a {type(content).__name__}")
    return content
