from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import train.__main__
from streamer.card import decode_card, encode_card
from streamer.errors import ConfigError, ModelError
from streamer.events import Emotion, Summary, Turn
from streamer.smoothing import calibrate
from tests.golden.synthetic import hiss, silence, voice
from tests.made_up_corpus import TINY, silence_file, write_config, write_corpus
from train.__main__ import main
from train.checkpoint import (
    card_of,
    is_finished,
    load_checkpoint,
    num_epochs_done,
    read_resumable,
)
from train.config import config_to_dict
from train.corpora import LABELS, Utterance, load_manifest
from train.dataset import load_clips, normalize_clips
from train.evaluate import NO_ANSWER, Group, Heard, check_split, evaluate, hear, listen
from train.loop import score_clips
from train.results import card_results
from train.splits import speaker_folds


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def manifest(home: Path) -> Path:
    return write_corpus(home / "corpus")


@pytest.fixture(scope="module")
def utterances(manifest: Path) -> list[Utterance]:
    return list(load_manifest(manifest))


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


@pytest.fixture(scope="module")
def results(home: Path, run: Path, manifest: Path) -> dict[str, Any]:
    output = home / "results.json"
    arguments = ["evaluate", str(run), "--manifest", str(manifest), "-o", str(output)]
    assert main(arguments) == 0
    read: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return read


def test_results_hold_every_utterance_once(results: dict[str, Any]) -> None:
    for condition in ("corpora", "telephone"):
        report = results[condition]["made-up"]
        assert (report["n"], report["speakers"]) == (24, 3)
        rows = np.array(report["confusion"]).sum(axis=1) + report["unanswered"]
        assert rows.tolist() == [6, 6, 6, 6]
        assert {name: part["n"] for name, part in report["gender"].items()} == {
            "female": 16,
            "male": 8,
        }
        recalls = np.diag(report["confusion"]) / 6
        assert report["uar"] == pytest.approx(recalls.mean(), abs=1e-4)
        assert report["wa"] == pytest.approx(recalls.mean(), abs=1e-4)
        low, high = report["interval"]
        assert low <= report["uar"] <= high
    assert results["mean"] == {
        "clean": results["corpora"]["made-up"]["uar"],
        "telephone": results["telephone"]["made-up"]["uar"],
    }


def test_results_say_where_they_come_from(results: dict[str, Any], run: Path) -> None:
    assert results["config"] == json.loads(json.dumps(config_to_dict(TINY)))
    assert results["command"].startswith("python -m train evaluate ")
    assert results["seconds"] > 0
    assert [fold["fold"] for fold in results["folds"]] == [0, 1, 2]
    for fold in results["folds"]:
        checkpoint = load_checkpoint(run / f"fold{fold['fold']}" / "best.pt")
        assert (fold["epoch"], fold["validation"]) == (checkpoint.epoch, checkpoint.validation)
        assert fold["seed"] == 1
    uars = [fold["test"]["made-up"] for fold in results["folds"]]
    assert np.mean(uars) == pytest.approx(results["corpora"]["made-up"]["uar"], abs=1e-3)


def test_a_card_keeps_what_matters_of_them(results: dict[str, Any]) -> None:
    kept = card_results(results, replace(TINY, name="all", epochs=2, seed=3))
    assert card_results(kept, TINY) == kept, "a card's results can be read back"
    for name in ("protocol", "command", "mean", "ece"):
        assert kept[name] == results[name]
    assert kept["corpora"] == results["corpora"]
    telephone = results["telephone"]["made-up"]
    assert kept["telephone"]["made-up"] == {key: telephone[key] for key in ("uar", "interval")}
    assert [set(fold) for fold in kept["folds"]] == 3 * [{"fold", "seed", "epoch", "test"}]
    assert card_results({}, TINY) == {}
    with pytest.raises(ModelError, match=r"another recipe than the checkpoint's \(batch_size\)"):
        card_results(results, replace(TINY, batch_size=4))
    with pytest.raises(ModelError, match="missing required field `uar`"):
        card_results({**results, "corpora": {"made-up": {}}}, TINY)
    with pytest.raises(ModelError, match="over the telephone alone"):
        card_results({**results, "telephone": {}}, TINY)


def test_temperatures_are_medians_over_folds(results: dict[str, Any]) -> None:
    for kind in ("window", "smoothed", "turn"):
        of_folds = [fold["temperatures"][kind] for fold in results["folds"]]
        assert results["calibration"][kind] == pytest.approx(np.median(of_folds), abs=1e-4)
        assert 0 <= results["ece"][kind]["after"] <= 1


def test_some_of_it_in_two_processes(
    results: dict[str, Any], run: Path, utterances: list[Utterance]
) -> None:
    heard: list[int] = []
    part = evaluate(run, utterances, folds=[1], corpora=["made-up"], jobs=2, advance=heard.append)
    assert sum(heard) == 24  # 8 to validate, 8 to test, 8 of them over the telephone
    assert part["folds"] == [results["folds"][1]]
    assert part["corpora"]["made-up"]["uar"] == results["folds"][1]["test"]["made-up"]


@pytest.mark.parametrize("condition", ["clean", "telephone"])
def test_what_is_heard_is_what_was_trained_for(
    run: Path, home: Path, utterances: list[Utterance], condition: str
) -> None:
    """The session's turns and training's own scores of the same utterances are the same."""
    members = speaker_folds(utterances)[0].validation
    path = run / "fold0" / "best.pt"
    checkpoint = load_checkpoint(path)
    group = Group(
        checkpoint=path, fold=0, part="validation", condition=condition, utterances=members
    )
    heard = {item.utterance.utterance_id: item for item in hear(group)}
    raw = load_clips(members, condition, TINY.features, TINY.window, home / "cache")
    clips = normalize_clips(raw, checkpoint.normalization, "cold", seed=1)
    scores = score_clips(checkpoint.network, clips, TINY, "cpu")
    num_single = 0
    for row, clip in zip(scores, clips, strict=True):
        item = heard[clip.utterance.utterance_id]
        assert len(item.window) == len(clip.spans)
        if len(item.turn) == 1:
            num_single += 1
            # Training's copy went through float16, of MFCCs near 100 to 1/16.
            assert item.turn[0] == pytest.approx(row, abs=0.01)
    assert num_single >= 6


def test_a_call_without_speech_has_no_answer(run: Path) -> None:
    checkpoint = load_checkpoint(run / "fold0" / "best.pt")
    audios = [silence(1.0), voice(1.0), hiss(0.05, -20.0), np.zeros(0, np.float32)]
    events_of = listen(checkpoint.network, card_of(checkpoint), audios)
    turns = [[event for event in events if isinstance(event, Turn)] for events in events_of]
    assert [len(found) for found in turns] == [0, 1, 0, 0]
    assert all(isinstance(events[-1], Summary) for events in events_of)


def test_a_call_is_scored_the_same_alone_and_among_others(run: Path) -> None:
    checkpoint = load_checkpoint(run / "fold0" / "best.pt")
    card = card_of(checkpoint)
    audios = [voice(1.0 + 0.3 * seed, seed=seed) for seed in range(4)]
    together = listen(checkpoint.network, card, audios)
    for audio, events in zip(audios, together, strict=True):
        (alone,) = listen(checkpoint.network, card, [audio])
        assert len(alone) == len(events)
        for one, other in zip(alone, events, strict=True):
            if isinstance(one, Emotion) and isinstance(other, Emotion):
                assert one.raw == pytest.approx(other.raw, abs=1e-4)  # law 1's


def make_heard(utterance: Utterance, turns: list[list[float]], windows: list[int]) -> Heard:
    nothing = np.zeros((0, 4))
    return Heard(
        utterance=utterance,
        window=nothing,
        smoothed=nothing,
        turn=np.array(turns, np.float64).reshape(-1, 4),
        turn_windows=np.array(windows, np.int64),
    )


def test_turns_count_by_their_windows(utterances: list[Utterance]) -> None:
    angry, sad = [0.6, 0.2, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]
    assert make_heard(utterances[0], [angry, sad], [1, 1]).answer == LABELS.index("sad")
    assert make_heard(utterances[0], [angry, sad], [3, 1]).answer == LABELS.index("angry")
    assert make_heard(utterances[0], [], []).answer == NO_ANSWER


def test_answers_are_counted_where_they_belong(
    run: Path, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Women are understood; men who are sad are taken for happy, over the telephone all are."""

    def answer(group: Group) -> list[Heard]:
        heard = []
        for utterance in group.utterances:
            label = utterance.label or ""
            lost = utterance.gender == "male" and label == "sad"
            if lost or group.condition == "telephone":
                label = "happy"
            row = np.full((1, 4), 0.1)
            row[0, LABELS.index(label)] = 0.7
            item = make_heard(utterance, row.tolist(), [1])
            heard.append(replace(item, window=row, smoothed=row))
        return heard

    monkeypatch.setattr(train.evaluate, "hear", answer)
    results = evaluate(run, utterances)
    clean, narrow = (results[name]["made-up"] for name in ("corpora", "telephone"))
    assert clean["confusion"] == [[6, 0, 0, 0], [0, 6, 0, 0], [0, 0, 6, 0], [0, 2, 0, 4]]
    assert clean["uar"] == pytest.approx((3 + 4 / 6) / 4, abs=1e-4)
    assert clean["gender"] == {"female": {"uar": 1.0, "n": 16}, "male": {"uar": 0.75, "n": 8}}
    assert clean["interval"] == [0.75, 1.0]
    assert (narrow["uar"], narrow["interval"]) == (0.25, [0.25, 0.25])
    # 22 of 24 are right at a confidence of 0.7.
    assert results["ece"]["turn"]["before"] == pytest.approx(22 / 24 - 0.7, abs=1e-4)


def test_an_utterance_without_a_turn_counts_as_wrong(
    home: Path, run: Path, manifest: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(manifest.parent, folder)
    first = load_manifest(folder / "manifest.csv")[0]
    silence_file(first)
    report = evaluate(run, load_manifest(folder / "manifest.csv"))["corpora"]["made-up"]
    assert report["unanswered"] == [1, 0, 0, 0]
    assert report["n"] == 24
    assert report["uar"] == pytest.approx(np.diag(report["confusion"]).mean() / 6, abs=1e-4)


def test_checkpoints_of_other_data_are_refused(
    run: Path, utterances: list[Utterance], tmp_path: Path
) -> None:
    splits = speaker_folds(utterances)
    path = run / "fold0" / "best.pt"
    checkpoint = load_checkpoint(path)
    check_split(path, splits[0], checkpoint)
    with pytest.raises(ConfigError, match="was trained as fold 0"):
        check_split(path, splits[1], checkpoint)
    with pytest.raises(ConfigError, match="expected fold 0 of the data at hand"):
        check_split(path, replace(splits[0], train=splits[0].train[1:]), checkpoint)
    with pytest.raises(ConfigError, match="no checkpoint"):
        evaluate(tmp_path, utterances)
    with pytest.raises(ConfigError, match="fold 7: expected 0 to 2"):
        evaluate(run, utterances, folds=[7])
    with pytest.raises(ConfigError, match="expected one of made-up"):
        evaluate(run, utterances, corpora=["emodb"])


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
    with pytest.raises(ConfigError, match="learner, state"):
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
