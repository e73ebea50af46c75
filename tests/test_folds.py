"""All folds' trainings, and the second one of each, which hears the validation speakers, too."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamer.errors import ConfigError
from streamer.model import Model
from tests.made_up_corpus import TINY, make_corpus, silence_file, tiny, write_config, write_corpus
from train.__main__ import main
from train.checkpoint import REFIT, load_checkpoint
from train.config import FitConfig
from train.contenders import EvaluateConfig, fold_contenders
from train.corpora import CorpusError, Utterance
from train.evaluate import evaluate, fit
from train.folds import (
    FoldsConfig,
    News,
    fit_fold,
    fit_side_by_side,
    is_fold_finished,
    with_validation,
)
from train.listening import Group, hear
from train.splits import Split, speaker_folds

pytestmark = pytest.mark.one_thread

REFITTED = tiny(refit=True, epochs=4, windows_per_clip=2, weight_average=0.0)
"""Enough to learn something, so that a temperature tells whose it is."""

QUICK = EvaluateConfig(conditions=("clean",), offline=False, spliced=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("folds")


@pytest.fixture(scope="module")
def utterances(home: Path) -> list[Utterance]:
    return make_corpus(home / "corpus")


@pytest.fixture(scope="module")
def splits(utterances: list[Utterance]) -> list[Split]:
    """Three speakers, three folds: one trains, one validates, one tests."""
    return speaker_folds(utterances)


@pytest.fixture(scope="module")
def folds(home: Path) -> FoldsConfig:
    return FoldsConfig(fit=REFITTED, run=home / "run", cache=home / "cache")


@pytest.fixture(scope="module")
def told(splits: list[Split], folds: FoldsConfig) -> list[tuple[int | None, News]]:
    """Train all folds, and return what was told of it."""
    news: list[tuple[int | None, News]] = []
    for split in splits:
        assert not is_fold_finished(split, folds)
        fit_fold(split, folds, lambda split, one: news.append((split.fold, one)))
    return news


def weights(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)["model"]
    return content


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.usefixtures("told")
def test_the_second_training_hears_validation_speakers_and_runs_to_its_end(
    splits: list[Split], folds: FoldsConfig
) -> None:
    for split in splits:
        first = load_checkpoint(folds.folder(split) / "best.pt")
        second = load_checkpoint(folds.folder(split) / REFIT / "best.pt")
        assert first.training_data == {"made-up": {"utterances": 8, "speakers": 1}}
        assert second.training_data == {"made-up": {"utterances": 16, "speakers": 2}}
        assert (first.fold, second.fold) == (split.fold, split.fold)
        assert set(first.validation) == {"made-up", "mean"}
        # Nobody is left to say which epoch is the best.
        assert (second.epoch, second.validation) == (REFITTED.epochs - 1, {})
        assert second.config == first.config == REFITTED


def test_whoever_validates_trains_and_whoever_tests_does_not(splits: list[Split]) -> None:
    for split in splits:
        more = with_validation(split)
        ids = [item.utterance_id for item in more.train]
        assert ids == sorted({item.utterance_id for item in (*split.train, *split.validation)})
        assert (more.validation, more.test, more.fold) == ((), split.test, split.fold)
        assert not more.shared_speakers


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("part", ["test", "validation"])
def test_what_a_test_speaker_says_changes_no_weight(
    utterances: list[Utterance], folds: FoldsConfig, tmp_path: Path, part: str
) -> None:
    """The same training again, after somebody's speech has become silence."""
    shutil.copytree(utterances[0].path.parent, tmp_path / "corpus")
    moved = [replace(item, path=tmp_path / "corpus" / item.path.name) for item in utterances]
    split = speaker_folds(moved)[0]
    for item in getattr(split, part):
        silence_file(item)
    again = replace(folds, run=tmp_path / "run", cache=tmp_path / "cache")
    if part == "validation":
        split = replace(split, validation=split.validation[:0])
        # Without them, the second training is the first one's, of one speaker.
        fit_fold(split, again, lambda split, news: None)
        assert same(again.folder(split) / REFIT / "best.pt", again.folder(split) / "best.pt")
        assert not same(
            again.folder(split) / REFIT / "best.pt", folds.folder(split) / REFIT / "best.pt"
        )
        return
    fit_fold(split, again, lambda split, news: None)
    for name in ("best.pt", f"{REFIT}/best.pt"):
        assert same(again.folder(split) / name, folds.folder(split) / name)


def test_what_is_told_is_one_bar_a_fold_and_a_line_an_epoch(
    told: list[tuple[int | None, News]], splits: list[Split]
) -> None:
    for split in splits:
        mine = [news for fold, news in told if fold == split.fold]
        shares = [news for news in mine if isinstance(news, float)]
        assert shares == sorted(shares)
        assert shares[-1] == 1.0 and 0.5 in shares
        lines = [news for news in mine if isinstance(news, dict)]
        assert [line["epoch"] for line in lines] == [0, 1, 2, 3] * 2
        assert ["validation" in line for line in lines] == [True] * 4 + [False] * 4


@pytest.mark.usefixtures("told")
def test_a_finished_fold_is_passed_over(splits: list[Split], folds: FoldsConfig) -> None:
    folder = folds.folder(splits[0])
    files = [folder / "last.pt", folder / REFIT / "last.pt", folder / REFIT / "log.jsonl"]
    before = [path.read_bytes() for path in files]
    assert is_fold_finished(splits[0], folds)
    news: list[News] = []
    fit_fold(splits[0], folds, lambda _, one: news.append(one))
    assert news == [0.5, 1.0]
    assert [path.read_bytes() for path in files] == before


@pytest.mark.usefixtures("told")
def test_a_fold_whose_second_training_is_missing_gets_it(
    splits: list[Split], folds: FoldsConfig, tmp_path: Path
) -> None:
    again = replace(folds, run=tmp_path)
    shutil.copytree(folds.folder(splits[1]), again.folder(splits[1]))
    shutil.rmtree(again.folder(splits[1]) / REFIT)
    assert not is_fold_finished(splits[1], again)
    without = replace(again, fit=replace(REFITTED, refit=False))
    assert not is_fold_finished(splits[1], without), "it is another configuration's"
    lines: list[News] = []
    fit_fold(splits[1], again, lambda _, one: lines.append(one))
    assert len([one for one in lines if isinstance(one, dict)]) == REFITTED.epochs
    assert is_fold_finished(splits[1], again)
    kept = Path(REFIT, "best.pt")
    assert same(again.folder(splits[1]) / kept, folds.folder(splits[1]) / kept)


@pytest.mark.usefixtures("told")
def test_side_by_side_is_as_in_turn(
    splits: list[Split], folds: FoldsConfig, tmp_path: Path
) -> None:
    again = replace(folds, run=tmp_path)
    ends: list[int | None] = []

    def receive(split: Split, news: News) -> None:
        if news == 1.0:
            ends.append(split.fold)

    fit_side_by_side(splits[:2], again, receive, jobs=2, threads=1)
    assert set(ends) == {0, 1}
    for split in splits[:2]:
        for name in ("best.pt", f"{REFIT}/best.pt"):
            assert same(again.folder(split) / name, folds.folder(split) / name)


def test_a_training_that_fails_beside_others_ends_them_all(tmp_path: Path) -> None:
    spoiled = make_corpus(tmp_path / "corpus")
    splits = speaker_folds(spoiled)
    for item in splits[1].train:
        silence_file(item)
    config = FoldsConfig(fit=tiny(epochs=1), run=tmp_path / "run", cache=tmp_path / "cache")
    with pytest.raises(CorpusError, match="no speech in any of the 8 utterances to"):
        fit_side_by_side(splits, config, lambda split, news: None, jobs=2, threads=1)


@pytest.mark.slow
def test_the_command_trains_both_and_passes_over_what_is_there(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = write_corpus(tmp_path / "corpus")
    config = write_config(tmp_path / "tiny.toml", TINY)
    files = ["--manifest", str(manifest), "--cache", str(tmp_path / "cache")]
    options = ["--config", str(config), "--set", "refit=true", "--set", "epochs=1"]
    given = ["folds", *files, *options, "--threads", "1", "-o", str(tmp_path / "run")]
    assert main(given) == 0
    first = capfd.readouterr().err
    assert "fold0 epoch  1" in first
    assert len(list((tmp_path / "run").glob(f"fold*/{REFIT}/best.pt"))) == 3
    assert main(given) == 0
    again = capfd.readouterr().err
    assert "3 of 3 folds are finished" in again and "epoch  1" not in again


# Who is evaluated


@pytest.mark.usefixtures("told")
def test_the_second_network_is_tested_and_the_first_one_judges(
    utterances: list[Utterance], splits: list[Split], folds: FoldsConfig, tmp_path: Path
) -> None:
    epochs = {
        name: [load_checkpoint(folds.folder(split) / name).epoch for split in splits]
        for name in ("best.pt", "last.pt")
    }
    assert epochs["last.pt"] == 3 * [3] != epochs["best.pt"], "else nothing would be shown"
    contenders = fold_contenders(folds.run, utterances, QUICK, tmp_path)
    for contender, split in zip(contenders, splits, strict=True):
        assert contender.judge is not None and contender.checkpoint is not None
        assert contender.checkpoint.training_data["made-up"]["speakers"] == 2
        tested = {item.speaker_id for item in contender.test}
        assert tested == {item.speaker_id for item in split.test}
        batch = np.random.default_rng(0).normal(size=(2, 3, 26, 50)).astype(np.float32)
        for model, path in (
            (contender.model, folds.folder(split) / REFIT / "best.pt"),
            (contender.judge[0], folds.folder(split) / "last.pt"),
        ):
            checkpoint = load_checkpoint(path)
            found = Model.load(model, provider="cpu").score(batch).logits
            with torch.inference_mode():
                expected = checkpoint.network(torch.from_numpy(batch))[0].numpy()
            np.testing.assert_allclose(found, expected, atol=1e-4)  # the promise of the export
        # Each hears a channel as it was trained to.
        first = load_checkpoint(folds.folder(split) / "best.pt")
        assert contender.judge[1].normalization == first.normalization
        assert contender.card.normalization == contender.checkpoint.normalization
        assert first.normalization != contender.checkpoint.normalization


@pytest.mark.usefixtures("told")
def test_temperatures_are_those_of_the_network_that_has_not_heard_who_validates(
    utterances: list[Utterance], folds: FoldsConfig, tmp_path: Path
) -> None:
    (contender,) = fold_contenders(folds.run, utterances, replace(QUICK, folds=(0,)), tmp_path)
    assert contender.judge is not None
    expected = {}
    for name, (model, card) in (
        ("judge", contender.judge),
        ("tested", (contender.model, contender.card)),
    ):
        heard = [
            item
            for condition in ("clean", "telephone")
            for item in hear(
                Group(
                    model=model,
                    card=card,
                    fold=0,
                    condition=condition,
                    utterances=contender.validation,
                )
            )
        ]
        calibration, rejection = fit(heard, card)
        expected[name] = calibration, rejection
    results = evaluate(folds.run, utterances, replace(QUICK, folds=(0,)))
    found = results["folds"][0]["temperatures"]
    judged, own = (expected[name][0] for name in ("judge", "tested"))
    assert found == {"window": judged.window, "smoothed": judged.smoothed, "turn": judged.turn}
    assert judged != own, "else nothing would be shown"
    assert results["rejection"]["turn"] == expected["judge"][1].turn


@pytest.mark.usefixtures("told")
def test_a_fold_without_its_second_network_is_refused(
    utterances: list[Utterance], folds: FoldsConfig, tmp_path: Path
) -> None:
    shutil.copytree(folds.run, tmp_path / "run")
    (tmp_path / "run" / "fold1" / REFIT / "best.pt").unlink()
    (tmp_path / "models").mkdir()
    with pytest.raises(ConfigError, match=r"no checkpoint .*refit"):
        fold_contenders(tmp_path / "run", utterances, QUICK, tmp_path / "models")
    # Another fold's, which would have heard whom it tests.
    other = folds.run / "fold2" / REFIT / "best.pt"
    shutil.copy(other, tmp_path / "run" / "fold1" / REFIT / "best.pt")
    with pytest.raises(ConfigError, match="was trained as fold 2"):
        fold_contenders(tmp_path / "run", utterances, QUICK, tmp_path / "models")


def test_without_a_second_training_nobody_else_judges(
    utterances: list[Utterance], splits: list[Split], home: Path, tmp_path: Path
) -> None:
    config: FitConfig = tiny(epochs=1)
    plain = FoldsConfig(fit=config, run=home / "plain", cache=home / "cache")
    fit_fold(splits[0], plain, lambda split, news: None)
    assert not (plain.folder(splits[0]) / REFIT).exists()
    assert is_fold_finished(splits[0], plain)
    (one,) = fold_contenders(plain.run, utterances, replace(QUICK, folds=(0,)), tmp_path)
    assert one.judge is None
