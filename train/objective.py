"""What one network is to lower."""

from __future__ import annotations

import torch
from torch import Tensor

from train.can import CanOutput
from train.config import FitConfig
from train.loss import joint_loss
from train.truth import Truth


def objective(output: CanOutput, truth: Truth, config: FitConfig) -> Tensor:
    """Return the loss of a batch, and two parts of it: cross-entropy and triplets; (3,)."""
    loss = joint_loss(
        output.logits,
        output.embedding,
        truth.labels,
        config.loss,
        sample_weights=truth.weights,
        targets=truth.targets,
    )
    total = loss.total
    if output.emotions is not None:
        total = total + config.emotion_weight * truth.emotion_loss(output.emotions)
    return torch.stack([total, loss.cross_entropy, loss.triplet])
