"""AudioHook: a whole conversation, every state, and a signed request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.audio import AudioFormat, Encoding
from streamer.call import Lost
from streamer.dialects import CloseCode, End, Handshake, PeerError, Start
from streamer.dialects.genesys import GenesysDialect
from streamer.events import Emotion, Error, Event, Gap, Turn, encode_event
from tests.audiohook import (
    CONVERSATION,
    EXTERNAL,
    INTERNAL,
    NIL,
    ORGANIZATION,
    SESSION,
    STEREO,
    Client,
    documented,
    entities,
    genesys,
    open_parameters,
    run,
    stereo,
)
from tests.dialogues import JSON, READY, SUMMARY, TURN, check_only_peer_errors, mutations
from tests.phone_calls import changed
from tests.scorers import assert_same_events, of_type
from tests.test_signatures import API_KEY, CLIENT_SECRET, CREATED, DOCUMENTED, PATH

OPEN = Client(genesys()).message("open", **open_parameters(STEREO))
LINEAR = {**STEREO, "format": "L16"}
SWAPPED = {**STEREO, "channels": ["internal", "external"]}
TWICE = {**STEREO, "channels": ["external", "external"]}


# Conversations


def test_a_documented_conversation_is_heard_as_the_same_audio() -> None:
    client = Client(genesys(audiohook_session_id=SESSION, audiohook_organization_id=ORGANIZATION))
    opened, ready = client.open(supportedLanguages=True)
    assert opened == {
        "version": "2",
        "id": SESSION,
        "type": "opened",
        "seq": 1,
        "clientseq": 1,
        "parameters": {"media": [STEREO], "startPaused": False, "supportedLanguages": []},
    }
    assert entities([ready])[0]["type"] == "ser-stream.ready"
    assert client.inputs == [
        Start(
            audio=AudioFormat(encoding="mulaw", sample_rate=8000, channels=2),
            roles=("customer", "agent"),
            call_id=CONVERSATION,
        )
    ]
    audio = stereo()
    client.stream(audio[:48000])
    (pong,) = client.tell("ping", rtt="PT0.05S")
    assert (pong["type"], pong["clientseq"], pong["parameters"]) == ("pong", client.seq, {})
    (updated,) = client.tell("update", language="es-ES")
    assert updated["type"] == "updated"
    client.stream(audio[48000:])
    *told, closed = client.tell("close", reason="end")
    assert (closed["type"], closed["clientseq"]) == ("closed", client.seq)
    assert entities(told)[-1]["type"] == "ser-stream.summary"
    assert isinstance(client.inputs[-1], End)

    expected = run([audio])
    assert_same_events(client.events, expected)
    assert {event.role for event in of_type(expected, Turn)} == {"customer", "agent"}
    assert [entity["data"] for entity in entities(client.sent)] == [
        json.loads(encode_event(event)) for event in client.events
    ]
    kinds = [f"ser-stream.{event.__struct_config__.tag}" for event in client.events]
    assert [entity["type"] for entity in entities(client.sent)] == kinds


def test_pauses_and_discarded_audio_are_gaps() -> None:
    client = Client(genesys())
    client.open()
    audio = stereo()
    client.stream(audio[:32000])
    client.tell("paused")
    client.tell("paused")
    client.tell("resumed", start="PT2S", discarded="PT1.5S")
    client.tell("resumed", start="PT3.5S", discarded="PT0S")
    client.position_s += 1.5
    client.stream(audio[32000:64000])
    client.tell("discarded", start="PT5.5S", discarded="PT.25S")
    client.position_s += 0.25
    client.stream(audio[64000:])
    client.tell("close", reason="end")
    lost = [Lost(24_000, "paused"), Lost(4_000, "discarded")]
    assert of_type(client.inputs, Lost) == lost
    pieces: list[bytes | Lost] = [
        audio[:32000],
        lost[0],
        audio[32000:64000],
        lost[1],
        audio[64000:],
    ]
    assert_same_events(client.events, run(pieces))
    gaps = [gap for gap in of_type(client.events, Gap) if gap.role == "customer"]
    assert [gap.reason for gap in gaps] == ["paused", "discarded"]
    places = [time_s for gap in gaps for time_s in (gap.start_s, gap.end_s)]
    assert places == pytest.approx([2.0, 3.5, 5.5, 5.75], abs=1e-3)  # times are in ms


def test_a_gap_ends_where_the_stream_goes_on() -> None:
    """Whatever the client left out before ``start`` without a word is in it."""
    client = Client(genesys())
    client.open(EXTERNAL)
    client.stream(b"\xff" * 8000, channels=1)
    client.tell("discarded", start="PT1.5S", discarded="PT0.5S")
    client.tell("discarded", start="PT1.75S", discarded="PT0.25S")
    client.tell("discarded", start="PT0S", discarded="PT0.000125S")
    assert of_type(client.inputs, Lost) == [Lost(16_000, "discarded")]


def test_agents_are_not_analysed_unless_the_operator_says_so() -> None:
    client = Client(genesys(), analyse_agents=False)
    client.open()
    client.stream(stereo())
    client.tell("close", reason="end")
    assert {event.role for event in of_type(client.events, Emotion)} == {"customer"}


@pytest.mark.parametrize("media", [[STEREO], []])
def test_a_connection_probe_is_no_call(media: list[dict[str, Any]]) -> None:
    client = Client(genesys())
    (opened,) = client.tell("open", **open_parameters(*media, conversation=NIL))
    assert opened["parameters"]["media"] == media
    assert client.say(b"\xff\xff") == []
    (pong,) = client.tell("ping")
    assert pong["type"] == "pong"
    (closed,) = client.tell("close", reason="end")
    assert closed["type"] == "closed"
    assert client.inputs == [] and client.call is None


@pytest.mark.parametrize(
    ("offered", "taken", "roles"),
    [
        ([EXTERNAL, STEREO], STEREO, ("customer", "agent")),
        ([LINEAR, STEREO], STEREO, ("customer", "agent")),
        ([LINEAR], LINEAR, ("customer", "agent")),
        ([INTERNAL, EXTERNAL], EXTERNAL, ("customer",)),
        ([INTERNAL], INTERNAL, ("agent",)),
        ([{**STEREO, "format": "OPUS"}, EXTERNAL], EXTERNAL, ("customer",)),
        ([{**STEREO, "rate": 4000}, {**EXTERNAL, "extra": 1}], EXTERNAL, ("customer",)),
        ([SWAPPED], SWAPPED, ("agent", "customer")),
    ],
)
def test_the_media_that_is_taken(
    offered: list[Any], taken: dict[str, Any], roles: tuple[str, ...]
) -> None:
    client = Client(genesys())
    opened = client.open(*offered)[0]
    assert opened["parameters"]["media"] == [taken]
    (start,) = client.inputs
    assert isinstance(start, Start) and start.roles == roles
    encoding: Encoding = "mulaw" if taken["format"] == "PCMU" else "pcm_s16le"
    assert start.audio == AudioFormat(
        encoding=encoding, sample_rate=8000, channels=len(taken["channels"])
    )


def test_the_url_may_ask_for_a_step() -> None:
    handshake = Handshake(path="/genesys", query=(("step_ms", "500"),))
    client = Client(GenesysDialect(handshake))
    client.open()
    (start,) = client.inputs
    assert isinstance(start, Start) and start.step_s == 0.5
    with pytest.raises(PeerError, match="step of 500 ms"):
        GenesysDialect(handshake, min_step_ms=1000)


# The end


def test_the_last_events_come_before_closed() -> None:
    """The scores are late: nothing answers the close until the summary is there."""
    dialect = genesys()
    client = Client(dialect)
    dialect.receive_text(json.dumps(client.message("open", **open_parameters(STEREO))))
    dialect.receive_event(READY)
    assert dialect.receive_text(json.dumps(client.message("close", reason="end"))) == [End()]
    assert len(dialect.messages_to_send()) == 2
    assert dialect.receive_text(json.dumps(client.message("close", reason="end"))) == []
    assert dialect.messages_to_send() == []
    for event in (TURN, TURN, SUMMARY):
        dialect.receive_event(event)
    event, closed = (json.loads(text) for text in dialect.messages_to_send())
    kinds = [entity["type"] for entity in entities([event])]
    assert kinds == ["ser-stream.turn", "ser-stream.turn", "ser-stream.summary"]
    assert closed["type"] == "closed"


def test_a_server_that_ends_the_call_disconnects() -> None:
    client = Client(genesys())
    client.open()
    client.stream(stereo(seconds=2.0))
    *told, disconnect = client.end()
    assert entities(told)[-1]["type"] == "ser-stream.summary"
    assert (disconnect["type"], disconnect["parameters"]["reason"]) == ("disconnect", "completed")
    (closed,) = client.tell("close", reason="disconnect")
    assert closed["type"] == "closed"
    assert of_type(client.inputs, End) == []


@pytest.mark.parametrize("before", [[], [OPEN], [OPEN, READY]])
def test_a_call_that_failed_or_could_not_begin_disconnects(before: list[Any]) -> None:
    full = Error(code="full", message="the server is full", fatal=True)
    dialect = genesys()
    for item in (*before, full, SUMMARY):
        if isinstance(item, dict):
            dialect.receive_text(json.dumps(item))
        else:
            dialect.receive_event(item)
    last = json.loads(dialect.messages_to_send()[-1])
    assert last["type"] == "disconnect"
    assert last["parameters"] == {"reason": "error", "info": "the server is full"}


def test_a_fault_after_close_does_not_cost_the_last_events() -> None:
    client = Client(genesys())
    client.open()
    dialect = client.dialect
    dialect.receive_text(json.dumps(client.message("close", reason="end")))
    for bad in (b"\xff\xff", "nope"):
        client.refusal(bad)
    for event in (TURN, SUMMARY):
        dialect.receive_event(event)
    kinds = [json.loads(text)["type"] for text in dialect.messages_to_send()]
    assert kinds == ["event", "closed"]


def test_an_error_of_the_client_is_heard() -> None:
    client = Client(genesys())
    client.open()
    assert client.tell("error", code=429, message="too fast", retryAfter="PT3S") == []
    *_, closed = client.tell("close", reason="error")
    assert closed["type"] == "closed"


def test_a_close_before_open_is_answered() -> None:
    client = Client(genesys())
    (closed,) = client.tell("close", reason="error")
    assert closed["type"] == "closed" and client.inputs == []


def test_messages_stay_below_what_the_client_takes() -> None:
    dialect = genesys()
    client = Client(dialect)
    dialect.receive_text(json.dumps(client.message("open", **open_parameters(STEREO))))
    for _ in range(1000):
        dialect.receive_event(TURN)
    messages = dialect.messages_to_send()
    assert max(map(len, messages)) < 65_536
    assert len(entities([json.loads(text) for text in messages])) == 1000


# Faults


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (changed(OPEN, "version", "1"), "version is '1'"),
        (changed(OPEN, "id", "x"), "id is 'x': expected a UUID"),
        (changed(OPEN, "id", CONVERSATION), "the session's"),
        (changed(OPEN, "seq", 0), "seq is 0: expected 1"),
        (changed(OPEN, "seq", 2), "seq is 2: expected 1"),
        (changed(OPEN, "serverseq", 1), "serverseq is 1: expected 0 to 0"),
        (changed(OPEN, "position", "1.5"), "position is '1.5'"),
        (changed(OPEN, "position", "PT.S"), "position is 'PT.S'"),
        (changed(OPEN, "position", "PT86401S"), "at most 86400 s"),
        (changed(OPEN, "parameters", ...), "missing required field `parameters`"),
        (changed(OPEN, "parameters", []), "Expected `object`"),
        (changed(OPEN, "type", "opened"), "type is 'opened'"),
        (changed(OPEN, "parameters.conversationId", "x"), "conversationId is 'x'"),
        (changed(OPEN, "parameters.media", []), "none of 0 media"),
        (changed(OPEN, "parameters.media", [{**STEREO, "format": "OPUS"}]), "none of 1 media"),
        (changed(OPEN, "parameters.media", [{**STEREO, "channels": []}]), "none of 1 media"),
        (changed(OPEN, "parameters.media", [TWICE]), "none of 1 media"),
        ("nope", "not JSON"),
        ("x" * 65536, "65536 characters"),
    ],
)
def test_what_is_refused_is_disconnected(message: Any, sentence: str) -> None:
    client = Client(genesys(audiohook_session_id=SESSION))
    fault = client.refusal(message)
    assert sentence in str(fault)
    (disconnect,) = client.sent
    assert (disconnect["type"], disconnect["id"]) == ("disconnect", SESSION)
    assert disconnect["parameters"] == {"reason": "error", "info": str(fault)}
    assert client.refusal(client.message("ping")) is fault
    assert len(client.sent) == 1


@pytest.mark.parametrize(
    ("before", "message", "sentence"),
    [
        ([], b"\xff\xff", "while preparing"),
        ([("paused", {})], b"\xff\xff", "while paused"),
        ([("close", {"reason": "end"})], b"\xff\xff", "of audio while closed"),
        ([], b"\xff", "1 bytes of audio: expected a multiple of 2"),
        ([], ("open", open_parameters(STEREO)), "a second 'open'"),
        ([], ("discarded", {"start": "PT1S"}), "missing required field `discarded`"),
        ([], ("resumed", {"start": "PT1M", "discarded": "PT1S"}), "start is 'PT1M'"),
        ([], ("close", {}), "missing required field `reason`"),
    ],
)
def test_what_may_not_come_then(before: list[Any], message: Any, sentence: str) -> None:
    client = Client(genesys())
    if sentence != "while preparing":
        client.open()
    for kind, parameters in before:
        client.tell(kind, **parameters)
    bad = message if isinstance(message, bytes) else client.message(message[0], **message[1])
    assert sentence in str(client.refusal(bad))


def test_an_organization_that_is_not_the_headers_is_unauthorized() -> None:
    client = Client(genesys(audiohook_organization_id=CONVERSATION))
    assert client.refusal(OPEN).code == "unauthorized"
    (disconnect,) = client.sent
    assert disconnect["parameters"]["reason"] == "unauthorized"


# The signature


def test_the_documented_request_is_let_in() -> None:
    handshake = Handshake(path=PATH, headers=tuple(DOCUMENTED.items()))
    dialect = GenesysDialect(
        handshake, api_key=API_KEY, client_secret=CLIENT_SECRET, clock=lambda: CREATED + 2.0
    )
    opened = Client(dialect).open()[0]
    assert opened["id"] == SESSION


def test_an_unsigned_or_old_request_is_not() -> None:
    for headers, now_s in ((DOCUMENTED, CREATED + 3600), ({"x-api-key": API_KEY}, CREATED)):
        handshake = Handshake(path=PATH, headers=tuple(headers.items()))
        with pytest.raises(PeerError) as caught:
            GenesysDialect(handshake, client_secret=CLIENT_SECRET, clock=iter([now_s]).__next__)
        assert (caught.value.code, caught.value.close_code) == ("unauthorized", CloseCode.POLICY)


# Anything


EVENTS = st.sampled_from([READY, TURN, SUMMARY, Error(code="x", message="y", fatal=True)])
STEPS = (
    st.text(max_size=40)
    | JSON.map(json.dumps)
    | mutations(documented())
    | st.binary(max_size=9)
    | st.sampled_from(["[" * 3000, '{"parameters":' + "[" * 3000, '{"seq":1' + "0" * 5000 + "}"])
    | EVENTS
)


@given(st.integers(0, 8), st.lists(EVENTS | st.just(b"\xff\xff"), max_size=3), st.lists(STEPS))
def test_only_peer_errors_come_out(
    num_fine: int, between: list[Any], steps: list[str | bytes | Event]
) -> None:
    fine: list[Any] = [json.dumps(message) for message in documented()[:num_fine]]
    check_only_peer_errors(genesys(), [*fine, *between, *steps])


@given(
    st.permutations([*documented(), *documented()]),
    st.lists(st.sampled_from([READY, TURN, SUMMARY, b"\xff\xff"]), max_size=6),
)
def test_any_order_of_good_messages(messages: list[dict[str, Any]], more: list[Any]) -> None:
    steps: list[Any] = []
    for place, message in enumerate(messages, 1):
        steps.append(json.dumps({**message, "seq": place}))
        steps += more[place - 1 : place]
    check_only_peer_errors(genesys(), steps)


@given(st.dictionaries(st.sampled_from([*DOCUMENTED]), st.text()))
def test_any_headers(headers: dict[str, str]) -> None:
    handshake = Handshake(path="/genesys", headers=tuple(headers.items()))
    check_only_peer_errors(GenesysDialect(handshake), [json.dumps(OPEN), b"\xff\xff"])
