"""Vonage's WebSockets: what the first message says, and that the rest is heard."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.audio import AudioFormat
from streamer.call import Call, CallConfig
from streamer.dialects import CloseCode, End, Handshake, PeerError, Start
from streamer.dialects.vonage import VonageDialect
from streamer.events import Emotion, Event, Turn
from tests.dialogues import JSON, READY, TURN, Dialogue, check_only_peer_errors, mutations
from tests.phone_calls import customer
from tests.scorers import assert_same_events, cut, encode_audio, hear, make_card, of_type

CONNECTED = {
    "event": "websocket:connected",
    "content-type": "audio/l16;rate=16000",
    "caller-id": "447700900123",
}
DTMF = {"event": "websocket:dtmf", "digit": "5", "duration": 260}
NOTIFY = {"event": "websocket:notify", "payload": {"played": True}}
CLEARED = {"event": "websocket:cleared"}
NOW_S = 1_700_000_000.0


def vonage(**query: str) -> VonageDialect:
    return VonageDialect(Handshake(path="/vonage", query=tuple(query.items())))


@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_documented_conversation_is_heard_as_the_same_audio(rate: int) -> None:
    audio = AudioFormat(sample_rate=rate)
    pcm = encode_audio([customer(rate)], audio)
    peer = Dialogue(vonage())
    peer.say({**CONNECTED, "content-type": f"audio/l16;rate={rate}"})
    for number, chunk in enumerate(cut(pcm, rate // 25)):  # 20 ms
        peer.say(chunk)
        if number % 50 == 0:
            for message in (DTMF, NOTIFY, CLEARED):
                peer.say(message)
    peer.end()  # Vonage closes the connection
    assert peer.sent == []
    expected = hear(Call(make_card(), CallConfig(audio=audio, roles=("customer",))), cut(pcm, 4000))
    assert_same_events(peer.events, expected)
    assert len(of_type(expected, Turn)) == 2 and of_type(expected, Emotion)
    assert not of_type(peer.inputs, End)


def test_headers_of_the_endpoint_name_the_call() -> None:
    said = {**CONNECTED, "call_id": "CON-17", "roles": "agent", "step_ms": 500, "other": [1]}
    assert vonage().receive_text(json.dumps(said)) == [
        Start(audio=AudioFormat(), roles=("agent",), step_s=0.5, call_id="CON-17")
    ]


def test_so_does_the_url() -> None:
    dialect = vonage(call_id="17", step_ms="1000", token="x")
    said = {**CONNECTED, "call_id": 17}
    assert dialect.receive_text(json.dumps(said)) == [
        Start(audio=AudioFormat(), roles=("customer",), step_s=1.0, call_id="17")
    ]
    with pytest.raises(PeerError, match="'18' and '17': expected one"):
        vonage(call_id="18").receive_text(json.dumps(said))


@pytest.mark.parametrize(
    "content_type", ["audio/l16;rate=8000", "audio/L16; rate=8000", " audio/l16 ; rate = 8000 "]
)
def test_a_content_type_in_any_spacing(content_type: str) -> None:
    (start,) = vonage().receive_text(json.dumps({**CONNECTED, "content-type": content_type}))
    assert isinstance(start, Start) and start.audio == AudioFormat(sample_rate=8000)


@pytest.mark.parametrize(
    ("messages", "code", "close_code"),
    [
        ([b"\x00\x00"], "bad_message", CloseCode.POLICY),
        ([DTMF], "bad_message", CloseCode.POLICY),
        ([CONNECTED, CONNECTED], "bad_message", CloseCode.POLICY),
        ([{"event": 5}], "bad_message", CloseCode.POLICY),
        ([{"event": "websocket:connected"}], "bad_message", CloseCode.POLICY),
        ([{**CONNECTED, "roles": "boss"}], "bad_message", CloseCode.POLICY),
        ([{**CONNECTED, "call_id": "x" * 129}], "bad_message", CloseCode.POLICY),
        ([{**CONNECTED, "step_ms": 20}], "bad_config", CloseCode.POLICY),
        ([{**CONNECTED, "content-type": "audio/opus"}], "bad_audio", CloseCode.UNSUPPORTED),
        ([{**CONNECTED, "content-type": "audio/l16"}], "bad_audio", CloseCode.UNSUPPORTED),
        (
            [{**CONNECTED, "content-type": "audio/l16;rate=4000"}],
            "bad_audio",
            CloseCode.UNSUPPORTED,
        ),
        (["hello"], "bad_json", CloseCode.INVALID_DATA),
        (['{"x":' + "[" * 9000], "bad_json", CloseCode.INVALID_DATA),
        (["x" * 20000], "too_big", CloseCode.TOO_BIG),
    ],
)
def test_what_is_refused(messages: list[Any], code: str, close_code: CloseCode) -> None:
    peer = Dialogue(vonage())
    *fine, bad = messages
    for message in fine:
        peer.say(message)
    fault = peer.refusal(bad)
    assert (fault.code, fault.close_code) == (code, close_code)


def jwt(secret: str, **claims: float) -> str:
    parts = [json.dumps(part).encode() for part in ({"alg": "HS256", "typ": "JWT"}, claims)]
    signed = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    return (signed + b"." + base64.urlsafe_b64encode(digest).rstrip(b"=")).decode()


def connect(token: str | None) -> VonageDialect:
    headers = () if token is None else (("authorization", f"Bearer {token}"),)
    handshake = Handshake(path="/vonage", headers=headers)
    return VonageDialect(handshake, signature_secret="secret", clock=lambda: NOW_S)


def test_a_signed_request_is_let_in() -> None:
    assert connect(jwt("secret", iat=NOW_S - 2)).receive_text(json.dumps(CONNECTED))


@pytest.mark.parametrize(
    "token", [None, jwt("other", iat=NOW_S), jwt("secret", iat=NOW_S - 3600), "a.b.c"]
)
def test_an_unsigned_or_old_one_is_not(token: str | None) -> None:
    with pytest.raises(PeerError) as caught:
        connect(token)
    assert (caught.value.code, caught.value.close_code) == ("unauthorized", CloseCode.POLICY)


def test_without_a_secret_nothing_is_checked() -> None:
    handshake = Handshake(path="/vonage", headers=(("authorization", "Bearer nonsense"),))
    assert VonageDialect(handshake).receive_text(json.dumps(CONNECTED))


STEPS = (
    st.text(max_size=40)
    | JSON.map(json.dumps)
    | st.just(json.dumps(CONNECTED))
    | mutations([{**CONNECTED, "call_id": "x", "roles": "agent", "step_ms": 5}, DTMF, NOTIFY])
    | st.binary(max_size=9)
    | st.sampled_from(["[" * 3000, '{"event":' + "[" * 3000, '{"event":"a","x":1' + "0" * 5000])
)


@given(st.lists(STEPS | STEPS | st.sampled_from([READY, TURN]), max_size=8))
def test_only_peer_errors_come_out(steps: list[str | bytes | Event]) -> None:
    check_only_peer_errors(vonage(), steps)
