"""``python -m train`` as it is typed: what it says, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import train.__main__
from tests.made_up_corpus import TINY, silence_file, write_config, write_corpus
from train.__main__ import main
from train.checkpoint import load_checkpoint
from train.corpora import load_manifest
from train.splits import speaker_folds


@pytest.fixture(scope="module", autouse=True)
def _as_many_threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the options that all trainings here share."""
    home = tmp_path_factory.mktemp("command")
    manifest, config = write_corpus(home / "corpus"), write_config(home / "tiny.toml", TINY)
    files = ["--manifest", str(manifest), "--cache", str(home / "cache")]
    return ["--config", str(config), *files, "--threads", "1"]


def test_one_epoch_of_everybody(
    training: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", *training, "--all", "--set", "epochs=1", "-o", str(tmp_path)]
    assert main(arguments) == 0
    checkpoint = load_checkpoint(tmp_path / "best.pt")
    assert (checkpoint.fold, checkpoint.epoch) == (None, 0)
    assert checkpoint.training_data == {"made-up": {"utterances": 24, "speakers": 3}}
    told = capfd.readouterr()
    assert told.out == ""
    assert "epoch  1" in told.err and "best.pt" in told.err


def test_one_fold_alone_says_that_it_is_not_trained_again(
    training: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", *training, "--set", "epochs=1", "-o", str(tmp_path)]
    assert main([*arguments, "--fold", "0", "--set", "refit=true"]) == 0
    assert "trains a second time, on validation speakers too" in capfd.readouterr().err


@pytest.mark.parametrize("command", [["fit", "--fold", "0"], ["folds"]])
def test_utterances_without_speech_are_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], command: list[str]
) -> None:
    manifest = write_corpus(tmp_path / "corpus")
    silence_file(speaker_folds(load_manifest(manifest))[0].train[0])
    files = ["--manifest", str(manifest), "--cache", str(tmp_path / "cache"), "-o", str(tmp_path)]
    config = write_config(tmp_path / "tiny.toml", TINY)
    options = ["--config", str(config), "--set", "epochs=1", "--threads", "1"]
    assert main([*command, *files, *options]) == 0
    told = capfd.readouterr().err
    assert "fold0: left out 1 utterances in which no speech was found" in told


def test_an_interrupted_fit_says_how_to_go_on(
    training: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(train.__main__, "fit", stop)
    arguments = ["fit", *training, "--fold", "0", "-o", str(tmp_path)]
    assert main(arguments) == 130
    told = capfd.readouterr().err
    assert "goes on after the last epoch" in told
    assert f"python -m train {' '.join(arguments)}" in told.replace("\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--fold", "0", "--data", "/nowhere"], "found no speech corpus"),
        (["fit", "--fold", "0", "--config", "papre"], "no configuration 'papre'"),
        (["fit", "--all", "--set", "epoch=1"], "unknown key 'epoch'"),
        (["fit", "--all", "--held-out", "corpora"], "expected one of them"),
    ],
)
def test_failures_are_told_in_a_line(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    told = capfd.readouterr().err
    assert told.startswith("error: ")
    assert message in told.replace("\n", " ")


def test_an_unknown_fold_is_refused(training: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", *training, "--fold", "3"]) == 1
    assert "--fold 3: expected 0 to 2" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["fit"], ["fit", "--fold", "1", "--all"], ["folds", "--jobs", "0"], ["evaluate"]],
)
def test_misuse_is_told(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: python -m train" in capfd.readouterr().err


@pytest.mark.parametrize("command", [[], ["fit"], ["folds"], ["evaluate"]])
def test_help_teaches(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--help"])
    assert stopped.value.code == 0
    told = capfd.readouterr().out
    assert ("python -m train fit --config paper" in told) == (not command)
