"""What a training leaves behind, and that what is finished is not done again."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train.__main__
from streamer.card import decode_card, encode_card
from streamer.errors import ConfigError
from streamer.smoothing import calibrate
from tests.made_up_corpus import TINY, write_config, write_corpus
from train.__main__ import main
from train.checkpoint import (
    card_of,
    is_finished,
    load_checkpoint,
    num_epochs_done,
    read_resumable,
)

pytestmark = pytest.mark.one_thread


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoint")


@pytest.fixture(scope="module")
def manifest(home: Path) -> Path:
    return write_corpus(home / "corpus")


@pytest.fixture(scope="module")
def training(home: Path, manifest: Path) -> list[str]:
    """Return the options that all trainings here share."""
    config = write_config(home / "tiny.toml", TINY)
    files = ["--manifest", str(manifest), "--cache", str(home / "cache")]
    return ["--config", str(config), *files, "--threads", "1"]


@pytest.fixture(scope="module")
def run(home: Path, training: list[str]) -> Path:
    """All folds, trained by the command."""
    assert main(["folds", *training, "-o", str(home / "run")]) == 0
    return home / "run"


def test_a_checkpoint_comes_back_as_it_was(run: Path) -> None:
    checkpoint = load_checkpoint(run / "fold1" / "best.pt")
    assert checkpoint.config == TINY
    assert not checkpoint.network.training
    assert checkpoint.normalization is not None
    assert len(checkpoint.normalization.mean) == 26
    card = card_of(checkpoint)
    assert decode_card(encode_card(card), "test") == card
    assert calibrate([0.1, 0.2, 0.3, 0.4], card.calibration.turn) == pytest.approx(
        [0.1, 0.2, 0.3, 0.4]
    )


@pytest.mark.parametrize("content", [b"", b"not a checkpoint at all", None])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is None:
        torch.save({"weights": torch.zeros(3)}, tmp_path / "last.pt")
    else:
        (tmp_path / "last.pt").write_bytes(content)
    message = "cannot be read as a checkpoint" if content is not None else "expected config, "
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(tmp_path / "last.pt")
    with pytest.raises(ConfigError, match=message):
        num_epochs_done(tmp_path)


def test_the_best_is_not_what_a_training_resumes_from(run: Path) -> None:
    with pytest.raises(ConfigError, match="learners, state"):
        read_resumable(run / "fold0" / "best.pt")


def test_finished_folds_are_passed_over(
    run: Path,
    training: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert is_finished(run / "fold0", TINY)
    assert not is_finished(run / "fold0", replace(TINY, seed=2))
    assert not is_finished(run / "fold9", TINY)
    assert (num_epochs_done(run / "fold0"), num_epochs_done(run / "fold9")) == (3, 0)
    monkeypatch.setattr(train.__main__, "fit_fold", lambda *_: pytest.fail("trained again"))
    assert main(["folds", *training, "-o", str(run)]) == 0
    assert "3 of 3 folds are finished" in capfd.readouterr().err


def test_folds_side_by_side_come_out_the_same(
    run: Path, training: list[str], tmp_path: Path
) -> None:
    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "fold1")
    assert main(["folds", *training, "-o", str(tmp_path / "run"), "--jobs", "2"]) == 0
    whole, again = (
        load_checkpoint(folder / "fold1" / "best.pt").network.state_dict()
        for folder in (run, tmp_path / "run")
    )
    assert all(torch.equal(whole[name], again[name]) for name in whole)
