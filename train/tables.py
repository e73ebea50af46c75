"""All that was heard, laid out as the results of an evaluation: plain data, as JSON can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamer.card import Calibration, Rejection
from train.config import config_to_dict
from train.contenders import Contender
from train.corpora import Utterance
from train.listening import Heard
from train.measures import (
    KINDS,
    against_seconds,
    answers_of,
    by_corpus,
    by_gender,
    mean_uar,
    of_noise,
    of_spliced,
    over_corpora,
    rounded,
    sureness,
    what_was_said,
)
from train.offline import OfflineAnswer
from train.spliced import SplicedCall
from train.splits import HeldOut

FOLDS_PROTOCOLS: dict[HeldOut, str] = {
    "speakers": "speaker-independent folds, each utterance a call of its own, cold start",
    "corpora": "each corpus held out in turn, each utterance a call of its own, cold start",
}
MODEL_PROTOCOL = "one model, each utterance a call of its own, cold start"
HEARD_BEFORE = "; corpora that trained it are among these: no measure of unheard speakers"


@dataclass(frozen=True, kw_only=True)
class Found:
    """All that was heard: ``tested`` by condition and fold, the rest of all folds together.

    ``held_out`` is what the folds are of; ``fitted`` is what each one's test speakers were served
    with.
    """

    contenders: tuple[Contender, ...]
    held_out: HeldOut
    fitted: dict[int | None, tuple[Calibration, Rejection]]
    tested: dict[str, dict[int | None, list[Heard]]]
    others: list[Heard]
    offline: list[tuple[Utterance, OfflineAnswer]]
    spliced: list[SplicedCall]
    noise: list[SplicedCall]


def make_results(found: Found) -> dict[str, Any]:
    """Lay out an evaluation's results.

    ``conditions`` holds every one that was heard, ``corpora`` and ``telephone`` two of them in
    full, ``mean`` their means; ``calibration`` and ``rejection`` are the folds' medians.
    """
    first = found.contenders[0]
    clean = [item for heard in found.tested["clean"].values() for item in heard]
    answers = {
        condition: [pair for heard in folds.values() for pair in answers_of(heard)]
        for condition, folds in found.tested.items()
    }
    conditions = {name: over_corpora(pairs) for name, pairs in answers.items()}
    protocol = FOLDS_PROTOCOLS[found.held_out]
    if first.checkpoint is None:
        protocol = MODEL_PROTOCOL + ("" if first.is_held_out else HEARD_BEFORE)
    temperatures = {
        fold: {kind: getattr(calibration, kind) for kind in KINDS}
        for fold, (calibration, _) in found.fitted.items()
    }
    results: dict[str, Any] = {
        "model": first.checkpoint.config.name if first.checkpoint else first.card.name,
        "config": config_to_dict(first.checkpoint.config) if first.checkpoint else {},
        "protocol": protocol,
        "folds": _folds(found),
        "corpora": by_corpus(answers["clean"]),
        "telephone": by_corpus(answers["telephone"]) if "telephone" in answers else {},
        "mean": {name: report["mean"]["uar"] for name, report in conditions.items()},
        "conditions": conditions,
        "gender": by_gender(answers["clean"]),
        "heard_s": against_seconds(clean),
        "calibration": {
            kind: _median([values[kind] for values in temperatures.values()]) for kind in KINDS
        },
        "rejection": {
            kind: _median([getattr(rejection, kind) for _, rejection in found.fitted.values()])
            for kind in ("smoothed", "turn")
        },
        **sureness(found.tested["clean"], temperatures),
        "said": what_was_said(clean + found.others),
    }
    if found.offline:
        results["offline"] = _offline(found.offline, results["mean"]["clean"])
    if found.spliced:
        results["spliced"] = of_spliced(found.spliced)
    if found.noise:
        results["noise"] = of_noise(found.noise)
    return results


def _folds(found: Found) -> list[dict[str, Any]]:
    folds = []
    for contender in found.contenders:
        if contender.checkpoint is None:
            continue
        calibration, rejection = found.fitted[contender.fold]
        clean = answers_of(found.tested["clean"][contender.fold])
        folds.append(
            {
                "fold": contender.fold,
                "seed": contender.checkpoint.config.seed,
                "epoch": contender.checkpoint.epoch,
                "validation": contender.checkpoint.validation,
                "test": {name: report["uar"] for name, report in by_corpus(clean).items()},
                "temperatures": {kind: getattr(calibration, kind) for kind in KINDS},
                "rejection": {"smoothed": rejection.smoothed, "turn": rejection.turn},
            }
        )
    return folds


def _offline(offline: Sequence[tuple[Utterance, OfflineAnswer]], streamed: float) -> dict[str, Any]:
    """UAR from corpus boundaries, and the points that streaming costs; ``whole`` is the bound."""
    causal = [(utterance, answer.causal) for utterance, answer in offline]
    whole = [(utterance, answer.whole) for utterance, answer in offline]
    return {
        "causal": over_corpora(causal),
        "whole": over_corpora(whole),
        "streamed": streamed,
        "gap_points": rounded(100 * (mean_uar(causal) - streamed)),
        "gap_to_whole_points": rounded(100 * (mean_uar(whole) - streamed)),
    }


def _median(values: Sequence[float]) -> float:
    return rounded(float(np.median(values)))
