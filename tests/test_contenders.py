"""Whom a model file is tested on: by its card, those whom it has not heard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from msgspec.structs import replace as replace_card

from streamer.card import CARD_KEY, Corpus, encode_card
from streamer.model import Model
from tests.models import tiny_model, with_metadata
from tests.test_splits import made_up
from train.contenders import Contender, EvaluateConfig, model_contender
from train.corpora import Utterance
from train.folds import with_validation
from train.splits import HeldOut, folds_of, split_all

UTTERANCES = [
    replace(item, label="sad" if number % 3 else None)  # other emotions test, but do not count
    for number, item in enumerate(
        made_up({"emodb": [5] * 5, "mine": [4, 5, 6, 4, 5], "nemo": [7] * 6})
    )
]
LABELLED = [item for item in UTTERANCES if item.label]


def contender(
    folder: Path, heard: Sequence[Utterance], fold: int | None, config: EvaluateConfig | None = None
) -> Contender:
    """Return what becomes of a model file whose card says that it heard these."""
    model = tiny_model(folder)
    card = Model.load(model, provider="cpu").card
    names = sorted({item.corpus for item in heard})
    data = tuple(
        Corpus(
            name=name,
            language="none",
            speakers=len({item.speaker for item in heard if item.corpus == name}),
            utterances=sum(item.corpus == name for item in heard),
            licence="none",
        )
        for name in names
    )
    card = replace_card(card, data=data, training={**card.training, "fold": fold})
    path = with_metadata(model, folder / "told.onnx", **{CARD_KEY: encode_card(card)})
    return model_contender(path, UTTERANCES, config or EvaluateConfig(conditions=("clean",)))


@pytest.mark.parametrize("is_refit", [False, True])
@pytest.mark.parametrize("held_out", get_args(HeldOut))
def test_a_folds_model_hears_whom_that_fold_holds_out(
    tmp_path: Path, held_out: HeldOut, is_refit: bool
) -> None:
    for split in folds_of(LABELLED, held_out):
        trained = with_validation(split) if is_refit else split
        found = contender(tmp_path, trained.train, split.fold)
        speakers = {item.speaker_id for item in split.test}
        assert {item.speaker_id for item in found.test} == speakers
        assert len(found.test) == sum(item.speaker_id in speakers for item in UTTERANCES)
        assert found.is_held_out
        assert found.fold == split.fold


def test_everybodys_model_hears_everybody_and_is_no_measure_of_corpora_that_it_knows(
    tmp_path: Path,
) -> None:
    found = contender(tmp_path, LABELLED, None)
    assert len(found.test) == len(UTTERANCES)
    assert not found.is_held_out


def test_a_corpus_of_which_it_heard_nobody_is_a_measure_alone(tmp_path: Path) -> None:
    heard = split_all([item for item in LABELLED if item.corpus != "mine"]).train
    for corpus, is_held_out in (("mine", True), ("nemo", False)):
        config = EvaluateConfig(conditions=("clean",), corpora=(corpus,))
        found = contender(tmp_path, heard, None, config)
        assert {item.corpus for item in found.test} == {corpus}
        assert found.is_held_out is is_held_out


def test_a_fold_of_other_data_is_heard_by_all(tmp_path: Path) -> None:
    found = contender(tmp_path, LABELLED[1:], 0)
    assert len(found.test) == len(UTTERANCES)
    assert not found.is_held_out
