"""The joint loss of Liu et al. 2023, sections 2.3 and 3.3: cross-entropy and mined triplets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from streamer.errors import ConfigError

Mining = Literal["eq11", "semi_hard_or_hard", "none"]


@dataclass(frozen=True, kw_only=True)
class JointLossConfig:
    """Eq. 10's weight and Eq. 8's margin; the defaults are the paper's.

    Raises:
        ConfigError: a field is out of range.
    """

    alpha: float = 0.3  # weight of the triplet loss; 1 - alpha is the cross-entropy's
    margin: float = 0.2
    mining: Mining = "eq11"  # see `triplet_loss`
    label_smoothing: float = 0.0  # not in the paper

    def __post_init__(self) -> None:
        if not 0.0 <= self.alpha <= 1.0:
            raise ConfigError(f"alpha is {self.alpha}: expected 0 to 1")
        if self.margin < 0.0:
            raise ConfigError(f"margin is {self.margin}: expected 0 or more")
        if self.mining not in ("eq11", "semi_hard_or_hard", "none"):
            raise ConfigError(
                f"mining is {self.mining!r}: expected 'eq11', 'semi_hard_or_hard' or 'none'"
            )
        if not 0.0 <= self.label_smoothing < 1.0:
            raise ConfigError(
                f"label_smoothing is {self.label_smoothing}: expected 0 or more and less than 1"
            )


class TripletLoss(NamedTuple):
    """Eq. 8 over the triplets kept."""

    value: Tensor  # (), their mean; 0, with a gradient of 0, where none was kept
    num_triplets: Tensor  # (), integer: how many were kept


class JointLoss(NamedTuple):
    """Eq. 10 and its parts, each of shape ()."""

    total: Tensor
    cross_entropy: Tensor
    triplet: Tensor
    num_triplets: Tensor


def pairwise_distances(embeddings: Tensor) -> Tensor:
    """Euclidean distances (Eq. 6-7) between all rows: (n, d) -> (n, n).

    From differences, not from |a|^2 + |b|^2 - 2ab, which loses near points to cancellation. At
    distance 0 the gradient is 0, where the square root's is not finite. Low precision is raised to
    float32.
    """
    wide = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
    squared = (wide.unsqueeze(1) - wide.unsqueeze(0)).square().sum(2)
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)


def triplet_loss(embeddings: Tensor, labels: Tensor, margin: float, mining: Mining) -> TripletLoss:
    """Mean of Eq. 8 over the batch's triplets: (n, d) and (n,) integer labels.

    Every anchor, positive (another sample of its label) and negative (a sample of another label) in
    the batch is a candidate; `mining` keeps

    - "eq11": d(a, n) < d(a, p), Eq. 11 to the letter. Every kept hinge is then open by more than
      the margin, which thus only adds a constant: it has no effect on the gradient;
    - "semi_hard_or_hard": d(a, n) < d(a, p) + margin: every triplet whose hinge is open, no other;
    - "none": all, those with a closed hinge too.

    Eq. 11 compares squared norms where Eq. 8 uses the norms themselves: the order is the same.
    """
    distances = pairwise_distances(embeddings)
    same = labels.unsqueeze(1) == labels.unsqueeze(0)
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    keep = positive.unsqueeze(2) & ~same.unsqueeze(1)
    gap = distances.unsqueeze(2) - distances.unsqueeze(1)  # [a, p, n] = d(a, p) - d(a, n)
    if mining == "eq11":
        keep = keep & (gap > 0)
    elif mining == "semi_hard_or_hard":
        keep = keep & (gap + margin > 0)
    num_triplets = keep.sum()
    hinge = torch.where(keep, functional.relu(gap + margin), 0.0)
    return TripletLoss(hinge.sum() / num_triplets.clamp(min=1), num_triplets)


def joint_loss(
    logits: Tensor,
    embeddings: Tensor,
    labels: Tensor,
    config: JointLossConfig,
    sample_weights: Tensor | None = None,
    targets: Tensor | None = None,
) -> JointLoss:
    """Eq. 9-10 on a batch of n windows: alpha x triplet + (1 - alpha) x cross-entropy.

    Takes logits (n, num_labels), embeddings (n, d) and labels (n,); triplets are mined within the
    batch. `sample_weights` (n,), non-negative with a positive sum, make the cross-entropy a
    weighted mean, and do not touch the triplets. `targets` (n, num_labels), probabilities, are what
    the cross-entropy goes by in the labels' stead.
    """
    entropies = functional.cross_entropy(
        logits.to(torch.promote_types(logits.dtype, torch.float32)),
        labels if targets is None else targets,
        reduction="none",
        label_smoothing=config.label_smoothing,
    )
    if sample_weights is None:
        cross_entropy = entropies.mean()
    else:
        cross_entropy = (entropies * sample_weights).sum() / sample_weights.sum().clamp(min=1e-6)
    if config.alpha == 0.0:
        none = 0.0 * embeddings.sum()  # no triplet, and no work: a gradient of 0 all the same
        return JointLoss(
            cross_entropy + none, cross_entropy, none, torch.zeros((), dtype=torch.long)
        )
    triplet = triplet_loss(embeddings, labels, config.margin, config.mining)
    total = config.alpha * triplet.value + (1.0 - config.alpha) * cross_entropy
    return JointLoss(total, cross_entropy, triplet.value, triplet.num_triplets)
