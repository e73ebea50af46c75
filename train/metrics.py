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
    by_speaker = _by_speaker(truth, guess, speakers, num_labels)
    return _interval(_resampled_uar([by_speaker], seed, num_resamples))


def mean_uar_interval(
    truth: Sequence[int],
    guess: Sequence[int],
    speakers: Sequence[str],
    corpora: Sequence[str],
    num_labels: int,
    *,
    seed: int = 0,
    num_resamples: int = 2000,
) -> tuple[float, float]:
    """95 % interval of the mean over corpora of their UAR, each corpus's speakers drawn anew."""
    values = np.zeros(num_resamples)
    names = sorted(set(corpora))
    for place, name in enumerate(names):
        rows = [i for i, corpus in enumerate(corpora) if corpus == name]
        truths, guesses = [truth[i] for i in rows], [guess[i] for i in rows]
        table = _by_speaker(truths, guesses, [speakers[i] for i in rows], num_labels)
        values += _resampled_uar([table], seed + place, num_resamples) / len(names)
    return _interval(values)


def uar_difference(
    truth: Sequence[int],
    before: Sequence[int],
    after: Sequence[int],
    speakers: Sequence[str],
    num_labels: int,
    *,
    seed: int = 0,
    num_resamples: int = 2000,
) -> tuple[float, float, float]:
    """UAR after less UAR before, and its 95 % interval by bootstrap over the same speakers."""
    tables = [_by_speaker(truth, guess, speakers, num_labels) for guess in (after, before)]
    one, other = (unweighted_average_recall(table.sum(axis=0)) for table in tables)
    return one - other, *_interval(_resampled_uar(tables, seed, num_resamples))


def _by_speaker(
    truth: Sequence[int], guess: Sequence[int], speakers: Sequence[str], num_labels: int
) -> NDArray[np.int64]:
    """Each speaker's confusion, (num_speakers, num_labels, num_labels)."""
    names = sorted(set(speakers))
    index = {name: number for number, name in enumerate(names)}
    by_speaker = np.zeros((len(names), num_labels, num_labels), np.int64)
    owners = np.array([index[speaker] for speaker in speakers], np.intp)
    np.add.at(by_speaker, (owners, np.asarray(truth, np.intp), np.asarray(guess, np.intp)), 1)
    return by_speaker


def _resampled_uar(
    tables: Sequence[NDArray[np.int64]], seed: int, num_resamples: int
) -> NDArray[np.float64]:
    """UAR of each draw of speakers; of two tables, the first's less the second's."""
    num_speakers = len(tables[0])
    rng = np.random.default_rng(seed)
    draws = (rng.integers(num_speakers, size=num_speakers) for _ in range(num_resamples))
    values = []
    for draw in draws:
        uars = [unweighted_average_recall(table[draw].sum(axis=0)) for table in tables]
        values.append(uars[0] - sum(uars[1:]))
    return np.array(values)


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
