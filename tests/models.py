"""A model file that nobody trained: random weights, but exported, checked and loaded for real."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path

import onnx
import torch

from export_onnx import Checkpoint, export, make_card
from streamer.normalization import NormalizationConfig
from train.can import CascadedAttentionNetwork
from train.can_config import CanConfig
from train.config import FitConfig


def tiny_model(folder: Path) -> Path:
    """Write the model into ``folder`` and return its path; it is made once a process."""
    path = folder / "tiny.onnx"
    path.write_bytes(_tiny_model_bytes())
    return path


def tiny_network() -> CascadedAttentionNetwork:
    """Return a network whose logits differ from window to window by about one."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = (3, 26, 1)
        network = CascadedAttentionNetwork(
            CanConfig(), torch.randn(shape), 5.0 + torch.rand(shape)
        ).eval()
    with torch.no_grad():
        # Untrained, the BLSTM says nearly the same of everything.
        network.blstm.weight_ih_l0.mul_(10.0)
        network.blstm.weight_ih_l0_reverse.mul_(10.0)
        network.classifier.weight.mul_(20.0)
    return network


def tiny_checkpoint() -> Checkpoint:
    """Return what a training would have kept of :func:`tiny_network`."""
    return Checkpoint(
        network=tiny_network(),
        config=FitConfig(name="tiny"),
        normalization=NormalizationConfig(mean=(-40.0, 5.0) + (0.0,) * 24),
        training_data={
            "nemo": {"utterances": 10, "speakers": 3},
            "mine": {"utterances": 4, "speakers": 2},
        },
        fold=0,
        epoch=7,
        validation={"mean": 0.25},
    )


def with_metadata(path: Path, changed: Path, **changes: str | None) -> Path:
    """Copy a model file with some of its metadata changed, or removed where None."""
    proto = onnx.load(path)
    metadata = {prop.key: prop.value for prop in proto.metadata_props} | changes
    del proto.metadata_props[:]
    kept = {key: value for key, value in metadata.items() if value is not None}
    onnx.helper.set_model_props(proto, kept)
    onnx.save(proto, changed)
    return changed


@lru_cache(maxsize=1)
def _tiny_model_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.onnx"
        checkpoint = tiny_checkpoint()
        export(checkpoint, make_card(checkpoint, name="tiny", results={}), path, None)
        return path.read_bytes()
