"""What windows are answered with and what they weigh, worked out by hand."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from train.copies import NOISE_CORPUS
from train.corpora import LABELS, Utterance
from train.dataset import NormalizedClip
from train.truth import Truth, mix, tell_truth

ANGRY, SAD = LABELS.index("angry"), LABELS.index("sad")


def clip(corpus: str, label: str | None, emotion: str = "") -> NormalizedClip:
    """Return a clip of no frames: of a clip, truth asks who it is and how it is called."""
    utterance = Utterance(
        path=Path("none.wav"),
        corpus=corpus,
        speaker="s",
        label=label,
        duration_s=1.0,
        emotion=emotion,
    )
    return NormalizedClip(
        utterance=utterance,
        label=LABELS.index(label) if label else -1,
        frames=np.zeros((0, 3, 26), np.float16),
        spans=np.zeros((0, 2), np.int32),
        is_full=np.zeros(0, np.bool_),
    )


ANGRY_CLIP, SAD_CLIP = clip("one", "angry"), clip("one", "sad")
FEARFUL_CLIP = clip("one", None, "fear")
NOISE_CLIP = clip(NOISE_CORPUS, None, "noise")


def make_truth(
    targets: Tensor, weights: Tensor, emotions: Tensor, emotion_weights: Tensor
) -> Truth:
    return Truth(
        labels=torch.arange(len(targets)),
        targets=targets,
        weights=weights,
        emotions=emotions,
        emotion_weights=emotion_weights,
        emotion_names=("a", "b", "c"),
    )


# What is told


def test_four_of_one_emotion_weigh_as_much_as_one_of_another() -> None:
    truth = tell_truth([ANGRY_CLIP] * 4 + [SAD_CLIP], balance=1.0)
    # 1/4 each and 1, whose mean is 2/5.
    assert truth.weights.tolist() == pytest.approx([0.625] * 4 + [2.5])
    assert truth.labels.tolist() == [ANGRY] * 4 + [SAD]


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_the_power_decides_how_much_is_balanced(balance: float) -> None:
    truth = tell_truth([ANGRY_CLIP] * 4 + [SAD_CLIP], balance=balance)
    assert truth.weights.mean().item() == pytest.approx(1.0)
    assert (truth.weights[4] / truth.weights[0]).item() == pytest.approx(4**balance)


def test_corpora_are_balanced_too() -> None:
    clips = [clip("large", "angry")] * 6 + [clip("small", "angry")] * 2
    truth = tell_truth(clips, balance=1.0)
    assert truth.weights[:6].sum().item() == pytest.approx(truth.weights[6:].sum().item())


def test_an_emotion_that_is_none_of_the_four_teaches_the_second_classifier_alone() -> None:
    truth = tell_truth([ANGRY_CLIP, FEARFUL_CLIP], balance=0.5)
    assert truth.emotion_names == ("angry", "fear")
    assert truth.labels.tolist() == [ANGRY, -1]
    assert truth.weights.tolist() == [1.0, 0.0]
    assert truth.emotions.tolist() == [[1.0, 0.0], [0.0, 1.0]]
    assert truth.emotion_weights.tolist() == [1.0, 1.0]


def test_a_corpus_s_own_word_goes_before_the_label() -> None:
    truth = tell_truth([clip("one", "happy", "excited"), clip("one", "happy")], balance=0.0)
    assert truth.emotion_names == ("excited", "happy")
    assert truth.labels.tolist() == [LABELS.index("happy")] * 2


def test_noise_has_no_emotion() -> None:
    truth = tell_truth([ANGRY_CLIP, ANGRY_CLIP, SAD_CLIP, NOISE_CLIP, NOISE_CLIP], balance=1.0)
    assert truth.emotion_names == ("angry", "sad")
    assert truth.targets[3:].tolist() == [[0.25] * 4] * 2
    assert truth.targets[0].tolist() == [float(name == "angry") for name in LABELS]
    assert truth.weights[3:].tolist() == [1.0, 1.0]
    # However much noise there is, speech weighs what it would weigh without.
    assert truth.weights[:3].mean().item() == pytest.approx(1.0)
    assert truth.emotion_weights[3:].tolist() == [0.0, 0.0]
    assert truth.emotions[3:].sum(dim=1).tolist() == pytest.approx([1.0, 1.0])


# Rows


def test_rows_come_in_the_order_that_is_asked_for() -> None:
    truth = tell_truth([ANGRY_CLIP, SAD_CLIP, FEARFUL_CLIP, NOISE_CLIP], balance=0.5)
    order = np.array([3, 1, 1, 0], np.intp)
    some = truth.of(order)
    assert some.emotion_names == truth.emotion_names
    for part in fields(Truth):
        if part.name != "emotion_names":
            whole, picked = getattr(truth, part.name), getattr(some, part.name)
            assert torch.equal(picked, torch.stack([whole[row] for row in order])), part.name


def test_every_tensor_goes_to_the_device() -> None:
    # "meta" is the one device besides the CPU that every machine has.
    there = tell_truth([ANGRY_CLIP, SAD_CLIP], balance=0.5).to("meta")
    tensors = [getattr(there, part.name) for part in fields(Truth) if part.name != "emotion_names"]
    assert [tensor.device.type for tensor in tensors] == ["meta"] * 5
    assert there.emotion_names == ("angry", "sad")


def test_the_second_loss_is_a_weighted_mean() -> None:
    truth = make_truth(
        torch.eye(4)[:2], torch.ones(2), torch.eye(3)[:2], emotion_weights=torch.tensor([3.0, 1.0])
    )
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    rows = functional.log_softmax(logits, dim=1)
    # Label smoothing of 0.1 leaves 0.9 + 0.1 / 3 to the answer and 0.1 / 3 to each other.
    smooth = [-(0.9 * row[i] + 0.1 * row.mean()).item() for i, row in enumerate(rows)]
    assert truth.emotion_loss(logits).item() == pytest.approx((3 * smooth[0] + smooth[1]) / 4)


def test_the_second_loss_of_noise_alone_is_nil() -> None:
    truth = tell_truth([ANGRY_CLIP, NOISE_CLIP], balance=0.5).of(np.array([1], np.intp))
    logits = torch.zeros(1, 1, requires_grad=True)
    loss = truth.emotion_loss(logits)
    torch.autograd.backward(loss)
    assert loss.item() == 0.0
    assert logits.grad is not None and logits.grad.tolist() == [[0.0]]


# Mixup


@pytest.mark.parametrize("seed", range(5))
def test_a_mixture_by_hand(seed: int) -> None:
    """Windows that are the rows of a unit matrix show the share and with whom each was mixed."""
    torch.manual_seed(seed)
    n = 6
    truth = make_truth(
        targets=torch.rand(n, 4),
        weights=torch.tensor([1.0, 2.0, 0.0, 4.0, 0.0, 3.0]),
        emotions=torch.rand(n, 3),
        emotion_weights=torch.tensor([1.0, 0.0, 5.0, 0.5, 2.0, 0.0]),
    )
    mixed_windows, mixed = mix(torch.eye(n), truth, 0.4)
    pairs = [
        (row, row.clone().index_fill_(0, torch.tensor(i), 0.0))
        for i, row in enumerate(mixed_windows)
    ]
    partners = [int(rest.argmax()) if rest.any() else i for i, (_, rest) in enumerate(pairs)]
    assert sorted(partners) == list(range(n))
    share = next(float(row[i]) for i, (row, rest) in enumerate(pairs) if rest.any())
    assert 0.0 < share < 1.0
    for i, j in enumerate(partners):
        for targets, weights, found, weight in (
            (truth.targets, truth.weights, mixed.targets[i], mixed.weights[i]),
            (truth.emotions, truth.emotion_weights, mixed.emotions[i], mixed.emotion_weights[i]),
        ):
            own, other = share * float(weights[i]), (1 - share) * float(weights[j])
            assert weight.item() == pytest.approx(own + other, abs=1e-6)
            if own + other > 0:
                expected = (own * targets[i] + other * targets[j]) / (own + other)
                assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert mixed.emotion_names == truth.emotion_names


def swapped() -> tuple[float, Truth]:
    """Mix a sad clip and a fearful one, which has no target, with each other; return the share."""
    truth = tell_truth([SAD_CLIP, FEARFUL_CLIP], balance=0.0)
    for seed in range(20):
        torch.manual_seed(seed)
        windows, mixed = mix(torch.eye(2), truth, 0.5)
        if windows[0, 1] > 0:
            return float(windows[0, 0]), mixed
    raise AssertionError("twenty orders of two, and none of them a swap")


def test_what_has_no_target_adds_none() -> None:
    share, mixed = swapped()
    assert 0.0 < share < 1.0
    sad = [float(name == "sad") for name in LABELS]
    assert mixed.targets.tolist() == [pytest.approx(sad), pytest.approx(sad)]
    # Of the second window, the sad one is the other part.
    assert mixed.weights.tolist() == pytest.approx([share, 1.0 - share])
    assert mixed.emotions[0].tolist() == pytest.approx([1.0 - share, share])  # fear, sad


def test_two_without_a_target_stay_without() -> None:
    truth = tell_truth([FEARFUL_CLIP, FEARFUL_CLIP, SAD_CLIP], 0.0).of(np.array([0, 1], np.intp))
    _, mixed = mix(torch.eye(2), truth, 0.5)
    assert mixed.weights.tolist() == [0.0, 0.0]
    assert mixed.targets.isfinite().all()


def test_the_same_seed_mixes_alike() -> None:
    truth = tell_truth([ANGRY_CLIP, SAD_CLIP] * 4, balance=0.0)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(mix(torch.eye(8), truth, 0.4)[0])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
