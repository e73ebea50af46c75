from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from streamer.errors import ConfigError
from train.can import CascadedAttentionNetwork
from train.can_config import CanConfig
from train.loss import JointLossConfig, Mining, joint_loss, pairwise_distances, triplet_loss

MININGS: list[Mining] = ["eq11", "semi_hard_or_hard", "none"]


def batch(n: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(n, 8, generator=generator, dtype=torch.float64) / 4
    logits = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 4, (n,), generator=generator)
    return logits.requires_grad_(), embeddings.requires_grad_(), labels


def slow_triplets(x: Any, labels: Any, margin: float, mining: Mining) -> list[float]:
    """Eq. 6-8 and 11, triplet by triplet, with Eq. 11's squared norms."""
    kept = []
    for a in range(len(x)):
        for p in range(len(x)):
            for n in range(len(x)):
                if a == p or labels[a] != labels[p] or labels[a] == labels[n]:
                    continue
                pdist, ndist = np.linalg.norm(x[a] - x[p]), np.linalg.norm(x[a] - x[n])
                if mining == "eq11" and not ndist**2 < pdist**2:
                    continue
                if mining == "semi_hard_or_hard" and not ndist < pdist + margin:
                    continue
                kept.append(max(pdist - ndist + margin, 0.0))
    return kept


def gradient(mining: Mining, margin: float) -> Tensor:
    _, embeddings, labels = batch()
    value = triplet_loss(embeddings, labels, margin, mining).value
    return torch.autograd.grad(value, embeddings)[0]


def test_distances_are_euclidean_and_their_gradient_at_zero_is_finite() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]], requires_grad=True)
    distances = pairwise_distances(x)
    expected = torch.tensor([[0.0, 5.0, 5.0], [5.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    assert torch.equal(distances, expected)
    distances.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert pairwise_distances(x.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("mining", MININGS)
def test_triplets_are_those_of_a_slow_loop(mining: Mining) -> None:
    _, embeddings, labels = batch(16)
    loss = triplet_loss(embeddings, labels, 0.2, mining)
    kept = slow_triplets(embeddings.detach().numpy(), labels.numpy(), 0.2, mining)
    assert loss.num_triplets.item() == len(kept) > 0
    assert loss.value.item() == pytest.approx(np.mean(kept))


def test_the_minings_keep_ever_more_triplets() -> None:
    _, embeddings, labels = batch()
    counts = [triplet_loss(embeddings, labels, 0.2, m).num_triplets.item() for m in MININGS]
    assert counts[0] < counts[1] < counts[2]


def test_joint_loss_is_eq9_and_eq10() -> None:
    logits, embeddings, labels = batch()
    loss = joint_loss(logits, embeddings, labels, JointLossConfig(alpha=0.3, margin=0.2))
    z, y = logits.detach().numpy(), labels.numpy()
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    cross_entropy = -np.mean([np.log(p[i, y[i]]) for i in range(len(y))])
    triplet = np.mean(slow_triplets(embeddings.detach().numpy(), y, 0.2, "eq11"))
    assert loss.cross_entropy.item() == pytest.approx(cross_entropy)
    assert loss.total.item() == pytest.approx(0.3 * triplet + 0.7 * cross_entropy)


def test_under_eq11_the_margin_has_no_gradient() -> None:
    assert gradient("eq11", 0.1).any()
    assert torch.equal(gradient("eq11", 0.1), gradient("eq11", 0.5))
    _, embeddings, labels = batch()
    low, high = (triplet_loss(embeddings, labels, m, "eq11") for m in (0.1, 0.5))
    assert low.num_triplets == high.num_triplets
    assert (high.value - low.value).item() == pytest.approx(0.4)


@pytest.mark.parametrize("mining", ["semi_hard_or_hard", "none"])
def test_with_the_other_minings_the_margin_has_an_effect(mining: Mining) -> None:
    assert not torch.allclose(gradient(mining, 0.1), gradient(mining, 0.5))


def test_a_batch_of_32_windows_is_mined_within_itself() -> None:
    torch.manual_seed(0)
    model = CascadedAttentionNetwork(CanConfig.paper())
    labels = torch.arange(4).repeat(8)
    logits, embedding, *_ = model(torch.randn(32, 3, 26, 20))
    loss = joint_loss(logits, embedding, labels, JointLossConfig(mining="none"))
    assert loss.num_triplets.item() == 32 * 7 * 24  # anchors x positives x negatives
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2]], ids=["no negative", "no positive"])
def test_without_a_triplet_the_loss_is_zero_and_still_trains(labels: list[int]) -> None:
    embeddings = torch.randn(3, 8, requires_grad=True)
    loss = triplet_loss(embeddings, torch.tensor(labels), 0.2, "none")
    assert loss.num_triplets.item() == loss.value.item() == 0
    loss.value.backward()
    assert embeddings.grad is not None
    assert not embeddings.grad.any()


def test_collapsed_embeddings_do_not_poison_the_gradient() -> None:
    embeddings = torch.ones(6, 8, requires_grad=True)
    triplet_loss(embeddings, torch.arange(6) % 2, 0.2, "none").value.backward()
    assert embeddings.grad is not None
    assert embeddings.grad.isfinite().all()


def test_alpha_0_is_pure_cross_entropy() -> None:
    logits, embeddings, labels = batch()
    total = joint_loss(logits, embeddings, labels, JointLossConfig(alpha=0.0)).total
    assert torch.equal(total, torch.nn.functional.cross_entropy(logits, labels))
    assert not torch.autograd.grad(total, embeddings)[0].any()


def test_sample_weights_act_on_the_cross_entropy_alone() -> None:
    logits, embeddings, labels = batch()
    config = JointLossConfig(label_smoothing=0.1)
    weights = torch.zeros(32, dtype=torch.float64)
    weights[:8] = 2.0
    weighted = joint_loss(logits, embeddings, labels, config, weights)
    plain = joint_loss(logits, embeddings, labels, config)
    first = joint_loss(logits[:8], embeddings[:8], labels[:8], config)
    torch.testing.assert_close(weighted.cross_entropy, first.cross_entropy)
    assert torch.equal(weighted.triplet, plain.triplet)


@pytest.mark.parametrize(
    "fields", [{"alpha": 1.1}, {"margin": -0.1}, {"mining": "hardest"}, {"label_smoothing": 1.0}]
)
def test_an_impossible_configuration_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        JointLossConfig(**fields)
