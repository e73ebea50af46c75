from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from streamer.card import CARD_KEY, Calibration, Card, Corpus, Rejection, decode_card, encode_card
from streamer.errors import CardError
from streamer.features import FeatureConfig
from streamer.normalization import NormalizationConfig
from streamer.windows import WindowConfig
from tests.scorers import make_card


def test_a_card_survives_its_json() -> None:
    card = replace(make_card(), training={"epochs": 40}, results={"uar": {"ravdess": 0.5}})
    assert decode_card(encode_card(card), "can.onnx") == card
    bare = replace(make_card(), normalization=None)
    assert decode_card(encode_card(bare), "can.onnx") == bare


def test_a_card_from_before_there_was_rejection_never_rejects() -> None:
    fields = json.loads(encode_card(make_card()))
    del fields["rejection"]
    assert decode_card(json.dumps(fields), "can.onnx").rejection == Rejection()


@given(
    labels=st.lists(st.text(min_size=1), min_size=2, max_size=7, unique=True),
    name=st.text(),
    num_ceps=st.integers(1, 40),
    num_frames=st.integers(1, 500),
    temperatures=st.tuples(*[st.floats(0.01, 100)] * 3),
    prior_frames=st.integers(0, 10_000),
    utterances=st.integers(0, 10**9),
)
def test_any_card_survives_its_json(
    labels: list[str],
    name: str,
    num_ceps: int,
    num_frames: int,
    temperatures: tuple[float, float, float],
    prior_frames: int,
    utterances: int,
) -> None:
    card = Card(
        name=name,
        description=name,
        labels=tuple(labels),
        features=FeatureConfig(num_ceps=num_ceps),
        normalization=NormalizationConfig(mean=(0.1,) * num_ceps, prior_frames=prior_frames),
        window=WindowConfig(num_frames=num_frames, first_frames=(num_frames + 1) // 2),
        calibration=Calibration(
            window=temperatures[0], smoothed=temperatures[1], turn=temperatures[2]
        ),
        data=(Corpus(name=name, language="bn", speakers=4, utterances=utterances, licence=name),),
        licence=name,
    )
    assert decode_card(encode_card(card), "can.onnx") == card
    assert card.input_shape == (3, num_ceps, num_frames)


@pytest.mark.parametrize("text", [None, ""])
def test_no_card_is_refused_with_the_key_that_was_looked_for(text: str | None) -> None:
    with pytest.raises(CardError, match=rf"can\.onnx has no card: .*'{CARD_KEY}'"):
        decode_card(text, "can.onnx")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("version", 2, "card version 2: expected 1"),
        ("labels", ["angry"], "expected two or more different ones"),
        ("labels", ["angry", "angry"], "expected two or more different ones"),
        ("labels", "angry", "cannot be read"),
        ("name", 5, "cannot be read"),
        ("features.sample_rate", 8_000, "cannot be read|features at 8000 Hz: expected 16000"),
        ("features.mel_high_hz", 9_000.0, "cannot be read.*mel range"),
        ("features.num_ceps", 41, "cannot be read.*coefficients"),
        ("features.num_ceps", 13, "a normalisation mean of 26 coefficients: expected at most 13"),
        ("normalization.memory_frames", 0, "cannot be read.*memory"),
        ("window.first_frames", 201, "cannot be read.*first window of 201 frames"),
        ("calibration.window", 0.0, "temperatures .*: expected 0.01 to 100"),
        ("calibration.smoothed", -1.0, "temperatures .*: expected 0.01 to 100"),
        ("calibration.turn", 1_000.0, "temperatures .*: expected 0.01 to 100"),
        ("labels", ["angry", "uncertain"], "expected none called 'uncertain'"),
        ("rejection.smoothed", 1.0, "rejection below .*: expected 0 or more, less than 1"),
        ("rejection.turn", -0.1, "rejection below .*: expected 0 or more, less than 1"),
        ("data", [{"name": "ravdess"}], "cannot be read"),
    ],
)
def test_a_card_that_this_version_cannot_serve_is_refused(
    path: str, value: Any, message: str
) -> None:
    fields = json.loads(encode_card(make_card()))
    *parents, name = path.split(".")
    place = fields
    for parent in parents:
        place = place[parent]
    place[name] = value
    with pytest.raises(CardError, match=f"^can.onnx: .*({message})"):
        decode_card(json.dumps(fields), "can.onnx")


def test_a_rate_that_the_front_end_does_not_work_at_is_refused() -> None:
    card = replace(make_card(), features=FeatureConfig(sample_rate=8_000, mel_high_hz=3_800.0))
    with pytest.raises(CardError, match="features at 8000 Hz: expected 16000"):
        decode_card(encode_card(card), "can.onnx")


@given(st.text())
def test_text_that_is_no_card_is_refused_with_one_kind_of_error(text: str) -> None:
    with pytest.raises(CardError):
        decode_card(text, "can.onnx")


@pytest.mark.parametrize(
    "missing", ["labels", "features", "normalization", "window", "calibration"]
)
def test_what_decides_must_be_there(missing: str) -> None:
    fields = json.loads(encode_card(make_card()))
    del fields[missing]
    with pytest.raises(CardError, match=missing):
        decode_card(json.dumps(fields), "can.onnx")
