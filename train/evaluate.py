"""Trained folds on speakers that they never heard, through the session that serves.

Every utterance is a call of its own: bytes in chunks through ``streamer.call.Call``, a cold start,
windows scored by the checkpoint, and the events that come out are what is counted.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from streamer.arrays import Samples
from streamer.audio import AudioFormat
from streamer.call import Call, CallConfig
from streamer.card import Card
from streamer.errors import ConfigError
from streamer.events import Emotion, Event, Turn
from streamer.smoothing import calibrate
from train.calibrate import expected_calibration_error, fit_temperature
from train.checkpoint import Checkpoint, card_of, load_checkpoint
from train.config import config_to_dict
from train.corpora import LABELS, SAMPLE_RATE, Utterance
from train.dataset import CONDITIONS, condition_samples
from train.metrics import confusion, uar_interval, unweighted_average_recall, weighted_accuracy
from train.splits import Split, speaker_folds

KINDS = ("window", "smoothed", "turn")
NO_ANSWER = len(LABELS)
"""Stands for the answer to an utterance in which the session found no turn: always wrong."""

_FORMAT = AudioFormat(encoding="pcm_f32le", sample_rate=SAMPLE_RATE, channels=1)
_CHUNK_BYTES = round(0.1 * SAMPLE_RATE) * _FORMAT.bytes_per_sample
_BATCH = 64  # windows scored at once
_GROUP = 32  # calls whose windows are in memory at once
_SMALLEST = 5e-7  # events hold six decimals: what they show as 0 is less than this


@dataclass(frozen=True, kw_only=True, eq=False)
class Heard:
    """What the events of one utterance's call said, at temperatures of 1.

    ``window`` and ``smoothed`` (m, num_labels): each window's own and averaged scores; ``turn``
    (k, num_labels), ``turn_windows`` (k,): each turn's, and how many windows it averaged.
    """

    utterance: Utterance
    window: NDArray[np.float64]
    smoothed: NDArray[np.float64]
    turn: NDArray[np.float64]
    turn_windows: NDArray[np.int64]

    @property
    def truth(self) -> int:
        """Index of the utterance's label."""
        return LABELS.index(self.utterance.label or "")

    @property
    def answer(self) -> int:
        """Index of the label that all turns together come to, each by its windows' number."""
        if not len(self.turn):
            return NO_ANSWER
        return int(np.argmax(self.turn_windows @ self.turn))


@dataclass(frozen=True, kw_only=True)
class Group:
    """Utterances that one checkpoint hears together: ``part`` is test or validation."""

    checkpoint: Path
    fold: int
    part: str
    condition: str
    utterances: tuple[Utterance, ...]


def listen(network: nn.Module, card: Card, audios: Iterable[Samples]) -> list[list[Event]]:
    """Play 16 kHz audios through a call each, as served, and return their events."""
    calls, due = [], []
    for audio in audios:
        call = Call(card, CallConfig(audio=_FORMAT))
        coded = audio.astype("<f4").tobytes()
        for start in range(0, len(coded), _CHUNK_BYTES):
            call.receive(coded[start : start + _CHUNK_BYTES], 0.0)
        call.receive_end(0.0)
        calls.append(call)
        due += [(call, window) for window in call.windows_to_score()]
    for start in range(0, len(due), _BATCH):
        batch = due[start : start + _BATCH]
        features = torch.from_numpy(np.stack([window.features for _, window in batch]))
        with torch.inference_mode():
            logits = network(features)[0].numpy()
        for (call, window), row in zip(batch, logits, strict=True):
            call.receive_scores(window, row)
    return [call.events_to_send(0.0) for call in calls]


def hear(group: Group) -> list[Heard]:
    """Play a group's utterances to its checkpoint."""
    checkpoint = load_checkpoint(group.checkpoint)
    audios = [condition_samples(utterance, group.condition) for utterance in group.utterances]
    events_of = listen(checkpoint.network, card_of(checkpoint), audios)
    return [
        _heard(utterance, events)
        for utterance, events in zip(group.utterances, events_of, strict=True)
    ]


def _heard(utterance: Utterance, events: Sequence[Event]) -> Heard:
    emotions = [event for event in events if isinstance(event, Emotion)]
    turns = [event for event in events if isinstance(event, Turn)]
    return Heard(
        utterance=utterance,
        window=_table([event.raw for event in emotions]),
        smoothed=_table([event.scores for event in emotions]),
        turn=_table([event.scores for event in turns]),
        turn_windows=np.array([event.windows for event in turns], np.int64),
    )


def _table(scores: Sequence[dict[str, float]]) -> NDArray[np.float64]:
    rows = np.array([[row[label] for label in LABELS] for row in scores], np.float64)
    return np.maximum(rows.reshape(-1, len(LABELS)), _SMALLEST)


def evaluate(
    run: Path,
    utterances: Sequence[Utterance],
    *,
    folds: Sequence[int] = (),
    corpora: Sequence[str] = (),
    jobs: int = 1,
    begin: Callable[[int], None] = lambda total: None,
    advance: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Return the results of ``run/fold0``, ``fold1``...: plain data, as JSON can hold.

    Args:
        run: the folder of the folds, each with its ``best.pt``.
        utterances: the data that they were trained on, all of it.
        folds: those to evaluate; all if empty.
        corpora: those to evaluate; all if empty.
        jobs: processes.
        begin: gets the number of utterances to be heard, ``advance`` those heard since.

    Raises:
        ConfigError: a checkpoint is missing, was not trained on what these folds train on, or has
            another configuration than the others; an unknown fold or corpus.
        CorpusError: audio that cannot be read.
    """
    splits = _chosen(speaker_folds(utterances), folds)
    known = {utterance.corpus for utterance in utterances}
    unknown = set(corpora) - known
    if unknown:
        raise ConfigError(f"corpus {min(unknown)!r}: expected one of {', '.join(sorted(known))}")
    paths = [run / f"fold{split.fold}" / "best.pt" for split in splits]
    checkpoints = [load_checkpoint(path) for path in paths]
    for path, split, checkpoint in zip(paths, splits, checkpoints, strict=True):
        check_split(path, split, checkpoint)
        if checkpoint.config != checkpoints[0].config:
            raise ConfigError(f"{path}: expected the configuration of {paths[0]}, found another")
    groups = [
        group
        for path, split in zip(paths, splits, strict=True)
        for group in _groups(path, split, set(corpora) or known)
    ]
    begin(sum(len(group.utterances) for group in groups))
    heard: dict[tuple[int, str, str], list[Heard]] = {}
    with _mapper(jobs) as mapper:
        for group, answers in zip(groups, mapper(hear, groups), strict=True):
            heard.setdefault((group.fold, group.part, group.condition), []).extend(answers)
            advance(len(group.utterances))
    return _results(splits, checkpoints, heard)


def check_split(path: Path, split: Split, checkpoint: Checkpoint) -> None:
    """Make sure that a checkpoint was trained on ``split.train``, as far as counts can tell.

    Raises:
        ConfigError: it was trained on another fold, or on other data.
    """
    expected = {
        corpus: {
            "utterances": sum(item.corpus == corpus for item in split.train),
            "speakers": len({item.speaker for item in split.train if item.corpus == corpus}),
        }
        for corpus in sorted({item.corpus for item in split.train})
    }
    found = checkpoint.training_data
    if checkpoint.fold != split.fold or found != expected:
        raise ConfigError(
            f"{path} was trained as fold {checkpoint.fold} on {found}: expected fold "
            f"{split.fold} of the data at hand, {expected}"
        )


def _chosen(splits: Sequence[Split], folds: Sequence[int]) -> list[Split]:
    wrong = set(folds) - {split.fold for split in splits}
    if wrong:
        raise ConfigError(f"fold {min(wrong)}: expected 0 to {len(splits) - 1}")
    return [split for split in splits if not folds or split.fold in folds]


def _groups(path: Path, split: Split, corpora: set[str]) -> Iterator[Group]:
    for part, condition in (("validation", "clean"), *(("test", name) for name in CONDITIONS)):
        members = split.test if part == "test" else split.validation
        chosen = [item for item in members if item.corpus in corpora]
        for start in range(0, len(chosen), _GROUP):
            yield Group(
                checkpoint=path,
                fold=split.fold or 0,
                part=part,
                condition=condition,
                utterances=tuple(chosen[start : start + _GROUP]),
            )


@contextmanager
def _mapper(jobs: int) -> Iterator[Callable[..., Iterable[list[Heard]]]]:
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


def _results(
    splits: Sequence[Split],
    checkpoints: Sequence[Checkpoint],
    heard: dict[tuple[int, str, str], list[Heard]],
) -> dict[str, Any]:
    temperatures = {
        split.fold or 0: _temperatures(heard[split.fold or 0, "validation", "clean"])
        for split in splits
    }
    tested = {
        condition: {split.fold or 0: heard[split.fold or 0, "test", condition] for split in splits}
        for condition in CONDITIONS
    }
    reports = {condition: _by_corpus(list(folds.values())) for condition, folds in tested.items()}
    return {
        "config": config_to_dict(checkpoints[0].config),
        "protocol": "speaker-independent folds, each utterance a call of its own, cold start",
        "folds": [
            {
                "fold": split.fold,
                "seed": checkpoint.config.seed,
                "epoch": checkpoint.epoch,
                "validation": checkpoint.validation,
                "test": _by_corpus_uar(tested["clean"][split.fold or 0]),
                "temperatures": temperatures[split.fold or 0],
            }
            for split, checkpoint in zip(splits, checkpoints, strict=True)
        ],
        "corpora": reports["clean"],
        "telephone": reports["telephone"],
        "mean": {
            condition: _round(np.mean([corpus["uar"] for corpus in report.values()]))
            for condition, report in reports.items()
        },
        "calibration": {
            kind: _round(np.median([fold[kind] for fold in temperatures.values()]))
            for kind in KINDS
        },
        "ece": {kind: _ece(kind, tested["clean"], temperatures) for kind in KINDS},
    }


def _by_corpus(folds: Sequence[Sequence[Heard]]) -> dict[str, Any]:
    """Results of each corpus over all folds' test utterances."""
    everyone = [item for fold in folds for item in fold]
    reports = {}
    for corpus in sorted({item.utterance.corpus for item in everyone}):
        members = [item for item in everyone if item.utterance.corpus == corpus]
        truth, answers = [item.truth for item in members], [item.answer for item in members]
        speakers = [item.utterance.speaker_id for item in members]
        counts = confusion(truth, answers, len(LABELS) + 1)
        low, high = uar_interval(truth, answers, speakers, len(LABELS) + 1)
        genders = sorted({item.utterance.gender for item in members} - {""})
        reports[corpus] = {
            "uar": _round(unweighted_average_recall(counts)),
            "interval": [_round(low), _round(high)],
            "wa": _round(weighted_accuracy(counts)),
            "n": len(members),
            "speakers": len(set(speakers)),
            "confusion": counts[:-1, :-1].tolist(),
            "unanswered": counts[:-1, -1].tolist(),
            "gender": {
                gender: _uar([item for item in members if item.utterance.gender == gender])
                for gender in genders
            },
        }
    return reports


def _by_corpus_uar(heard: Sequence[Heard]) -> dict[str, float]:
    corpora = sorted({item.utterance.corpus for item in heard})
    return {
        corpus: _uar([item for item in heard if item.utterance.corpus == corpus])["uar"]
        for corpus in corpora
    }


def _uar(heard: Sequence[Heard]) -> dict[str, Any]:
    counts = confusion(
        [item.truth for item in heard], [item.answer for item in heard], len(LABELS) + 1
    )
    return {"uar": _round(unweighted_average_recall(counts)), "n": len(heard)}


def _stacked(heard: Sequence[Heard], kind: str) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """All probabilities of one kind, (n, num_labels), and their labels (n,)."""
    rows = [getattr(item, kind) for item in heard]
    truth = np.repeat([item.truth for item in heard], [len(row) for row in rows])
    return np.concatenate(rows), truth.astype(np.intp)


def _temperatures(validation: Sequence[Heard]) -> dict[str, float]:
    return {kind: _round(fit_temperature(*_stacked(validation, kind))) for kind in KINDS}


def _ece(
    kind: str, tested: dict[int, list[Heard]], temperatures: dict[int, dict[str, float]]
) -> dict[str, float]:
    """ECE on test speakers, before and after their own fold's temperature, over all folds."""
    before, after, labels = [], [], []
    for fold, heard in tested.items():
        probabilities, truth = _stacked(heard, kind)
        before.append(probabilities)
        after.append(calibrate(probabilities, temperatures[fold][kind]))
        labels.append(truth)
    truth = np.concatenate(labels)
    return {
        "before": _round(expected_calibration_error(np.concatenate(before), truth)),
        "after": _round(expected_calibration_error(np.concatenate(after), truth)),
    }


def _round(value: float | np.floating[Any]) -> float:
    return round(float(value), 4)
