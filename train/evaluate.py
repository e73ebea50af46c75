"""Networks on speakers that they never heard, through the session that serves.

Every utterance is a call of its own: bytes in chunks through ``streamer.call.Call``, a cold start,
windows scored under ONNX Runtime, and the events that come out are what is counted. What is
evaluated is either a folder of trained folds, each network hearing the speakers it was not trained
on, or one model file as it would be served.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from msgspec.structs import replace as replace_card

from streamer.card import Calibration, Card, Rejection
from streamer.errors import ConfigError
from streamer.smoothing import calibrate
from train.calibrate import fit_temperature, rejection_threshold
from train.contenders import Contender, EvaluateConfig, fold_contenders, model_contender
from train.corpora import Utterance
from train.listening import Group, Heard, hear
from train.measures import KINDS, rounded, stacked
from train.offline import hear_offline
from train.spliced import SplicedTask, can_splice, hear_spliced
from train.tables import Found, make_results

VALIDATION_CONDITIONS = ("clean", "telephone")
"""Under which temperatures and thresholds are fitted: those that a service meets, mixed."""

_NOISES_A_CALL = 32
_GROUP = 32  # calls whose windows are in memory at once

Advance: TypeAlias = Callable[[int], None]
_Task = TypeVar("_Task")
_Got = TypeVar("_Got")


def evaluate(
    what: Path,
    utterances: Sequence[Utterance],
    config: EvaluateConfig,
    *,
    begin: Callable[[int], None] = lambda total: None,
    advance: Advance = lambda count: None,
) -> dict[str, Any]:
    """Return the results of a folder of folds, or of one ONNX file: plain data, as JSON can hold.

    Args:
        what: a folder with ``fold0/best.pt``, ``fold1/best.pt`` and so on, or an ONNX file.
        utterances: the data, with emotions outside the labels; for folds all that they trained on.
        config: what is to be measured.
        begin: gets the number of utterances to be heard, ``advance`` those heard since.

    Raises:
        ConfigError: a checkpoint is missing, was not trained on what these folds train on, or has
            another configuration than the others; an unknown fold or corpus.
        ModelError: the file is not a model.
        CorpusError: audio that cannot be read.
    """
    known = {utterance.corpus for utterance in utterances}
    unknown = set(config.corpora) - known
    if unknown:
        raise ConfigError(f"corpus {min(unknown)!r}: expected one of {', '.join(sorted(known))}")
    with tempfile.TemporaryDirectory() as folder, _mapper(config.jobs) as mapper:
        if what.is_dir():
            contenders = fold_contenders(what, utterances, config, Path(folder))
        else:
            contenders = [model_contender(what, utterances, config)]
        found = _hear_all(contenders, config, mapper, begin, advance)
    return make_results(found)


def _hear_all(
    contenders: Sequence[Contender],
    config: EvaluateConfig,
    mapper: Callable[..., Iterable[Any]],
    begin: Callable[[int], None],
    advance: Advance,
) -> Found:
    """Fit on validation speakers, then hear the test speakers under what was fitted."""
    validation = _all_groups(contenders, VALIDATION_CONDITIONS, config, validates=True)
    conditions = tuple(dict.fromkeys(("clean", *config.conditions)))
    alone = _speaker_groups(contenders) if config.offline else []
    tests = _all_groups(contenders, conditions, config)
    begin(sum(len(group.utterances) for group in (*validation, *tests, *alone)))

    def run(do: Callable[[_Task], _Got], tasks: Sequence[_Task]) -> Iterator[tuple[_Task, _Got]]:
        for task, got in zip(tasks, mapper(do, tasks), strict=True):
            yield task, got
            if isinstance(task, Group):
                advance(len(task.utterances))

    validated: dict[int | None, list[Heard]] = {}
    for group, items in run(hear, validation):
        validated.setdefault(group.fold, []).extend(items)
    fitted = {item.fold: fit(validated.get(item.fold, []), item.card) for item in contenders}
    served = [_served(item, *fitted[item.fold]) for item in contenders]
    tested: dict[str, dict[int | None, list[Heard]]] = {}
    others: list[Heard] = []
    for group, items in run(hear, _all_groups(served, conditions, config)):
        labelled = [item for item in items if item.utterance.label]
        tested.setdefault(group.condition, {}).setdefault(group.fold, []).extend(labelled)
        others += [item for item in items if not item.utterance.label]
    offline = [
        pair
        for group, answers in run(hear_offline, alone)
        for pair in zip(group.utterances, answers, strict=True)
    ]
    calls = list(run(hear_spliced, _spliced_tasks(served, config) if config.spliced else []))
    return Found(
        contenders=tuple(contenders),
        held_out=config.held_out,
        fitted=fitted,
        tested=tested,
        others=others,
        offline=offline,
        spliced=[call for task, call in calls if task.utterances],
        noise=[call for task, call in calls if not task.utterances],
    )


def _served(contender: Contender, calibration: Calibration, rejection: Rejection) -> Contender:
    """Return a contender whose card has what was fitted for it."""
    card = replace_card(contender.card, calibration=calibration, rejection=rejection)
    return replace(contender, card=card)


def fit(validated: Sequence[Heard], card: Card) -> tuple[Calibration, Rejection]:
    """Fit temperatures and thresholds to what validation speakers got; without any, the card's."""
    if not validated:
        return card.calibration, card.rejection
    pairs = {kind: stacked(validated, kind) for kind in KINDS}
    calibration = Calibration(
        **{kind: rounded(fit_temperature(*pair)) for kind, pair in pairs.items()}
    )
    thresholds = {}
    for kind in ("smoothed", "turn"):
        probabilities, labels = pairs[kind]
        calibrated = calibrate(probabilities, getattr(calibration, kind))
        thresholds[kind] = rounded(rejection_threshold(calibrated, labels))
    return calibration, Rejection(**thresholds)


def _all_groups(
    contenders: Sequence[Contender],
    conditions: Sequence[str],
    config: EvaluateConfig,
    *,
    validates: bool = False,
) -> list[Group]:
    """Test or validation utterances in each condition; those without a label clean alone."""
    groups = []
    for item, condition in product(contenders, conditions):
        members = item.validation if validates else item.test
        model, card = (item.model, item.card) if not validates or item.judge is None else item.judge
        chosen = [one for one in members if one.label or condition == "clean"]
        groups += [
            Group(
                model=model,
                card=card,
                fold=item.fold,
                condition=condition,
                utterances=tuple(chosen[start : start + _GROUP]),
                surroundings=config.surroundings,
            )
            for start in range(0, len(chosen), _GROUP)
        ]
    return groups


def _speaker_groups(contenders: Sequence[Contender]) -> list[Group]:
    """All labelled test utterances, clean, a speaker a group."""
    return [
        Group(
            model=item.model,
            card=item.card,
            fold=item.fold,
            condition="clean",
            utterances=members,
        )
        for item in contenders
        for members in _by_speaker(item)
    ]


def _by_speaker(contender: Contender) -> list[tuple[Utterance, ...]]:
    speakers: dict[str, list[Utterance]] = {}
    for utterance in contender.test:
        if utterance.label:
            speakers.setdefault(utterance.speaker_id, []).append(utterance)
    return [tuple(members) for _, members in sorted(speakers.items())]


def _spliced_tasks(contenders: Sequence[Contender], config: EvaluateConfig) -> list[SplicedTask]:
    """One call of each test speaker who says enough, and calls of each fold's noises alone."""
    tasks = []
    for item in contenders:
        noises = config.surroundings.noises_of(item.fold)
        for members in _by_speaker(item):
            if can_splice(members):
                tasks.append((item, members, noises))
        for start in range(0, len(noises), _NOISES_A_CALL):
            tasks.append((item, (), noises[start : start + _NOISES_A_CALL]))
    return [
        SplicedTask(model=item.model, card=item.card, utterances=members, noises=noises)
        for item, members, noises in tasks
    ]


@contextmanager
def _mapper(jobs: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A ``map`` in this process, or over ``jobs`` others."""
    if jobs == 1:
        yield map
        return
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), initializer=_start_worker)
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
