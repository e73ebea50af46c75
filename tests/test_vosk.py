"""vosk-server's protocol: one answer a message, at once, and nothing final is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.audio import AudioFormat
from streamer.call import Call, CallConfig
from streamer.dialects import CloseCode, End, Handshake, PeerError, Start
from streamer.dialects.vosk import VoskDialect
from streamer.events import Emotion, Error, Event, Speech, Turn, encode_event
from tests.dialogues import JSON, READY, SUMMARY, TURN, Dialogue, check_only_peer_errors, mutations
from tests.phone_calls import customer
from tests.scorers import assert_same_events, cut, encode_audio, hear, make_card, of_type

CONFIG = {"config": {"sample_rate": 16000, "words": True, "phrase_list": ["a", "b"]}}
EOF = '{"eof" : 1}'


def vosk(**query: str) -> VoskDialect:
    return VoskDialect(Handshake(path="/vosk", query=tuple(query.items())))


def pcm(rate: int) -> bytes:
    return encode_audio([customer(rate)], AudioFormat(sample_rate=rate))


def test_a_documented_conversation_is_heard_as_the_same_audio() -> None:
    """As vosk-server's sample client: send, await the answer, ..., send eof, await the answer."""
    peer = Dialogue(vosk())
    assert peer.say(CONFIG) == []
    answers = []
    for chunk in cut(pcm(16000), 8000):
        (answer,) = peer.say(chunk)
        assert ("partial" in answer) != ("text" in answer)
        answers.append(answer)
    (last,) = peer.say(EOF)
    assert (last["text"], last["result"]) == ("", [])
    assert last["events"][-1]["type"] == "summary"

    direct = Call(make_card(), CallConfig(audio=AudioFormat(), roles=("customer",)))
    expected = hear(direct, cut(pcm(16000), 4000))
    assert_same_events(peer.events, expected)
    told = [event for answer in [*answers, last] for event in answer.get("events", [])]
    assert told == [json.loads(encode_event(event)) for event in peer.events]
    turns = [answer["emotion"] for answer in [*answers, last] if "emotion" in answer]
    assert turns == [json.loads(encode_event(turn)) for turn in of_type(expected, Turn)]
    assert len(turns) == 2 and len(of_type(expected, Emotion)) > 4


@pytest.mark.parametrize(
    ("config", "rate"),
    [
        (None, 8000),
        ('{"config":{}}', 8000),
        ('{"config" : { "sample_rate" : 48000.0 }}', 48000),
        ('{"config":{"sample_rate":"16000"}}', 16000),
        ('{"config":{"sample_rate":8000,"max_alternatives":3,"unknown":[]}}', 8000),
    ],
)
def test_the_rate_is_the_configured_one_or_8000(config: str | None, rate: int) -> None:
    dialect = vosk()
    if config is not None:
        assert dialect.receive_text(config) == []
    start = Start(audio=AudioFormat(sample_rate=rate), roles=("customer",))
    assert dialect.receive_bytes(b"\x00\x00") == [start, b"\x00\x00"]
    assert dialect.receive_bytes(b"\x00\x00") == [b"\x00\x00"]


def test_the_url_speaks_for_clients_that_send_no_configuration() -> None:
    dialect = vosk(sample_rate="16000", call_id="17", roles="agent", step_ms="500", token="x")
    (start,) = dialect.receive_bytes(b"")[:1]
    assert start == Start(
        audio=AudioFormat(sample_rate=16000), roles=("agent",), step_s=0.5, call_id="17"
    )


@pytest.mark.parametrize(
    "query",
    [
        {"sample_rate": "16k"},
        {"sample_rate": "96000"},
        {"roles": "boss"},
        {"roles": "customer,agent"},
        {"call_id": "a\nb"},
        {"call_id": "x" * 129},
        {"step_ms": "99"},
        {"step_ms": "105"},
        {"text": "no"},
    ],
)
def test_what_the_url_may_not_say(query: dict[str, str]) -> None:
    with pytest.raises(PeerError, match="expected"):
        vosk(**query)


@pytest.mark.parametrize("eof", ['{"eof" : 1}', '{"eof":1}', '{ "eof":true }', '{"eof":"1"}'])
def test_the_end_in_any_spacing(eof: str) -> None:
    dialect = vosk()
    start, end = dialect.receive_text(eof)
    assert isinstance(start, Start) and end == End()
    assert dialect.messages_to_send() == []
    dialect.receive_event(SUMMARY)
    (text,) = dialect.messages_to_send()
    summary = json.loads(encode_event(SUMMARY))
    assert json.loads(text) == {"text": "", "result": [], "events": [summary]}


def test_an_answer_waits_for_nothing_and_holds_one_turn() -> None:
    """Scores that are late: the answers are there all the same, and every turn has its own."""
    dialect = vosk()
    speech = Speech(channel=0, role="customer", active=True, time_s=0.1)
    dialect.receive_bytes(b"\x00\x00")
    assert dialect.messages_to_send() == ['{"partial":""}']
    for event in (READY, speech, TURN, speech, TURN, speech):
        dialect.receive_event(event)
    assert dialect.messages_to_send() == []
    answers = []
    for _ in range(4):
        dialect.receive_bytes(b"\x00\x00")
        (text,) = dialect.messages_to_send()
        answers.append(json.loads(text))
    kinds = [[event["type"] for event in answer.get("events", [])] for answer in answers]
    assert kinds == [["ready", "speech", "turn"], ["speech", "turn"], ["speech"], []]
    assert ["text" in answer for answer in answers] == [True, True, False, False]


def test_the_rest_comes_with_the_answer_to_eof() -> None:
    dialect = vosk()
    dialect.receive_bytes(b"\x00\x00")
    dialect.receive_text(EOF)
    dialect.messages_to_send()
    for event in (READY, TURN, TURN, SUMMARY):
        dialect.receive_event(event)
    (text,) = dialect.messages_to_send()
    kinds = [event["type"] for event in json.loads(text)["events"]]
    assert kinds == ["ready", "turn", "turn", "summary"]


def test_waiting_events_are_bounded() -> None:
    dialect = vosk()
    for _ in range(300):
        dialect.receive_event(TURN)
    dialect.receive_bytes(b"\x00\x00")
    (text,) = dialect.messages_to_send()
    assert len(json.loads(text)["events"]) == 300


def test_the_label_is_the_text_for_those_who_hand_nothing_else_on() -> None:
    """FreeSWITCH's module takes an answer with two quotation marks in a row for no result."""
    dialect = vosk(text="label")
    dialect.receive_event(TURN)
    dialect.receive_bytes(b"\x00\x00")
    (text,) = dialect.messages_to_send()
    assert json.loads(text)["text"] == "sad" and '""' not in text


def test_a_call_that_cannot_begin_says_so_at_once() -> None:
    dialect = vosk()
    dialect.receive_event(Error(code="full", message="the server is full", fatal=True))
    (text,) = dialect.messages_to_send()
    assert json.loads(text)["events"][0]["code"] == "full"


def test_a_call_that_the_server_ends_is_told_to_its_end() -> None:
    peer = Dialogue(vosk())
    peer.say(pcm(8000)[:40000])
    (last,) = peer.end()
    assert last["events"][-1]["type"] == "summary"


@pytest.mark.parametrize(
    ("messages", "code", "close_code"),
    [
        (["{}"], "bad_message", CloseCode.POLICY),
        (['{"reset":1}'], "bad_message", CloseCode.POLICY),
        (['{"eof":0}'], "bad_message", CloseCode.POLICY),
        (['{"eof":null}'], "bad_message", CloseCode.POLICY),
        (['{"config":3}'], "bad_message", CloseCode.POLICY),
        (["[]"], "bad_message", CloseCode.POLICY),
        (["eof"], "bad_json", CloseCode.INVALID_DATA),
        (['{"eof":' + "[" * 60000], "bad_json", CloseCode.INVALID_DATA),
        (["x" * 70000], "too_big", CloseCode.TOO_BIG),
        (['{"config":{"sample_rate":96000}}'], "bad_audio", CloseCode.POLICY),
        (['{"config":{"sample_rate":8000.5}}'], "bad_audio", CloseCode.POLICY),
        (['{"config":{"sample_rate":"nan"}}'], "bad_audio", CloseCode.POLICY),
        ([b"\x00\x00", '{"config":{"sample_rate":16000}}'], "bad_audio", CloseCode.POLICY),
        ([EOF, EOF], "bad_message", CloseCode.POLICY),
        ([EOF, b"\x00\x00"], "bad_message", CloseCode.POLICY),
    ],
)
def test_what_is_refused(messages: list[Any], code: str, close_code: CloseCode) -> None:
    peer = Dialogue(vosk())
    *fine, bad = messages
    for message in fine:
        peer.say(message)
    fault = peer.refusal(bad)
    assert (fault.code, fault.close_code) == (code, close_code)


STEPS = (
    st.text(max_size=40)
    | JSON.map(json.dumps)
    | mutations([CONFIG, {"eof": 1}, {"config": {"sample_rate": 8000}, "eof": 1}])
    | st.binary(max_size=9)
    | st.sampled_from(["[" * 3000, '{"config":' + "[" * 3000, '{"eof":' + "9" * 5000 + "}"])
)
EVENTS = st.sampled_from([READY, TURN, SUMMARY, Error(code="x", message="", fatal=True)])


@given(st.lists(STEPS | STEPS | EVENTS, max_size=8))
def test_only_peer_errors_come_out(steps: list[str | bytes | Event]) -> None:
    check_only_peer_errors(vosk(), steps)


@given(st.lists(st.tuples(st.sampled_from(["sample_rate", "roles", "text"]), st.text())))
def test_only_peer_errors_come_out_of_the_url(query: list[tuple[str, str]]) -> None:
    try:
        VoskDialect(Handshake(path="/vosk", query=tuple(query)))
    except PeerError as fault:
        assert "expected" in str(fault)
