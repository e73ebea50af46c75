"""What each training window should be answered with, and how much it weighs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from train.copies import NOISE_CORPUS
from train.corpora import LABELS
from train.dataset import NormalizedClip


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Of n windows or clips.

    ``labels`` (n,), -1 where the emotion is none of the four; ``targets`` (n, 4), probabilities,
    the same for all of noise; ``weights`` (n,), 0 where there is no target. ``emotions`` (n, m) and
    ``emotion_weights`` (n,): the same over all of the corpora's own ``emotion_names``.
    """

    labels: Tensor
    targets: Tensor
    weights: Tensor
    emotions: Tensor
    emotion_weights: Tensor
    emotion_names: tuple[str, ...]

    def of(self, rows: NDArray[np.intp]) -> Self:
        """Return the truth of some rows, in their order."""
        return self._each(lambda tensor: tensor[torch.from_numpy(rows)])

    def to(self, device: str) -> Self:
        """Return it on a device."""
        return self._each(lambda tensor: tensor.to(device))

    def emotion_loss(self, logits: Tensor) -> Tensor:
        """Weighted mean cross-entropy of the second classifier's logits, (n, m)."""
        entropies = functional.cross_entropy(
            logits.float(), self.emotions, reduction="none", label_smoothing=0.1
        )
        total = (entropies * self.emotion_weights).sum()
        return total / self.emotion_weights.sum().clamp(min=1e-6)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(
            labels=change(self.labels),
            targets=change(self.targets),
            weights=change(self.weights),
            emotions=change(self.emotions),
            emotion_weights=change(self.emotion_weights),
            emotion_names=self.emotion_names,
        )


def tell_truth(clips: Sequence[NormalizedClip], balance: float) -> Truth:
    """Return the truth of clips, each weighing as much as its corpus and emotion are rare.

    A weight is the number of clips of its corpus and emotion to the power of minus ``balance``,
    scaled so that speech weighs 1 on average, as noise does.
    """
    names = sorted({emotion_of(clip) for clip in clips if not _is_noise(clip)})
    counts = Counter((clip.utterance.corpus, emotion_of(clip)) for clip in clips)
    raw = np.array([counts[clip.utterance.corpus, emotion_of(clip)] ** -balance for clip in clips])
    is_speech = np.array([not _is_noise(clip) for clip in clips])
    weights = np.where(is_speech, raw / raw[is_speech].mean(), 1.0)
    labels = torch.tensor([clip.label for clip in clips])
    emotions = [-1 if _is_noise(clip) else names.index(emotion_of(clip)) for clip in clips]
    is_target = (labels >= 0).numpy() | ~is_speech
    return Truth(
        labels=labels,
        targets=_one_hot(labels, len(LABELS)),
        weights=torch.tensor(weights * is_target, dtype=torch.float32),
        emotions=_one_hot(torch.tensor(emotions), len(names)),
        emotion_weights=torch.tensor(weights * is_speech, dtype=torch.float32),
        emotion_names=tuple(names),
    )


def mix(windows: Tensor, truth: Truth, parameter: float) -> tuple[Tensor, Truth]:
    """Mix a batch with itself in another order (mixup, Zhang et al. 2018), one draw a batch.

    The share is of the beta distribution of ``parameter``. Targets mix by share and weight, so what
    has no target adds none.
    """
    share = float(np.random.default_rng(int(torch.randint(2**31, ()))).beta(parameter, parameter))
    order = torch.randperm(len(windows), device=windows.device)

    def blend(targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        own, other = share * weights, (1.0 - share) * weights[order]
        total = own + other
        mixed = own[:, None] * targets + other[:, None] * targets[order]
        return mixed / total.clamp(min=1e-9)[:, None], total

    targets, weights = blend(truth.targets, truth.weights)
    emotions, emotion_weights = blend(truth.emotions, truth.emotion_weights)
    mixed = Truth(
        labels=truth.labels,
        targets=targets,
        weights=weights,
        emotions=emotions,
        emotion_weights=emotion_weights,
        emotion_names=truth.emotion_names,
    )
    return share * windows + (1.0 - share) * windows[order], mixed


def _one_hot(indices: Tensor, width: int) -> Tensor:
    """Rows of 0 and 1, (n, width); where an index is -1, each is 1 / width."""
    rows = torch.full((len(indices), width), 1.0 / width)
    known = indices >= 0
    rows[known] = functional.one_hot(indices[known], width).float()
    return rows


def emotion_of(clip: NormalizedClip) -> str:
    """Return the corpus's own word for a clip's emotion, or else its label."""
    return clip.utterance.emotion or clip.utterance.label or ""


def _is_noise(clip: NormalizedClip) -> bool:
    return clip.utterance.corpus == NOISE_CORPUS
