from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import train.adapt
from export_onnx import TOLERANCE, export, load_weights, make_card, real_windows, torch_scores
from streamer.card import Card
from streamer.errors import ConfigError, ModelError
from streamer.model import Model, shipped_models
from tests.made_up_corpus import TINY, write_corpus
from tests.models import tiny_checkpoint
from train.adapt import AdaptConfig, adapt, load_base
from train.adapt_command import add_parser
from train.can import CascadedAttentionNetwork
from train.checkpoint import Checkpoint
from train.committee import build_can
from train.config import FitConfig
from train.corpora import load_manifest
from train.results import card_results
from train.verdict import Verdict

pytestmark = pytest.mark.one_thread


def untrained(config: FitConfig = TINY) -> Checkpoint:
    """Return a small network that has learnt nothing, its statistics those of real frames."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        mean, deviation = torch.zeros(3, 26, 1), torch.full((3, 26, 1), 8.0)
        network = build_can(config.network, mean, deviation).eval()
    return replace(tiny_checkpoint(), config=config, network=network)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.onnx"
    export(untrained(), make_card(untrained(), name="base", results={}), path, None)
    return path


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("mine") / "calls", seconds=(0.6, 0.9))


def run(*arguments: str) -> None:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    options = parser.parse_args(["adapt", *arguments])
    options.run(options, Console(stderr=True, width=200))


def test_a_model_file_gives_its_weights_back(model: Path) -> None:
    network = build_can(TINY.network)
    load_weights(network, model)
    expected = untrained().network.state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_committee_gives_all_of_its_weights_back(tmp_path: Path) -> None:
    config = replace(TINY, network=replace(TINY.network, members=2))
    checkpoint = untrained(config)
    path = tmp_path / "two.onnx"
    export(checkpoint, make_card(checkpoint, name="two", results={}), path, None)
    network = build_can(config.network)
    load_weights(network, path)
    expected = checkpoint.network.state_dict()
    # Both members have the same statistics, which the exporter keeps once.
    assert all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("name", sorted(shipped_models()))
def test_every_shipped_model_can_be_adapted(name: str, tmp_path: Path) -> None:
    """`paper` was not, once its configuration's keys and its weights had other names."""
    path = Path(str(shipped_models()[name]))
    base = load_base(path, tmp_path)
    assert base.card.name == name
    windows = real_windows(base.card, None)
    served = Model.load(path, provider="cpu").score(windows)
    for expected, found in zip(served, torch_scores(base.network(), windows), strict=True):
        np.testing.assert_allclose(found, expected, atol=TOLERANCE, rtol=0)  # as at an export
    card_results(base.card.results, base.checkpoint.config)  # refuses another recipe's


def test_another_networks_file_is_refused(model: Path, tmp_path: Path) -> None:
    wider = CascadedAttentionNetwork(replace(TINY.network, lstm_cells=8))
    with pytest.raises(ModelError, match=r"lacks .*expected every weight"):
        load_weights(wider, model)
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(ModelError, match="cannot be read as an ONNX model"):
        load_weights(wider, tmp_path / "text.onnx")


def test_a_model_is_adapted_and_says_what_it_was_adapted_to(
    model: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, page = tmp_path / "mine.onnx", tmp_path / "mine.md"
    files = ["--manifest", str(manifest), "-o", str(output), "--card", str(page)]
    run(str(model), *files, "--licence", "ours alone", "--epochs", "4")
    said = capsys.readouterr().err
    assert "on 24 utterances of 3 speakers held out of the adapting UAR went from" in said
    assert "torch and ONNX Runtime differ by" in said
    assert "had trained the model" not in said
    card: Card = Model.load(output, provider="cpu").card
    assert card.name == "mine"
    assert [corpus.name for corpus in card.data] == ["mine", "nemo", "made-up"]
    assert card.data[-1].licence == "ours alone"
    assert card.licence == "CC BY-NC-SA 4.0 and ours alone", "what was inherited stays"
    adapted = card.training["adapted"]
    assert (adapted["from"], adapted["speakers"], adapted["utterances"]) == ("base", 3, 24)
    assert adapted["verdict"]["speakers"] == 3
    assert "UAR went from" in card.description
    assert page.read_text(encoding="utf-8").startswith("# mine\n")
    before, after = build_can(TINY.network), build_can(TINY.network)
    load_weights(before, model)
    load_weights(after, output)
    assert not torch.equal(before.state_dict()["classifier.weight"], after.classifier.weight)
    norms = [name for name in before.state_dict() if "running" in name]
    assert norms and all(
        torch.equal(before.state_dict()[name], after.state_dict()[name]) for name in norms
    )


def test_speakers_who_may_have_trained_the_model_are_told(
    model: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = tmp_path / "first.onnx", tmp_path / "again.onnx"
    run(str(model), "--manifest", str(manifest), "-o", str(first), "--epochs", "1")
    assert "had trained the model" not in capsys.readouterr().err
    run(str(first), "--manifest", str(manifest), "-o", str(again), "--epochs", "1")
    assert "made-up had trained the model before: if these speakers" in capsys.readouterr().err
    card = Model.load(again, provider="cpu").card
    assert card.training["adapted"]["verdict"]["heard_before"] == ["made-up"]
    assert "made-up had trained the model before" in card.description


def test_of_two_speakers_nothing_is_claimed(
    model: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with manifest.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["speaker"] != "s2"]
    few = manifest.parent / "few.csv"
    with few.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    output = tmp_path / "mine.onnx"
    run(str(model), "--manifest", str(few), "-o", str(output), "--epochs", "1")
    said = capsys.readouterr().err
    assert "2 speakers: whether it becomes better cannot be told" in said
    assert "UAR went from" not in said
    card = Model.load(output, provider="cpu").card
    assert card.training["adapted"]["verdict"] is None
    assert "Nobody was left to judge by" in card.description


def test_what_became_worse_is_not_written(
    model: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worse = Verdict(before=0.7, after=0.5, interval=(-0.3, -0.1), speakers=9, utterances=90)
    monkeypatch.setattr(train.adapt, "_judge", lambda *_: worse)
    output = tmp_path / "mine.onnx"
    with pytest.raises(ModelError, match=r"nothing was written.*it became worse"):
        adapt(model, load_manifest(manifest), output, AdaptConfig(epochs=1), name="mine")
    assert not output.exists()


@pytest.mark.parametrize(
    ("interval", "word", "claim"),
    [
        ((0.01, 0.2), "better", "So it became better."),
        ((-0.01, 0.2), "undecided", "cannot be claimed, the interval contains 0"),
        ((0.0, 0.2), "undecided", "cannot be claimed"),
        ((-0.2, -0.01), "worse", "So it became worse."),
    ],
)
def test_a_claim_is_made_where_the_interval_leaves_no_doubt(
    interval: tuple[float, float], word: str, claim: str
) -> None:
    verdict = Verdict(before=0.5, after=0.6, interval=interval, speakers=12, utterances=120)
    assert verdict.word == word
    assert claim in verdict.sentence() and "+10.0 points" in verdict.sentence()
    assert ("rough" in verdict.sentence()) == (verdict.speakers < 8)
    assert "rough" in replace(verdict, speakers=3).sentence()


def test_one_label_alone_is_refused(model: Path, manifest: Path, tmp_path: Path) -> None:
    angry = [item for item in load_manifest(manifest) if item.label == "angry"]
    with pytest.raises(ConfigError, match="of one label or none: expected some of two"):
        adapt(model, angry, tmp_path / "x.onnx", AdaptConfig(), name="x")
    with pytest.raises(ConfigError, match="expected 1 or more of each"):
        AdaptConfig(epochs=0)


def test_speech_that_is_like_the_training_is_learnt(manifest: Path, model: Path) -> None:
    """The labels of this corpus are levels, which a network hears within a few epochs."""
    cuts = [train.adapt._cut(item, Model.load(model).card) for item in load_manifest(manifest)]
    network = build_can(TINY.network)
    load_weights(network, model)
    config = AdaptConfig(epochs=15, learning_rate=1e-2)
    train.adapt.fine_tune(network, cuts, config)
    windows = torch.from_numpy(np.concatenate([cut.windows for cut in cuts])).float()
    labels = np.repeat([cut.label for cut in cuts], [len(cut.windows) for cut in cuts])
    with torch.no_grad():
        guesses = network(windows)[0].argmax(dim=1).numpy()
    assert (guesses == labels).mean() > 0.6, "chance is a quarter"


def test_what_the_teacher_taught_stays_as_it_is(manifest: Path, model: Path) -> None:
    """So few speakers have nothing to tell a voice encoder that has learnt from thousands."""
    cuts = [train.adapt._cut(item, Model.load(model).card) for item in load_manifest(manifest)]
    torch.manual_seed(0)
    voiced = replace(
        TINY.network, voice_members=1, voice_width=8, voice_channels=8, voice_blocks=2, num_rows=26
    )
    network = build_can(voiced)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train.adapt.fine_tune(network, cuts, AdaptConfig(epochs=1, learning_rate=1e-2))
    moved = {name for name, value in network.state_dict().items() if not before[name].equal(value)}
    large = {name for name, value in before.items() if value.numel() >= 4_096}
    assert not any(name.startswith("voice.encoder.") for name in moved - large)
    assert any(name.startswith("voice.members.") for name in moved)
