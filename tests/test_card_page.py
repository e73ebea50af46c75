from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs

from export_onnx import make_card
from streamer.card import Card, encode_card
from streamer.errors import ModelError
from tests.made_up_results import make_results
from tests.models import tiny_checkpoint
from train.card_page import card_page
from train.config import FitConfig, load_config

CORPORA = ("banglaser", "emodb", "nemo", "ravdess")


def shipped(config: FitConfig | None = None, fold: int | None = None) -> Card:
    """Return the card of a network like the one that ships: all speakers, all four corpora."""
    config = config or load_config("paper")
    checkpoint = replace(
        tiny_checkpoint(),
        config=config,
        fold=fold,
        training_data={name: {"utterances": 900, "speakers": 7} for name in CORPORA},
    )
    return make_card(checkpoint, name="can", results=make_results(config, CORPORA))


def rows(page: str, first: str) -> list[list[str]]:
    """Return the cells of all rows that begin with a word."""
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in page.splitlines()
        if line.startswith(f"| {first} |")
    ]


def test_the_page_tells_what_the_card_holds() -> None:
    card = shipped()
    page = card_page(card)
    assert page.startswith(f"# can\n\n{card.description}\n")
    assert rows(page, "labels") == [["labels", "angry, happy, neutral, sad"]]
    assert rows(page, "window")[0][1] == "2 s, the first answer of a turn after 1 s"
    assert "26 MFCC" in rows(page, "features")[0][1]
    assert "40 ms every 10 ms; 16000 Hz" in rows(page, "features")[0][1]
    data, results = rows(page, "emodb")
    assert data == ["emodb", "de", "7", "900", "CC0 or CC BY 4.0 (sources differ)"]
    assert results[:6] == ["emodb", "7", "951", "0.611", "0.572 to 0.683", "0.622"]
    assert results[6:] == ["0.633", "0.588", "0.543", "0.572 to 0.683"]
    assert rows(page, "turn") == [["turn", "0.900", "0.123", "0.046"]]
    assert rows(page, "4") == [["4", "1", "15", *4 * ["0.555"]]]
    assert "count as wrong: 12." in page and "over the telephone 0.543." in page
    assert "Mean UAR in noise of so many dB below the speech, and in a room: noise20 0.512" in page
    assert "by seconds heard: 1 s 0.500, all 0.500" in page
    assert "anger shown in 75%, median delay 1.88 s, 4.2 changes" in page
    assert "0.5 emotional false alarms a minute" in page
    assert "`uncertain` where the highest smoothed score is below 0.450" in page
    assert "This network was trained on all speakers, so nobody is left" in page
    assert "this one kept its last" in page
    assert ", seed 1: Adam at " in page and "Whisper" not in page
    ours = card_page(shipped(load_config("ours")))
    assert "a part of it learnt" in ours
    assert "Smart Turn 3.2 (BSD-2-Clause), which is that of Whisper tiny (MIT)" in ours
    assert "this network is fold 2's" in card_page(shipped(fold=2))
    training = {**card.training, "config": {**card.training["config"], "refit": True}}
    training["config"]["optimizer"] = "adamw"
    other = card_page(structs.replace(card, training=training))
    assert "all kept their last epoch" in other and ": AdamW at " in other
    for line in page.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_the_card_is_small_and_says_what_it_is_for() -> None:
    card = shipped()
    # It is sent and read whole; the features' means and the configuration are a third of it.
    assert len(encode_card(card)) < 10_000
    for words in (
        "sounds angry, happy, neutral or sad",
        "Trained on acted speech (banglaser, emodb, nemo, ravdess)",
        "weights under CC BY-NC-SA 4.0",
        "the same recipe's 5 speaker-independent folds; this one has heard all speakers",
        "customer's knowledge",
        "of employees forbidden",
    ):
        assert words in card.description
    assert "this one is fold 2's" in shipped(fold=2).description


def commands(page: str) -> list[str]:
    return page.split("```")[1].strip().splitlines()


def test_the_page_names_the_commands() -> None:
    assert commands(card_page(shipped())) == [
        "python -m train fit --config paper --all",
        "python -m train folds --config paper",
        "python -m train evaluate runs/paper",
        "python export_onnx.py runs/paper/all/best.pt -o can.onnx --card can.md "
        "--results runs/paper/results.json",
    ]
    changed = load_config("paper", ["epochs=7", "network.num_heads=2", "schedule=constant"])
    fit, folds, *_ = commands(card_page(shipped(changed, fold=2)))
    settings = "--set 'network.num_heads=2' --set 'epochs=7' --set 'schedule=\"constant\"'"
    assert fit == f"python -m train fit --config paper {settings} --fold 2"
    assert folds == f"python -m train folds --config paper {settings}"
    own = replace(load_config("paper"), name="mine")
    assert commands(card_page(shipped(own)))[0] == "python -m train fit --config mine.toml --all"


def test_the_changes_that_it_names_are_understood() -> None:
    changes = ["network.conv_channels=[4, 8, 8, 16]", "normalize=false", "learning_rate=2e-05"]
    config = load_config("paper", changes)
    words = commands(card_page(shipped(config)))[0].split(" --set ")[1:]
    named = [word.split("'")[1] for word in words]
    assert len(named) == 3
    assert load_config("paper", named) == config


def test_without_results_it_says_so() -> None:
    checkpoint = tiny_checkpoint()
    card = make_card(checkpoint, name="can", results={})
    page = card_page(card)
    assert "None: exported without an evaluation." in page
    assert rows(page, "turn") == [["turn", "1.000", "-", "-"]]
    assert "results" not in card.description
    assert "Trained on speech (mine, nemo)" in card.description, "mine need not be acted"


@pytest.mark.parametrize("broken", [{"corpora": {}}, {"folds": 3}])
def test_other_results_are_refused(broken: dict[str, Any]) -> None:
    checkpoint = tiny_checkpoint()
    results = {**make_results(checkpoint.config), **broken}
    with pytest.raises(ModelError, match="expected those that `python -m train evaluate` writes"):
        make_card(checkpoint, name="can", results=results)
