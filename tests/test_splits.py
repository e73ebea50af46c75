from __future__ import annotations

from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.corpora import CorpusError, Utterance, load_data
from train.splits import (
    Split,
    corpus_folds,
    fold_by_speaker,
    folds_of,
    paper_protocol_folds,
    speaker_folds,
    split_all,
)


def made_up(corpora: dict[str, list[int]]) -> list[Utterance]:
    """For each corpus the number of utterances of each of its speakers."""
    return [
        Utterance(
            path=Path(f"/{corpus}/{speaker:02d}_{number}.wav"),
            corpus=corpus,
            speaker=f"{speaker:02d}",
            label=None,
            duration_s=1.0,
        )
        for corpus, speakers in corpora.items()
        for speaker, num_utterances in enumerate(speakers)
        for number in range(num_utterances)
    ]


corpora_of_any_size = st.dictionaries(
    st.sampled_from(["emodb", "nemo", "ravdess", "mine"]),
    st.lists(st.integers(1, 4), min_size=3, max_size=12),
    min_size=1,
).map(made_up)


def ids(utterances: tuple[Utterance, ...]) -> list[str]:
    return [utterance.utterance_id for utterance in utterances]


@given(corpora_of_any_size, st.integers(3, 6))
def test_folds_never_share_a_speaker_and_test_everything_once(
    utterances: list[Utterance], num_folds: int
) -> None:
    splits = speaker_folds(utterances, num_folds)
    everything = sorted(utterance.utterance_id for utterance in utterances)
    for split in splits:
        assert not split.shared_speakers
        assert sorted(ids(split.train + split.validation + split.test)) == everything
        for part in (split.train, split.validation, split.test):
            assert {u.corpus for u in part} == {u.corpus for u in utterances}
    assert sorted(name for split in splits for name in ids(split.test)) == everything
    assert [split.fold for split in splits] == list(range(len(splits)))
    num_speakers = Counter(corpus for corpus, _ in {(u.corpus, u.speaker) for u in utterances})
    assert len(splits) == min(num_folds, *num_speakers.values())


@given(corpora_of_any_size, st.randoms(use_true_random=False))
def test_folds_do_not_depend_on_the_order_of_utterances(
    utterances: list[Utterance], random: Random
) -> None:
    shuffled = list(utterances)
    random.shuffle(shuffled)
    assert speaker_folds(shuffled) == speaker_folds(utterances)
    assert split_all(shuffled, 0) == split_all(utterances, 0)
    assert paper_protocol_folds(shuffled, 1, 3) == paper_protocol_folds(utterances, 1, 3)


@given(corpora_of_any_size.filter(lambda utterances: len({u.corpus for u in utterances}) > 1))
def test_a_corpus_held_out_is_heard_by_nobody_before_it_tests(utterances: list[Utterance]) -> None:
    splits = corpus_folds(utterances)
    corpora = sorted({u.corpus for u in utterances})
    assert [split.fold for split in splits] == list(range(len(corpora)))
    for corpus, split in zip(corpora, splits, strict=True):
        assert ids(split.test) == sorted(u.utterance_id for u in utterances if u.corpus == corpus)
        others = set(corpora) - {corpus}
        for part in (split.train, split.validation):
            assert {u.corpus for u in part} == others
        assert not split.shared_speakers
        assert len(split.train + split.validation + split.test) == len(utterances)
    assert folds_of(utterances, "corpora") == splits
    assert folds_of(utterances, "speakers") == speaker_folds(utterances)


def test_one_corpus_cannot_be_held_out_of_itself() -> None:
    with pytest.raises(CorpusError, match="found one corpus, mine: expected two or more"):
        corpus_folds(made_up({"mine": [5, 5, 5, 5]}))


def test_fold_is_the_place_among_the_sorted_speakers_of_the_corpus() -> None:
    utterances = made_up({"nemo": [1] * 7, "emodb": [2] * 6})
    assert fold_by_speaker(utterances) == {
        "emodb/00": 0,
        "emodb/01": 1,
        "emodb/02": 2,
        "emodb/03": 3,
        "emodb/04": 4,
        "emodb/05": 0,
        "nemo/00": 0,
        "nemo/01": 1,
        "nemo/02": 2,
        "nemo/03": 3,
        "nemo/04": 4,
        "nemo/05": 0,
        "nemo/06": 1,
    }
    last = speaker_folds(utterances)[4]
    assert {u.speaker_id for u in last.test} == {"emodb/04", "nemo/04"}
    assert {u.speaker_id for u in last.validation} == {"emodb/00", "emodb/05", "nemo/00", "nemo/05"}


def test_a_name_that_two_corpora_use_is_two_speakers() -> None:
    one, two = made_up({"emodb": [1], "ravdess": [1]})
    assert one.speaker == two.speaker
    assert not Split(fold=0, train=(one,), validation=(), test=(two,)).shared_speakers


def test_few_speakers_make_fewer_folds_and_too_few_are_refused() -> None:
    assert len(speaker_folds(made_up({"mine": [5, 5, 5, 5]}))) == 4
    with pytest.raises(CorpusError, match=r"corpus mine: found 2 speakers \(00, 01\), expected 3"):
        speaker_folds(made_up({"emodb": [1] * 8, "mine": [50, 50]}))


def test_splits_of_nothing_of_doubles_and_into_too_few_folds_are_refused() -> None:
    utterances = made_up({"mine": [1, 1, 1]})
    with pytest.raises(CorpusError, match="found no utterances"):
        speaker_folds([])
    with pytest.raises(CorpusError, match="found mine/00_0 twice"):
        paper_protocol_folds([*utterances, utterances[0]], seed=0)
    with pytest.raises(CorpusError, match="found 3 utterances, expected 5 or more"):
        paper_protocol_folds(utterances, seed=0)
    with pytest.raises(ValueError, match="num_folds: found 2, expected 3"):
        speaker_folds(utterances, 2)
    with pytest.raises(ValueError, match="num_folds: found 1, expected 2"):
        paper_protocol_folds(utterances, seed=0, num_folds=1)
    with pytest.raises(ValueError, match="validation_fold: found 3, expected 0 to 2"):
        split_all(utterances, 3)


@given(corpora_of_any_size.filter(lambda utterances: len(utterances) >= 5), st.integers(0, 2**32))
def test_paper_protocol_tests_everything_once_and_validates_on_nothing(
    utterances: list[Utterance], seed: int
) -> None:
    splits = paper_protocol_folds(utterances, seed)
    everything = sorted(utterance.utterance_id for utterance in utterances)
    for split in splits:
        assert split.validation == ()
        assert sorted(ids(split.train + split.test)) == everything
        assert len(split.test) in (len(utterances) // 5, -(-len(utterances) // 5))
    assert sorted(name for split in splits for name in ids(split.test)) == everything


def test_paper_protocol_shares_speakers_and_follows_its_seed() -> None:
    utterances = made_up({"mine": [20, 20, 20]})
    splits = paper_protocol_folds(utterances, seed=3)
    assert all(len(split.train) == 48 and len(split.test) == 12 for split in splits)
    assert splits[0].shared_speakers == {"mine/00", "mine/01", "mine/02"}
    assert splits == paper_protocol_folds(utterances, seed=3)
    assert splits != paper_protocol_folds(utterances, seed=4)


def test_split_all_trains_on_everything_or_all_but_a_fold_of_speakers() -> None:
    utterances = made_up({"mine": [2] * 10})
    everything = split_all(utterances)
    assert (len(everything.train), everything.validation, everything.test) == (20, (), ())
    held_out = split_all(utterances, 1)
    assert {u.speaker for u in held_out.validation} == {"01", "06"}
    assert (len(held_out.train), held_out.test, held_out.fold) == (16, (), None)
    assert not held_out.shared_speakers


def test_real_folds_hold_every_corpus_and_share_nobody(speech_data: Path) -> None:
    utterances = load_data(speech_data)
    splits = speaker_folds(utterances)
    num_speakers = [
        Counter(speaker_id.split("/")[0] for speaker_id in {u.speaker_id for u in split.test})
        for split in splits
    ]
    assert [counts["ravdess"] for counts in num_speakers] == [4] * 5
    assert [counts["emodb"] for counts in num_speakers] == [2, 2, 2, 1, 1]
    assert [counts["nemo"] for counts in num_speakers] == [2, 2, 1, 1, 1]
    assert [counts["banglaser"] for counts in num_speakers] == [6] * 5
    assert sum(len(split.test) for split in splits) == len(utterances) == 4126
    assert not any(split.shared_speakers for split in splits)
