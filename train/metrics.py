"""Recognition rates: unweighted average recall, weighted accuracy, intervals by speaker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def confusion(truth: ArrayLike, guess: ArrayLike, num_labels: int) -> NDArray[np.int64]:
    """Counts, shape (num_labels, num_labels): rows the truth, columns the answer."""
    counts = np.zeros((num_labels, num_labels), np.int64)
    np.add.at(counts, (np.asarray(truth, np.intp), np.asarray(guess, np.intp)), 1)
    return counts


def unweighted_average_recall(counts: NDArray[np.int64]) -> float:
    """UAR (the paper's UA): mean recall over the labels that occur; NaN if none does."""
    totals = counts.sum(axis=1)
    present = totals > 0
    if not present.any():
        return float("nan")
    return float(np.mean(np.diag(counts)[present] / totals[present]))


def weighted_accuracy(counts: NDArray[np.int64]) -> float:
    """WA: the share of utterances whose label is right; NaN if there are none."""
    return float(np.trace(counts) / counts.sum()) if counts.sum() else float("nan")


def uar_interval(
    truth: Sequence[int],
    guess: Sequence[int],
    speakers: Sequence[str],
    num_labels: int,
    *,
    seed: int = 0,
    num_resamples: int = 2000,
) -> tuple[float, float]:
    """95 % interval of the UAR by bootstrap over speakers, whose utterances are not independent."""
    names = sorted(set(speakers))
    index = {name: number for number, name in enumerate(names)}
    by_speaker = np.zeros((len(names), num_labels, num_labels), np.int64)
    owners = np.array([index[speaker] for speaker in speakers], np.intp)
    np.add.at(by_speaker, (owners, np.asarray(truth, np.intp), np.asarray(guess, np.intp)), 1)
    rng = np.random.default_rng(seed)
    values = [
        unweighted_average_recall(by_speaker[rng.integers(len(names), size=len(names))].sum(axis=0))
        for _ in range(num_resamples)
    ]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
