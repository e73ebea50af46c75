from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import jsonschema
import msgspec
import pytest

from streamer.events import (
    Alert,
    ChannelSummary,
    Emotion,
    Error,
    Event,
    EventType,
    Gap,
    Lag,
    Ready,
    ReadyChannel,
    Speech,
    Summary,
    TalkOver,
    Turn,
    decode_event,
    encode_event,
    event_schema,
)

PUBLISHED = Path(__file__).resolve().parent.parent / "docs" / "events.schema.json"
SCORES = {"angry": 0.7, "happy": 0.1, "neutral": 0.15, "sad": 0.05}


SIGNED = {"seq": 7, "channel": 1, "role": "customer", "source": "call.wav"}
TIMED: dict[str, Any] = {**SIGNED, "lag_ms": 12.5, "dropped": 3}
EVENTS: list[Event] = [
    Ready(
        session="local",
        model="can",
        labels=tuple(SCORES),
        encoding="mulaw",
        sample_rate=8000,
        channels=(ReadyChannel(channel=0, role="agent", analysed=False),),
        step_ms=250,
        first_score_s=1.065,
        hang_over_s=0.4,
        notice="Emotion inference is running.",
    ),
    Speech(**TIMED, active=True, time_s=1.02),
    Emotion(
        **TIMED,
        start_s=10.25,
        end_s=12.25,
        label="angry",
        scores=SCORES,
        raw=SCORES,
        speech=0.9,
        warming_up=False,
    ),
    Turn(**TIMED, start_s=10.25, end_s=15.1, label="angry", scores=SCORES, windows=5),
    Gap(**TIMED, start_s=3.0, end_s=4.0, reason="not_fetched"),
    Lag(**TIMED, start_s=3.0, end_s=5.0, reason="overload"),
    TalkOver(seq=8, start_s=3.0, end_s=3.4),
    Alert(**TIMED, rule="angry10", label="angry", probability=0.8, start_s=3.0, end_s=13.1),
    Error(seq=9, code="bad_source", message="naïve.wav cannot be opened", fatal=True),
    Summary(
        seq=10,
        duration_s=27.3,
        max_lag_ms=12.5,
        talk_over_s=0.4,
        channels=(
            ChannelSummary(
                channel=0,
                role="customer",
                analysed=True,
                speech_s=4.9,
                turns=1,
                emotions=18,
                windows_scored=18,
                frames_computed=2722,
                dropped=0,
                labels={**dict.fromkeys(SCORES, 0.0), "angry": 1.0},
            ),
        ),
    ),
]


def name(event: Event) -> str:
    return str(event.__struct_config__.tag)


def test_every_type_is_here() -> None:
    assert {name(event) for event in EVENTS} == set(get_args(EventType))


@pytest.mark.parametrize("event", EVENTS, ids=name)
def test_json_round_trip(event: Event) -> None:
    line = encode_event(event)
    assert b"\n" not in line
    assert decode_event(line) == event
    assert json.loads(line)["type"] == name(event)


@pytest.mark.parametrize("event", EVENTS, ids=name)
def test_schema_takes_every_event(event: Event) -> None:
    validator = jsonschema.Draft202012Validator(event_schema())
    validator.validate(json.loads(encode_event(event)))


@pytest.mark.parametrize(
    "change", [{"type": "emotions"}, {"end_s": "12"}, {"label": None}, {"scores": {"angry": "x"}}]
)
def test_schema_and_decoder_refuse_the_same(change: dict[str, Any]) -> None:
    event = {**json.loads(encode_event(EVENTS[2])), **change}
    assert not jsonschema.Draft202012Validator(event_schema()).is_valid(event)
    with pytest.raises(msgspec.DecodeError):
        decode_event(json.dumps(event))


def test_source_is_left_out_where_there_is_no_file() -> None:
    assert "source" not in json.loads(encode_event(EVENTS[0]))
    assert json.loads(encode_event(EVENTS[1]))["source"] == "call.wav"


def test_published_schema_is_that_of_the_types() -> None:
    jsonschema.Draft202012Validator.check_schema(event_schema())
    # After a change of the types: ser-stream --schema > docs/events.schema.json
    assert PUBLISHED.read_text(encoding="utf-8") == json.dumps(event_schema(), indent=2) + "\n"
