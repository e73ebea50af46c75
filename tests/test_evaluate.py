from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace as replace_card
from rich.console import Console

import train.__main__
import train.evaluate
from export_onnx import export, make_card
from streamer.card import UNCERTAIN, Rejection
from streamer.errors import ConfigError, ModelError
from streamer.events import Emotion, Summary, Turn
from tests.golden.synthetic import hiss, silence, voice
from tests.made_up_corpus import TINY, silence_file, write_config, write_corpus
from tests.made_up_results import make_heard
from tests.test_conditions import write_aux
from train.__main__ import main
from train.checkpoint import (
    card_of,
    load_checkpoint,
)
from train.conditions import CONDITIONS, Surroundings
from train.config import config_to_dict
from train.contenders import EvaluateConfig, check_split, fold_contenders
from train.corpora import LABELS, Utterance, load_manifest
from train.dataset import load_clips, normalize_clips
from train.evaluate import evaluate
from train.evaluate_command import add_parser
from train.listening import Group, Heard, Scorer, hear, listen
from train.loop import score_clips
from train.results import card_results
from train.splits import speaker_folds

pytestmark = pytest.mark.one_thread

QUICK = EvaluateConfig(conditions=("clean",), offline=False, spliced=False)


def command(*arguments: str) -> None:
    """Run the command as ``python -m train`` does."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    options = parser.parse_args(["evaluate", *arguments])
    options.command_line = "python -m train evaluate " + " ".join(arguments)
    options.run(options, Console(stderr=True))


def torch_scorer(network: torch.nn.Module) -> Scorer:
    def score(windows: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(windows))[0].numpy()

    return score


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
def aux(home: Path) -> Path:
    return write_aux(home / "aux")


@pytest.fixture(scope="module")
def others(manifest: Path) -> Path:
    """The same corpus with two utterances that are called by another emotion."""
    lines = manifest.read_text(encoding="utf-8").splitlines()
    files = ["0-angry-0.5.wav", "1-sad-0.5.wav"]
    for number, name in enumerate(files):
        shutil.copy(manifest.parent / name, manifest.parent / f"other-{number}.wav")
    rows = [f"other-{number}.wav,s{number},,,made-up,surprise" for number in range(2)]
    path = manifest.parent / "with-others.csv"
    body = [f"{line}," for line in lines[1:]]
    path.write_text("\n".join([f"{lines[0]},emotion", *body, *rows]) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def results(home: Path, run: Path, others: Path, aux: Path) -> dict[str, Any]:
    output = home / "results.json"
    command(str(run), "--manifest", str(others), "-o", str(output), "--aux", str(aux))
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
    assert list(results["conditions"]) == list(results["mean"]) == list(CONDITIONS)
    for name, report in results["conditions"].items():
        assert report["mean"]["uar"] == report["corpora"]["made-up"]["uar"]
        assert report["mean"]["uar"] == results["mean"][name]
        assert report["mean"]["interval"] == report["corpora"]["made-up"]["interval"]


def test_results_go_beyond_the_four_labels_and_the_single_utterance(
    results: dict[str, Any],
) -> None:
    assert list(results["heard_s"]) == ["1", "1.5", "2", "3", "4", "all"]
    # Nothing lasts longer than a second: all was heard after it.
    assert len({report["uar"] for report in results["heard_s"].values()}) == 1
    assert results["heard_s"]["all"]["uar"] == results["mean"]["clean"]
    gender = results["gender"]
    gap = abs(gender["female"]["uar"] - gender["male"]["uar"])
    assert gender["gap"] == pytest.approx(gap, abs=1e-4)
    said = results["said"]
    assert said["other"]["emotions"]["surprise"]["turns"] == 2
    assert set(said["labelled"]["emotions"]) == set(LABELS)
    for words in (said["labelled"]["all"], said["other"]["all"]):
        assert sum(words[word] for word in (*LABELS, UNCERTAIN)) == pytest.approx(1.0, abs=1e-3)
    offline = results["offline"]
    gap = offline["causal"]["mean"]["uar"] - results["mean"]["clean"]
    assert offline["gap_points"] == pytest.approx(100 * gap, abs=1e-2)
    assert results["spliced"]["calls"] == 3
    assert results["noise"]["minutes"] == pytest.approx(6 / 60, abs=1e-3), "folds 0, 1, 2 of 10"


def test_the_page_is_one_file_with_its_plots(results: dict[str, Any], home: Path) -> None:
    assert results
    page = (home / "results.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 7
    assert "<small>[" in page  # intervals below their rates: five corpora fit on the page
    assert "surprise" in page and "http" not in page.replace("http-equiv", "")


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


def test_temperatures_and_thresholds_are_medians_over_folds(results: dict[str, Any]) -> None:
    for kind in ("window", "smoothed", "turn"):
        of_folds = [fold["temperatures"][kind] for fold in results["folds"]]
        assert results["calibration"][kind] == pytest.approx(np.median(of_folds), abs=1e-4)
        assert 0 <= results["ece"][kind]["after"] <= 1
    for kind in ("smoothed", "turn"):
        of_folds = [fold["rejection"][kind] for fold in results["folds"]]
        assert results["rejection"][kind] == pytest.approx(np.median(of_folds), abs=1e-4)
        assert all(0 <= threshold < 1 for threshold in of_folds)


def test_some_of_it_in_two_processes(
    results: dict[str, Any], run: Path, utterances: list[Utterance]
) -> None:
    heard: list[int] = []
    config = replace(QUICK, folds=(1,), corpora=("made-up",), jobs=2)
    part = evaluate(run, utterances, config, advance=heard.append)
    assert sum(heard) == 24  # 8 to validate, clean and by telephone, 8 to test
    assert part["folds"] == [results["folds"][1]]
    assert part["corpora"]["made-up"]["uar"] == results["folds"][1]["test"]["made-up"]


def test_one_model_file_is_heard_as_it_would_be_served(
    run: Path, results: dict[str, Any], utterances: list[Utterance], home: Path
) -> None:
    checkpoint = load_checkpoint(run / "fold1" / "best.pt")
    card = make_card(checkpoint, name="one", results={})
    card = replace_card(card, rejection=Rejection(smoothed=0.9, turn=0.99))
    export(checkpoint, card, home / "one.onnx", None)
    found = evaluate(home / "one.onnx", utterances, QUICK)
    # It is fold 1's of this very data, as its card tells: it hears whom it has not heard.
    assert found["corpora"]["made-up"]["n"] == 8
    assert found["corpora"]["made-up"]["uar"] == results["folds"][1]["test"]["made-up"]
    assert found["rejection"] == {"smoothed": 0.9, "turn": 0.99}
    assert found["said"]["labelled"]["all"][UNCERTAIN] > 0.5
    more = evaluate(home / "one.onnx", utterances[2:], QUICK)
    assert more["corpora"]["made-up"]["n"] == 22
    assert "no measure of unheard speakers" in more["protocol"]
    with pytest.raises(ConfigError, match="expected a folder of folds"):
        evaluate(home / "one.onnx", utterances, replace(QUICK, folds=(1,)))


@pytest.mark.parametrize("condition", ["clean", "telephone"])
def test_what_is_heard_is_what_was_trained_for(
    run: Path,
    home: Path,
    utterances: list[Utterance],
    condition: str,
) -> None:
    """The session's turns and training's own scores of the same utterances are the same."""
    (contender, *_) = fold_contenders(run, utterances, QUICK, home)
    members = contender.validation
    assert contender.checkpoint is not None
    group = Group(
        model=contender.model,
        card=contender.card,
        fold=0,
        condition=condition,
        utterances=members,
    )
    heard = {item.utterance.utterance_id: item for item in hear(group)}
    raw = load_clips(members, condition, TINY.features, TINY.window, home / "cache")
    normalization = contender.checkpoint.normalization
    clips = normalize_clips(raw, normalization, "cold", seed=1)
    scores = score_clips(contender.checkpoint.network, clips, TINY, "cpu")
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
    events_of = listen(torch_scorer(checkpoint.network), card_of(checkpoint), audios)
    turns = [[event for event in events if isinstance(event, Turn)] for events in events_of]
    assert [len(found) for found in turns] == [0, 1, 0, 0]
    assert all(isinstance(events[-1], Summary) for events in events_of)


def test_a_call_is_scored_the_same_alone_and_among_others(run: Path) -> None:
    checkpoint = load_checkpoint(run / "fold0" / "best.pt")
    card = card_of(checkpoint)
    audios = [voice(1.0 + 0.3 * seed, seed=seed) for seed in range(4)]
    together = listen(torch_scorer(checkpoint.network), card, audios)
    for audio, events in zip(audios, together, strict=True):
        (alone,) = listen(torch_scorer(checkpoint.network), card, [audio])
        assert len(alone) == len(events)
        for one, other in zip(alone, events, strict=True):
            if isinstance(one, Emotion) and isinstance(other, Emotion):
                assert one.raw == pytest.approx(other.raw, abs=1e-4)  # law 1's


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
            row = [0.1] * 4
            row[LABELS.index(label)] = 0.7
            heard.append(make_heard(utterance, [row], [1]))
        return heard

    monkeypatch.setattr(train.evaluate, "hear", answer)
    results = evaluate(run, utterances, replace(QUICK, conditions=("clean", "telephone")))
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
    report = evaluate(run, load_manifest(folder / "manifest.csv"), QUICK)["corpora"]["made-up"]
    assert report["unanswered"] == [1, 0, 0, 0]
    assert report["n"] == 24
    assert report["uar"] == pytest.approx(np.diag(report["confusion"]).mean() / 6, abs=1e-4)


def test_each_corpus_is_tested_by_a_network_that_heard_none_of_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = write_corpus(tmp_path / "corpora", num_speakers=6, seconds=(0.6,))
    lines = manifest.read_text(encoding="utf-8").splitlines()
    moved = [line.replace("made-up", "theirs") if line[0] in "345" else line for line in lines]
    manifest.write_text("\n".join(moved) + "\n", encoding="utf-8")
    files = ["--manifest", str(manifest), "--held-out", "corpora"]
    config = write_config(tmp_path / "tiny.toml", TINY)
    options = ["--config", str(config), "--threads", "1", "--set", "epochs=1"]
    run = tmp_path / "run"
    assert main(["folds", *files, *options, "--cache", str(tmp_path), "-o", str(run)]) == 0
    assert {fold.name for fold in run.iterdir()} == {"fold0", "fold1"}
    trained = load_checkpoint(run / "fold0" / "best.pt").training_data
    assert trained == {"theirs": {"utterances": 8, "speakers": 2}}
    quick = ["--conditions", "clean", "--no-offline", "--no-spliced"]
    assert main(["evaluate", str(run), *files, *quick]) == 0
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert results["protocol"].startswith("each corpus held out in turn")
    assert {name: corpus["speakers"] for name, corpus in results["corpora"].items()} == {
        "made-up": 3,
        "theirs": 3,
    }
    assert [list(fold["test"]) for fold in results["folds"]] == [["made-up"], ["theirs"]]
    page = (run / "results.html").read_text(encoding="utf-8")
    assert "A fold tests one corpus" in page
    assert ">nan<" not in page and ">-<" in page, "a fold has no figure of what trained it"
    assert main(["evaluate", str(run), *files[:2], *quick]) == 1
    assert "was trained as fold 0" in capfd.readouterr().err.replace("\n", " ")


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
        evaluate(tmp_path, utterances, QUICK)
    with pytest.raises(ConfigError, match="fold 7: expected 0 to 2"):
        evaluate(run, utterances, replace(QUICK, folds=(7,)))
    with pytest.raises(ConfigError, match="expected one of made-up"):
        evaluate(run, utterances, replace(QUICK, corpora=("emodb",)))
    with pytest.raises(ConfigError, match="'underwater': expected one of clean"):
        EvaluateConfig(conditions=("underwater",), surroundings=Surroundings())
    with pytest.raises(ConfigError, match="'room': found no sounds"):
        EvaluateConfig(conditions=("room",), surroundings=Surroundings())
