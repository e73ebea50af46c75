"""Who is evaluated and on whom: the networks of trained folds, or one model file as served."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import get_args

import numpy as np

from export_onnx import export
from streamer.card import Card
from streamer.errors import ConfigError
from streamer.model import Model
from train.checkpoint import REFIT, Checkpoint, card_of, load_checkpoint
from train.conditions import CONDITIONS, Surroundings
from train.config import FitConfig
from train.corpora import CorpusError, Utterance
from train.folds import with_validation
from train.splits import HeldOut, Split, folds_of


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What is to be measured.

    ``folds`` and ``corpora``: only those, all if empty. ``limit``: at most so many utterances of
    each corpus in each part, 0 for all. Of ``conditions`` clean is always one. ``offline`` and
    ``spliced`` can be left out. ``held_out`` is what the folds of a folder are of. ``jobs``:
    processes.

    Raises:
        ConfigError: an unknown condition, or one whose sounds are not there.
    """

    conditions: tuple[str, ...] = CONDITIONS
    surroundings: Surroundings = field(default_factory=Surroundings)
    folds: tuple[int, ...] = ()
    corpora: tuple[str, ...] = ()
    offline: bool = True
    spliced: bool = True
    limit: int = 0
    held_out: HeldOut = "speakers"
    jobs: int = 1

    def __post_init__(self) -> None:
        for condition in self.conditions:
            if condition not in CONDITIONS:
                raise ConfigError(
                    f"condition {condition!r}: expected one of {', '.join(CONDITIONS)}"
                )
            if not self.surroundings.allow(condition):
                raise ConfigError(f"condition {condition!r}: found no sounds that it is made of")


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One model and who hears it: ``checkpoint`` is None for a model file as it would be served.

    ``judge`` is the model that hears ``validation`` in its stead, where it has trained on them.
    ``fold`` decides which noises it may not have trained on; None where nobody can tell.
    ``is_held_out`` tells that nobody in ``test`` is in a corpus that trained it.
    """

    model: Path
    card: Card
    fold: int | None
    checkpoint: Checkpoint | None
    validation: tuple[Utterance, ...]
    test: tuple[Utterance, ...]
    is_held_out: bool = True
    judge: tuple[Path, Card] | None = None


def fold_contenders(
    run: Path, utterances: Sequence[Utterance], config: EvaluateConfig, folder: Path
) -> list[Contender]:
    """Export the best network of each fold into ``folder``, as it would be served."""
    labelled = [utterance for utterance in utterances if utterance.label]
    splits = _chosen(folds_of(labelled, config.held_out), config.folds)
    contenders: list[Contender] = []
    for split in splits:
        path = run / f"fold{split.fold}" / "best.pt"
        checkpoint = load_checkpoint(path)
        check_split(path, split, checkpoint, utterances)
        judge = None
        if checkpoint.config.refit:
            # The second one is as it was after its last epoch, so the first one has to be, too:
            # after another it would be less sure, or more.
            first = load_checkpoint(path.with_name("last.pt"))
            judge = folder / f"fold{split.fold}-judge.onnx", card_of(first)
            export(first, judge[1], judge[0], None)
            path = path.parent / REFIT / "best.pt"
            checkpoint = load_checkpoint(path)
            check_split(path, with_validation(split), checkpoint, utterances)
        if contenders and checkpoint.config != _config_of(contenders[0]):
            raise ConfigError(
                f"{path}: expected the configuration of fold {contenders[0].fold}, found another"
            )
        model = folder / f"fold{split.fold}.onnx"
        export(checkpoint, card_of(checkpoint), model, None)
        speakers = {utterance.speaker_id for utterance in split.test}
        test = [item for item in utterances if item.speaker_id in speakers]
        contenders.append(
            Contender(
                model=model,
                card=card_of(checkpoint),
                fold=split.fold,
                checkpoint=checkpoint,
                validation=_some(split.validation, config),
                test=_some(test, config),
                judge=judge,
            )
        )
    return contenders


def _config_of(contender: Contender) -> FitConfig | None:
    return None if contender.checkpoint is None else contender.checkpoint.config


def model_contender(
    path: Path, utterances: Sequence[Utterance], config: EvaluateConfig
) -> Contender:
    """Take a model file as it is, with its own temperatures and thresholds.

    It hears all utterances or, if its card says that it is a fold of this very data, that fold's
    test speakers, or corpus.

    Raises:
        ConfigError: folds are asked for.
        ModelError: the file is not a model.
    """
    if config.folds:
        raise ConfigError(f"folds of one model, {path}: expected a folder of folds")
    card = Model.load(path, provider="cpu").card
    held_out = _held_out(card, utterances)
    test = _some(held_out or utterances, config)
    return Contender(
        model=path,
        card=card,
        fold=card.training.get("fold"),
        checkpoint=None,
        validation=(),
        test=test,
        is_held_out=bool(held_out) or not corpora_heard(card, test),
    )


def _held_out(card: Card, utterances: Sequence[Utterance]) -> list[Utterance]:
    """Return all utterances of those whom a fold's model, of either kind, has not heard."""
    labelled = [item for item in utterances if item.label]
    told = {
        item.name: {"utterances": item.utterances, "speakers": item.speakers} for item in card.data
    }
    splits: list[Split] = []
    for held_out in get_args(HeldOut):
        with suppress(CorpusError):  # too few speakers, or corpora, for folds of that kind
            splits += folds_of(labelled, held_out)
    for split in splits:
        counts = _count(split.train), _count(with_validation(split).train)
        if split.fold == card.training.get("fold") and told in counts:
            speakers = {item.speaker_id for item in split.test}
            return [item for item in utterances if item.speaker_id in speakers]
    return []


def corpora_heard(card: Card, utterances: Sequence[Utterance]) -> tuple[str, ...]:
    """Return which of the utterances' corpora trained a model, perhaps with these speakers."""
    return tuple(sorted({item.corpus for item in utterances} & {item.name for item in card.data}))


def check_split(
    path: Path, split: Split, checkpoint: Checkpoint, utterances: Sequence[Utterance] = ()
) -> None:
    """Make sure that a checkpoint was trained on ``split.train``, as far as counts can tell.

    It may have heard its speakers' utterances without a label, too: those of ``utterances``.

    Raises:
        ConfigError: it was trained on another fold, or on other data.
    """
    speakers = {item.speaker_id for item in split.train}
    expected = _count(split.train)
    found = checkpoint.training_data
    wider = _count([item for item in utterances if item.speaker_id in speakers])
    if checkpoint.fold != split.fold or found not in (expected, wider):
        raise ConfigError(
            f"{path} was trained as fold {checkpoint.fold} on {found}: expected fold "
            f"{split.fold} of the data at hand, {expected}"
        )


def _count(utterances: Sequence[Utterance]) -> dict[str, dict[str, int]]:
    return {
        corpus: {
            "utterances": sum(item.corpus == corpus for item in utterances),
            "speakers": len({item.speaker for item in utterances if item.corpus == corpus}),
        }
        for corpus in sorted({item.corpus for item in utterances})
    }


def _chosen(splits: Sequence[Split], folds: Sequence[int]) -> list[Split]:
    wrong = set(folds) - {split.fold for split in splits}
    if wrong:
        raise ConfigError(f"fold {min(wrong)}: expected 0 to {len(splits) - 1}")
    return [split for split in splits if not folds or split.fold in folds]


def _some(utterances: Sequence[Utterance], config: EvaluateConfig) -> tuple[Utterance, ...]:
    """Those of the corpora wanted, of each and of each label at most so many, evenly spread."""
    kept = [item for item in utterances if not config.corpora or item.corpus in config.corpora]
    kept.sort(key=lambda item: (item.corpus, item.label is None, item.utterance_id))
    if not config.limit:
        return tuple(kept)
    few: list[Utterance] = []
    for _, group in groupby(kept, key=lambda item: (item.corpus, item.label is None)):
        members = list(group)
        places = np.linspace(0, len(members) - 1, min(config.limit, len(members))).astype(int)
        few += [members[place] for place in places]
    return tuple(few)
