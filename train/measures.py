"""From what was heard to figures: plain data, as JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamer.card import UNCERTAIN
from streamer.smoothing import calibrate
from train.calibrate import expected_calibration_error, reliability, risk_coverage
from train.corpora import LABELS, Utterance
from train.listening import NO_ANSWER, UNSURE, Heard
from train.metrics import (
    confusion,
    mean_uar_interval,
    uar_interval,
    unweighted_average_recall,
    weighted_accuracy,
)
from train.spliced import SplicedCall, count_alarms, count_flips, detection_delay_s, minutes_of

KINDS = ("window", "smoothed", "turn")
HEARD_S = (1.0, 1.5, 2.0, 3.0, 4.0)
_NUM_CURVE_POINTS = 100
_NUM_ANSWERS = NO_ANSWER + 1

Answers = Sequence[tuple[Utterance, int]]
"""Utterances with a label, and the index of what was answered, NO_ANSWER for nothing."""

Fitted = Mapping[int | None, Mapping[str, float]]
"""Temperatures by kind of score, of each fold."""


def answers_of(heard: Sequence[Heard]) -> list[tuple[Utterance, int]]:
    """Pair utterances with their answers."""
    return [(item.utterance, item.answer) for item in heard]


def by_corpus(answers: Answers) -> dict[str, Any]:
    """Results of each corpus, with confusions and genders."""
    reports = {}
    for corpus in _corpora(answers):
        members = [pair for pair in answers if pair[0].corpus == corpus]
        counts = _counts(members)
        speakers = {utterance.speaker_id for utterance, _ in members}
        reports[corpus] = {
            **rate(members),
            "wa": rounded(weighted_accuracy(counts)),
            "speakers": len(speakers),
            "confusion": counts[:-1, :-1].tolist(),
            "unanswered": counts[:-1, -1].tolist(),
            "gender": {
                gender: _uar([pair for pair in members if pair[0].gender == gender])
                for gender in _genders(members)
            },
        }
    return reports


def rate(answers: Answers) -> dict[str, Any]:
    """UAR, its interval by bootstrap over speakers, how many."""
    truth, guess = _columns(answers)
    speakers = [utterance.speaker_id for utterance, _ in answers]
    low, high = uar_interval(truth, guess, speakers, _NUM_ANSWERS)
    return {**_uar(answers), "interval": [rounded(low), rounded(high)]}


def over_corpora(answers: Answers) -> dict[str, Any]:
    """UAR of each corpus and, under ``mean``, their mean with its interval."""
    corpora = {
        corpus: rate([pair for pair in answers if pair[0].corpus == corpus])
        for corpus in _corpora(answers)
    }
    truth, guess = _columns(answers)
    low, high = mean_uar_interval(
        truth,
        guess,
        [utterance.speaker_id for utterance, _ in answers],
        [utterance.corpus for utterance, _ in answers],
        _NUM_ANSWERS,
    )
    mean = np.mean([report["uar"] for report in corpora.values()])
    return {
        "mean": {"uar": rounded(mean), "interval": [rounded(low), rounded(high)]},
        "corpora": corpora,
    }


def mean_uar(answers: Answers) -> float:
    """UAR, mean over corpora."""
    uars = [
        _uar([pair for pair in answers if pair[0].corpus == corpus])["uar"]
        for corpus in _corpora(answers)
    ]
    return rounded(np.mean(uars))


def by_gender(answers: Answers) -> dict[str, Any]:
    """UAR of each gender, all corpora's utterances together, and the gap between them."""
    genders = _genders(answers)
    found = {
        gender: rate([pair for pair in answers if pair[0].gender == gender]) for gender in genders
    }
    uars = [report["uar"] for report in found.values()]
    return {**found, "gap": rounded(max(uars) - min(uars))} if len(uars) > 1 else dict(found)


def against_seconds(heard: Sequence[Heard]) -> dict[str, Any]:
    """UAR by corpus and mean, had each call ended so many seconds after its onset; then ``all``."""
    table: dict[str, Any] = {}
    after = {
        f"{seconds:g}": [(item.utterance, item.answer_after(seconds)) for item in heard]
        for seconds in HEARD_S
    }
    for name, answers in {**after, "all": answers_of(heard)}.items():
        found = over_corpora(answers)
        uars = {corpus: report["uar"] for corpus, report in found["corpora"].items()}
        table[name] = {**found["mean"], "corpora": uars}
    return table


def stacked(heard: Sequence[Heard], kind: str) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """All probabilities of one kind at a temperature of 1, (n, num_labels), and labels (n,)."""
    rows = [getattr(item, kind) for item in heard]
    truth = np.repeat([item.truth for item in heard], [len(row) for row in rows])
    return np.concatenate(rows), truth.astype(np.intp)


def sureness(tested: Mapping[int | None, Sequence[Heard]], fitted: Fitted) -> dict[str, Any]:
    """ECE before and after each fold's temperatures, reliability and risk against coverage."""
    report: dict[str, Any] = {"ece": {}, "reliability": {}, "risk_coverage": {}}
    for kind in KINDS:
        pairs = {fold: stacked(heard, kind) for fold, heard in tested.items()}
        before = np.concatenate([probabilities for probabilities, _ in pairs.values()])
        after = np.concatenate(
            [
                calibrate(probabilities, fitted[fold][kind])
                for fold, (probabilities, _) in pairs.items()
                if len(probabilities)
            ]
        )
        truth = np.concatenate([labels for _, labels in pairs.values()])
        report["ece"][kind] = {
            "before": rounded(expected_calibration_error(before, truth)),
            "after": rounded(expected_calibration_error(after, truth)),
        }
        report["reliability"][kind] = [
            [rounded(confidence), rounded(accuracy), num]
            for confidence, accuracy, num in reliability(after, truth)
        ]
        curve = risk_coverage(after, truth)
        points = np.unique(np.linspace(0, len(truth) - 1, _NUM_CURVE_POINTS).astype(int))
        report["risk_coverage"][kind] = [
            [rounded(curve.coverage[point]), rounded(curve.risk[point])] for point in points
        ]
    return report


def what_was_said(heard: Sequence[Heard]) -> dict[str, Any]:
    """Of each emotion, how many turns were said to be what; UNCERTAIN is one of the words.

    Under ``labelled`` the four labels, under ``other`` the corpora's other emotions; ``all`` is
    each one's total. ``right`` is the share of the labelled turns' labels that were right.
    """
    report: dict[str, Any] = {}
    for group, is_labelled in (("labelled", True), ("other", False)):
        members = [item for item in heard if bool(item.utterance.label) == is_labelled]
        emotions = {
            name: _words([item for item in members if _emotion(item.utterance) == name])
            for name in sorted({_emotion(item.utterance) for item in members})
        }
        if members:
            report[group] = {"all": _words(members), "emotions": emotions}
    labelled = [item for item in heard if item.utterance.label]
    sure = [(said, item.truth) for item in labelled for said in item.said if said != UNSURE]
    if sure:
        report["right"] = rounded(np.mean([said == truth for said, truth in sure]))
    return report


def _emotion(utterance: Utterance) -> str:
    return utterance.label or utterance.emotion or "unnamed"


def _words(heard: Sequence[Heard]) -> dict[str, Any]:
    said = np.concatenate([item.said for item in heard])
    shares = np.bincount(said, minlength=UNSURE + 1) / max(1, len(said))
    names = (*LABELS, UNCERTAIN)
    return {
        "turns": len(said),
        **{name: rounded(share) for name, share in zip(names, shares, strict=True)},
    }


def of_spliced(calls: Sequence[SplicedCall]) -> dict[str, Any]:
    """Detection delay, flips a minute, and one call to be drawn: the one of the median delay."""
    delays = sorted((detection_delay_s(call), place) for place, call in enumerate(calls))
    median_s = float(np.median([delay for delay, _ in delays]))
    flips = np.array([count_flips(call) for call in calls])
    minutes = sum(minutes_of(call, noise=False) for call in calls)
    found = [delay for delay, _ in delays if math.isfinite(delay)]
    example = calls[delays[(len(delays) - 1) // 2][1]]
    return {
        "calls": len(calls),
        "minutes": rounded(minutes),
        "detected": rounded(len(found) / len(calls)),
        "median_delay_s": rounded(median_s) if math.isfinite(median_s) else None,
        "median_delay_of_detected_s": rounded(np.median(found)) if found else None,
        "flips_a_minute": rounded(flips[:, 0].sum() / minutes),
        "flips_between_emotions_a_minute": rounded(flips[:, 1].sum() / minutes),
        "example": {
            "speaker": example.speaker_id,
            "parts": [[part.label, part.start_s, part.end_s] for part in example.parts],
            "shown": [[item.time_s, item.label, *item.scores] for item in example.shown],
        },
    }


def of_noise(calls: Sequence[SplicedCall]) -> dict[str, Any]:
    """What is said of noise alone, each a minute of it.

    ``alarms``: emotions newly shown; ``turns``: turns that were said to be emotional; ``events``:
    emotion events that show an emotion, four a second where the voice activity is taken in.
    """
    minutes = sum(minutes_of(call, noise=True) for call in calls)
    names = [label for label in LABELS if label != "neutral"]
    alarms = sum(count_alarms(call) for call in calls)
    turns = sum(word in names for call in calls for word in call.said)
    events = sum(item.label in names for call in calls for item in call.shown)
    return {
        "minutes": rounded(minutes),
        "alarms_a_minute": rounded(alarms / minutes),
        "turns_a_minute": rounded(turns / minutes),
        "events_a_minute": rounded(events / minutes),
        "all_turns_a_minute": rounded(sum(len(call.said) for call in calls) / minutes),
    }


def rounded(value: float | np.floating[Any]) -> float:
    """Return a float of four decimals."""
    return round(float(value), 4)


def _uar(answers: Answers) -> dict[str, Any]:
    return {"uar": rounded(unweighted_average_recall(_counts(answers))), "n": len(answers)}


def _counts(answers: Answers) -> NDArray[np.int64]:
    return confusion(*_columns(answers), _NUM_ANSWERS)


def _columns(answers: Answers) -> tuple[list[int], list[int]]:
    truth = [LABELS.index(utterance.label or "") for utterance, _ in answers]
    return truth, [answer for _, answer in answers]


def _corpora(answers: Answers) -> list[str]:
    return sorted({utterance.corpus for utterance, _ in answers})


def _genders(answers: Answers) -> list[str]:
    return sorted({utterance.gender for utterance, _ in answers} - {""})
