from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

import export_onnx
from export_onnx import main, make_card, real_windows, synthetic_voice, torch_scores
from streamer.errors import ModelError
from streamer.model import Model, Scores
from streamer.vad import SpeechTracker, VadConfig, VoiceDetector
from tests.made_up_results import make_results
from tests.models import tiny_checkpoint, tiny_network
from train.card_page import card_page
from train.config import config_to_dict


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    """What a training writes."""
    checkpoint = tiny_checkpoint()
    assert checkpoint.normalization is not None
    return {
        "config": config_to_dict(checkpoint.config),
        "model": checkpoint.network.state_dict(),
        "normalization": {
            "mean": list(checkpoint.normalization.mean),
            "prior_frames": 200,
            "memory_frames": 3000,
        },
        "fold": 0,
        "epoch": 7,
        "validation": {"mean": 0.25},
        "training_data": checkpoint.training_data,
    }


@pytest.fixture
def no_speech_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Leave the synthetic voice alone to compare on: quick, and the same everywhere."""
    monkeypatch.setattr(export_onnx, "SPEECH_DATA", tmp_path / "none")


def save(stored: dict[str, Any], path: Path) -> str:
    torch.save(stored, path)
    return str(path)


@pytest.mark.usefixtures("no_speech_data")
def test_exports_and_proves(
    stored: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, output, page = (tmp_path / name for name in ("results.json", "can.onnx", "can.md"))
    found = make_results(tiny_checkpoint().config)
    results.write_text(json.dumps(found))
    arguments = [save(stored, tmp_path / "best.pt"), "-o", str(output), "--results", str(results)]
    assert main([*arguments, "--card", str(page)]) == 0
    assert "torch and ONNX Runtime differ by" in capsys.readouterr().out
    assert output.stat().st_size < 2_000_000
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.pt",
        "can.md",
        "can.onnx",
        "results.json",
    ]

    model = Model.load(output, provider="cpu")
    card = model.card
    assert (card.name, card.labels) == ("can", ("angry", "happy", "neutral", "sad"))
    assert (card.calibration.window, card.calibration.smoothed, card.calibration.turn) == (
        1.5,
        1.2,
        0.9,
    )
    assert [(corpus.name, corpus.language, corpus.licence) for corpus in card.data] == [
        ("mine", "unknown", "unknown"),
        ("nemo", "pl", "CC BY-NC-SA 4.0"),
    ]
    assert card.licence == "CC BY-NC-SA 4.0", "one non-commercial corpus is enough"
    assert card.results["corpora"] == found["corpora"]
    assert card.results["telephone"] == {"nemo": {"uar": 0.5432, "interval": [0.5712, 0.6834]}}
    assert page.read_text(encoding="utf-8") == card_page(card)
    assert card.training["config"]["name"] == "tiny" and card.training["epoch"] == 7
    assert card.training["parameters"] == sum(p.numel() for p in tiny_network().parameters())

    # Raw features in, statistics and batch normalisation inside, any number of windows; every
    # weight by its own name, so that the file can be trained further.
    weights = {item.name for item in onnx.load(output).graph.initializer}
    assert {"mean", "conv.inner.1.running_var", "blstm.weight_hh_l0", "fusion.key"} <= weights
    assert (card.rejection.smoothed, card.rejection.turn) == (0.45, 0.4)
    windows = real_windows(card, None)[:7]
    for found, expected in zip(
        model.score(windows), torch_scores(tiny_network(), windows), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4)  # the promise of the export


def test_compares_on_real_speech(
    stored: dict[str, Any],
    tmp_path: Path,
    speech_data: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "can.onnx"
    data = speech_data / "emodb" / "manifest.csv"
    arguments = [save(stored, tmp_path / "best.pt"), "-o", str(output), "--data", str(data)]
    assert main(arguments) == 0
    assert f"16 windows of {data}" in capsys.readouterr().out


def noise_in(field: str, size: float) -> Callable[..., Scores]:
    def noisy(network: Any, batch: np.ndarray) -> Scores:
        scores = torch_scores(network, batch)
        return scores._replace(**{field: getattr(scores, field) + np.float32(size)})

    return noisy


@pytest.mark.usefixtures("no_speech_data")
@pytest.mark.parametrize(
    ("field", "size", "message"),
    [
        ("attention", 2e-4, "torch and ONNX Runtime differ by 0.0002 in attention at batch 1"),
        ("embedding", np.nan, "differ by nan in embedding"),
        ("logits", 2e-4, "golden logits are missed by 0.0002"),
    ],
)
def test_refuses_a_network_that_says_something_else(
    stored: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    field: str,
    size: float,
    message: str,
) -> None:
    checkpoint, output = save(stored, tmp_path / "best.pt"), tmp_path / "can.onnx"
    monkeypatch.setattr(export_onnx, "torch_scores", noise_in(field, size))
    assert main([checkpoint, "-o", str(output)]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["best.pt"], "no file is left"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {}}, "its weights are not its configuration's"),
        ({"config": {"name": "x", "speed": 3}}, "unknown key 'speed'"),
    ],
)
def test_refuses_a_checkpoint_of_something_else(
    stored: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
) -> None:
    checkpoint = save({**stored, **changes}, tmp_path / "best.pt")
    assert main([checkpoint, "-o", str(tmp_path / "can.onnx")]) == 1
    assert message in capsys.readouterr().err


def test_refuses_what_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "can.onnx")
    (tmp_path / "text.pt").write_text("not a checkpoint")
    for checkpoint, message in [
        (str(tmp_path / "none.pt"), "no checkpoint"),
        (str(tmp_path / "text.pt"), "cannot be read as a checkpoint"),
        (save({"weights": 1}, tmp_path / "other.pt"), "holds ['weights']: expected config, "),
    ]:
        assert main([checkpoint, "-o", output]) == 1
        assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a JSON object"),
        ('{"calibration": {"window": "hot"}}', "expected temperatures"),
        ('{"accuracy": 0.9}', "expected those that `python -m train evaluate` writes"),
    ],
)
def test_refuses_results_of_something_else(
    stored: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    message: str,
) -> None:
    results = tmp_path / "results.json"
    results.write_text(text)
    checkpoint = save(stored, tmp_path / "best.pt")
    arguments = [checkpoint, "-o", str(tmp_path / "can.onnx"), "--results", str(results)]
    assert main(arguments) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "can.onnx").exists()


@pytest.mark.usefixtures("no_speech_data")
def test_a_page_for_which_there_is_no_folder_is_refused_first(
    stored: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, output = save(stored, tmp_path / "best.pt"), tmp_path / "can.onnx"
    page = tmp_path / "none" / "can.md"
    assert main([checkpoint, "-o", str(output), "--card", str(page)]) == 1
    assert "expected a folder for it" in capsys.readouterr().err
    assert not output.exists()


def test_own_speech_keeps_its_own_licence() -> None:
    mine = replace(tiny_checkpoint(), training_data={"mine": {"utterances": 4, "speakers": 2}})
    assert make_card(mine, name="mine", results={}).licence == "unknown"


@pytest.mark.usefixtures("no_speech_data")
def test_refuses_a_folder_that_is_not_there(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint()
    card = make_card(checkpoint, name="tiny", results={})
    with pytest.raises(ModelError, match="expected a folder"):
        export_onnx.export(checkpoint, card, tmp_path / "none" / "can.onnx", None)


def test_synthetic_voice_is_speech() -> None:
    config = VadConfig()
    detector, tracker = VoiceDetector(config, 16_000), SpeechTracker(config)
    samples, length = synthetic_voice(2.0, 16_000), detector.block_length
    for start in range(0, len(samples) - length + 1, length):
        tracker.receive(detector.is_speech(samples[start : start + length]))
    assert tracker.active
