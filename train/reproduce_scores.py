"""What answers are worth: WA and UA over all folds and seeds, with intervals, and paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.corpora import LABELS, Utterance
from train.metrics import confusion, unweighted_average_recall, weighted_accuracy
from train.reproduce_fit import Result
from train.reproduce_variants import Protocol

_NUM_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True, eq=False)
class Answers:
    """What one system answered to n utterances, each tested once a seed.

    ``truth`` (n,); ``guesses`` and ``folds`` (num_seeds, n); ``units`` (n,): the number of who or
    what is drawn together in a bootstrap, the speaker or, where training knows the speakers, the
    utterance.
    """

    truth: NDArray[np.int64]
    guesses: NDArray[np.int64]
    folds: NDArray[np.int64]
    units: NDArray[np.int64]

    @property
    def confusion(self) -> NDArray[np.int64]:
        """Counts over all seeds: rows the truth, columns the answer."""
        truth = np.tile(self.truth, len(self.guesses))
        return confusion(truth, self.guesses.ravel(), len(LABELS))


def gather(
    results: Mapping[tuple[int, int], Result], utterances: Sequence[Utterance], protocol: Protocol
) -> Answers:
    """Put the results of all seeds and folds, by (seed, fold), together for some utterances."""
    place = {item.utterance_id: i for i, item in enumerate(utterances)}
    seeds = sorted({seed for seed, _ in results})
    guesses = np.full((len(seeds), len(utterances)), -1, np.int64)
    folds = np.full_like(guesses, -1)
    for (seed, fold), result in results.items():
        row = seeds.index(seed)
        for name, guess in zip(result.ids, result.probabilities.argmax(axis=1), strict=True):
            if name in place:
                guesses[row, place[name]], folds[row, place[name]] = guess, fold
    assert (guesses >= 0).all()  # every utterance tests once a seed
    units = [
        item.speaker_id if protocol == "speakers" else item.utterance_id for item in utterances
    ]
    names = {name: number for number, name in enumerate(sorted(set(units)))}
    return Answers(
        truth=np.array([LABELS.index(item.label or "") for item in utterances], np.int64),
        guesses=guesses,
        folds=folds,
        units=np.array([names[unit] for unit in units], np.int64),
    )


def summarize(answers: Answers, reference: Answers | None = None) -> dict[str, Any]:
    """WA and UA in per cent, means over seeds; with a reference, the paired differences to it.

    Intervals are 95 % by bootstrap over the units, drawn alike for both systems; they say how much
    hangs on these speakers (utterances), not on the seed, whose spread is ``ua_by_seed``.
    """
    drawn = _resampled(answers)
    summary: dict[str, Any] = {
        "n": len(answers.truth),
        "units": int(answers.units.max()) + 1,
        "confusion": answers.confusion.tolist(),
        "folds": _by_fold(answers),
    }
    for index, name in enumerate(("wa", "ua")):
        by_seed = [_rates(answers.truth, row)[index] for row in answers.guesses]
        summary[name] = _percent(np.mean(by_seed))
        summary[f"{name}_by_seed"] = [_percent(value) for value in by_seed]
        summary[f"{name}_interval"] = _interval(drawn[index])
    if reference is not None:
        summary["delta"] = _paired(answers, reference, drawn)
    return summary


def _paired(
    answers: Answers, reference: Answers, drawn: tuple[NDArray[np.float64], NDArray[np.float64]]
) -> dict[str, Any]:
    theirs = _resampled(reference)
    delta: dict[str, Any] = {}
    ours_by_fold, theirs_by_fold = _by_fold(answers), _by_fold(reference)
    for index, name in enumerate(("wa", "ua")):
        change = [
            _rates(answers.truth, ours)[index] - _rates(reference.truth, other)[index]
            for ours, other in zip(answers.guesses, reference.guesses, strict=True)
        ]
        delta[name] = _percent(np.mean(change))
        delta[f"{name}_interval"] = _interval(drawn[index] - theirs[index])
        pairs = list(zip(ours_by_fold, theirs_by_fold, strict=True))
        delta[f"{name}_folds_worse"] = sum(one[name] < other[name] for one, other in pairs)
        delta["num_folds"] = len(pairs)
    return delta


def _by_fold(answers: Answers) -> list[dict[str, Any]]:
    folds = []
    for seed, (guesses, owners) in enumerate(zip(answers.guesses, answers.folds, strict=True)):
        for fold in sorted(set(owners.tolist())):
            wa, ua = _rates(answers.truth[owners == fold], guesses[owners == fold])
            folds.append({"seed": seed, "fold": fold, "wa": _percent(wa), "ua": _percent(ua)})
    return folds


def _rates(truth: NDArray[np.int64], guesses: NDArray[np.int64]) -> tuple[float, float]:
    counts = confusion(truth, guesses, len(LABELS))
    return weighted_accuracy(counts), unweighted_average_recall(counts)


def _resampled(answers: Answers) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """WA and UA, means over seeds, of each bootstrap sample of the units."""
    num_units, num_labels = int(answers.units.max()) + 1, len(LABELS)
    counts = np.zeros((len(answers.guesses), num_units, num_labels, num_labels))
    for row, guesses in enumerate(answers.guesses):
        np.add.at(counts[row], (answers.units, answers.truth, guesses), 1)
    rng = np.random.default_rng(0)
    weights = rng.multinomial(num_units, np.full(num_units, 1 / num_units), size=_NUM_RESAMPLES)
    drawn = np.tensordot(weights.astype(np.float64), counts, axes=(1, 1))  # (r, seeds, l, l)
    right = np.diagonal(drawn, axis1=2, axis2=3)
    totals = drawn.sum(axis=3)
    present = totals > 0
    recalls = np.where(present, right / np.maximum(totals, 1), 0.0)
    wa = right.sum(axis=2) / totals.sum(axis=2)
    ua = recalls.sum(axis=2) / present.sum(axis=2)
    return wa.mean(axis=1), ua.mean(axis=1)


def _interval(values: NDArray[np.float64]) -> list[float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return [_percent(low), _percent(high)]


def _percent(value: float | np.floating[Any]) -> float:
    return round(100.0 * float(value), 2)
