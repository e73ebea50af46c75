"""Who trains, validates and tests: by speaker or corpus, but for the paper's own protocol."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, TypeAlias

import numpy as np

from train.corpora import CorpusError, Utterance

NUM_FOLDS = 5
MIN_SPEAKERS = 3  # one each to test, to validate and to train on

HeldOut: TypeAlias = Literal["speakers", "corpora"]
"""What folds test on: speakers of corpora whose others train, or corpora of which nobody trains."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """The utterances of one fold, each part sorted by utterance id.

    `fold` is the fold that is held out, None where nothing is held out for a test.
    """

    fold: int | None
    train: tuple[Utterance, ...]
    validation: tuple[Utterance, ...]
    test: tuple[Utterance, ...]

    @property
    def utterances(self) -> list[Utterance]:
        """All parts' utterances, each once, sorted by utterance id."""
        everyone = {item.utterance_id: item for item in self.train + self.validation + self.test}
        return [everyone[key] for key in sorted(everyone)]

    @property
    def shared_speakers(self) -> frozenset[str]:
        """Speaker ids in more than one part: empty for every split by speaker."""
        train, validation, test = (
            frozenset(utterance.speaker_id for utterance in part)
            for part in (self.train, self.validation, self.test)
        )
        return train & validation | train & test | validation & test


def fold_by_speaker(utterances: Iterable[Utterance], num_folds: int = NUM_FOLDS) -> dict[str, int]:
    """Each speaker's fold, by speaker id: the place among the corpus's sorted speakers, modulo.

    The place depends on who is there: fold the whole of the data first and filter the parts
    afterwards, or the same speaker lands in another fold.
    """
    speakers: dict[str, set[str]] = defaultdict(set)
    for utterance in utterances:
        speakers[utterance.corpus].add(utterance.speaker_id)
    return {
        speaker_id: place % num_folds
        for corpus in sorted(speakers)
        for place, speaker_id in enumerate(sorted(speakers[corpus]))
    }


def speaker_folds(utterances: Sequence[Utterance], num_folds: int = NUM_FOLDS) -> list[Split]:
    """Speaker-independent folds: fold k tests, fold k + 1 (modulo) validates, the rest trains.

    Every utterance tests exactly once and every corpus is in every part. A corpus with fewer
    speakers than `num_folds` lowers the number of folds, for all, to its number of speakers.

    Raises:
        CorpusError: nothing to split, an utterance given twice, or a corpus of fewer than 3
            speakers.
        ValueError: `num_folds` is less than 3.
    """
    if num_folds < MIN_SPEAKERS:
        raise ValueError(f"num_folds: found {num_folds}, expected {MIN_SPEAKERS} or more")
    ordered = _ordered(utterances)
    num_folds = min(num_folds, _num_speakers_of_smallest(ordered))
    fold_of = fold_by_speaker(ordered, num_folds)
    splits = [
        _split_by_fold(ordered, fold_of, test=fold, validation=(fold + 1) % num_folds)
        for fold in range(num_folds)
    ]
    for split in splits:
        if split.shared_speakers:
            raise CorpusError(
                f"fold {split.fold}: found speakers {', '.join(sorted(split.shared_speakers))} "
                "in more than one part, expected every speaker in one"
            )
    return splits


def corpus_folds(utterances: Sequence[Utterance]) -> list[Split]:
    """Leave one corpus out: fold k tests the whole of the k-th, in alphabetical order.

    A fifth of the others' speakers validate, the first of :func:`fold_by_speaker`; the rest trains.
    So language, room, microphone and actors of the test are all unheard.

    Raises:
        CorpusError: as :func:`split_all`, or fewer than two corpora.
    """
    ordered = _ordered(utterances)
    corpora = sorted({utterance.corpus for utterance in ordered})
    if len(corpora) < 2:
        raise CorpusError(f"found one corpus, {corpora[0]}: expected two or more, to hold one out")
    splits = []
    for fold, corpus in enumerate(corpora):
        others = split_all([item for item in ordered if item.corpus != corpus], validation_fold=0)
        test = tuple(item for item in ordered if item.corpus == corpus)
        splits.append(replace(others, fold=fold, test=test))
    return splits


def folds_of(utterances: Sequence[Utterance], held_out: HeldOut) -> list[Split]:
    """Return the folds of :func:`speaker_folds` or of :func:`corpus_folds`."""
    return corpus_folds(utterances) if held_out == "corpora" else speaker_folds(utterances)


def split_all(utterances: Sequence[Utterance], validation_fold: int | None = None) -> Split:
    """For the model that ships, whose figures come from `speaker_folds`: no test.

    With `validation_fold` None everything trains and nothing is held out. Otherwise that fold of
    speakers (0 to NUM_FOLDS - 1) validates, and so does not train: to pick an epoch or to
    fit a temperature on people that the model has not heard.

    Raises:
        CorpusError: nothing to split, an utterance given twice, or, with `validation_fold`, a
            corpus of fewer than 3 speakers.
        ValueError: there is no such fold.
    """
    ordered = _ordered(utterances)
    if validation_fold is None:
        return Split(fold=None, train=ordered, validation=(), test=())
    num_folds = min(NUM_FOLDS, _num_speakers_of_smallest(ordered))
    if not 0 <= validation_fold < num_folds:
        raise ValueError(f"validation_fold: found {validation_fold}, expected 0 to {num_folds - 1}")
    fold_of = fold_by_speaker(ordered, num_folds)
    return _split_by_fold(ordered, fold_of, test=None, validation=validation_fold)


def paper_protocol_folds(
    utterances: Sequence[Utterance], seed: int, num_folds: int = NUM_FOLDS
) -> list[Split]:
    """The paper's protocol (section 3.2): random folds, 80 % to train and 20 % to test.

    Speakers are shared between training and test: a table made from these folds has to say so.
    There is no validation part, so the last epoch counts. The order of `utterances` does not
    matter, only which they are and the seed.

    Raises:
        CorpusError: fewer utterances than folds, or one given twice.
        ValueError: `num_folds` is less than 2.
    """
    if num_folds < 2:
        raise ValueError(f"num_folds: found {num_folds}, expected 2 or more")
    ordered = _ordered(utterances)
    if len(ordered) < num_folds:
        raise CorpusError(f"found {len(ordered)} utterances, expected {num_folds} or more")
    shuffled = np.random.default_rng(seed).permutation(len(ordered))
    fold_of = np.empty(len(ordered), dtype=np.int64)
    fold_of[shuffled] = np.arange(len(ordered)) % num_folds
    return [
        Split(
            fold=fold,
            train=tuple(ordered[i] for i in np.flatnonzero(fold_of != fold)),
            validation=(),
            test=tuple(ordered[i] for i in np.flatnonzero(fold_of == fold)),
        )
        for fold in range(num_folds)
    ]


def _ordered(utterances: Sequence[Utterance]) -> tuple[Utterance, ...]:
    ordered = tuple(sorted(utterances, key=lambda utterance: utterance.utterance_id))
    if not ordered:
        raise CorpusError("found no utterances, expected some to split")
    for one, other in pairwise(ordered):
        if one.utterance_id == other.utterance_id:
            raise CorpusError(f"found {one.utterance_id} twice, expected every utterance once")
    return ordered


def _num_speakers_of_smallest(utterances: Iterable[Utterance]) -> int:
    speakers: dict[str, set[str]] = defaultdict(set)
    for utterance in utterances:
        speakers[utterance.corpus].add(utterance.speaker)
    for corpus in sorted(speakers):
        if len(speakers[corpus]) < MIN_SPEAKERS:
            raise CorpusError(
                f"corpus {corpus}: found {len(speakers[corpus])} speakers "
                f"({', '.join(sorted(speakers[corpus]))}), expected {MIN_SPEAKERS} or more: one "
                "each to train on, to validate and to test"
            )
    return min(len(names) for names in speakers.values())


def _split_by_fold(
    utterances: Iterable[Utterance], fold_of: dict[str, int], *, test: int | None, validation: int
) -> Split:
    train_part, validation_part, test_part = [], [], []
    for utterance in utterances:
        fold = fold_of[utterance.speaker_id]
        if fold == test:
            test_part.append(utterance)
        elif fold == validation:
            validation_part.append(utterance)
        else:
            train_part.append(utterance)
    return Split(
        fold=test,
        train=tuple(train_part),
        validation=tuple(validation_part),
        test=tuple(test_part),
    )
