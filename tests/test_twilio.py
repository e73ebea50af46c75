"""Twilio Media Streams: a documented conversation, the signature, what is refused."""

from __future__ import annotations

import base64
import hashlib
import hmac
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given

from streamer.audio import AudioFormat
from streamer.call import Lost, TrackChunk
from streamer.dialects import CloseCode, Dialect, End, Handshake, PeerError, Start
from streamer.dialects.twilio import TwilioDialect
from tests.phone_calls import (
    HANDSHAKE,
    JsonMessage,
    agent,
    assert_heard_as,
    assert_only_peer_errors,
    changed,
    conversations,
    customer,
    gaps,
    handshake,
    heard,
    payloads,
    refusal,
    talk,
)

SID = "MZXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX"
MULAW = AudioFormat(encoding="mulaw", sample_rate=8000)
CONNECTED: JsonMessage = {"event": "connected", "protocol": "Call", "version": "1.0.0"}
START: JsonMessage = {
    "event": "start",
    "sequenceNumber": "1",
    "start": {
        "accountSid": "ACXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX",
        "streamSid": SID,
        "callSid": "CAXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX",
        "tracks": ["inbound", "outbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
        "customParameters": {"FirstName": "Jane", "LastName": "Doe", "RemoteParty": "Bob"},
    },
    "streamSid": SID,
}
DTMF: JsonMessage = {
    "event": "dtmf",
    "streamSid": SID,
    "sequenceNumber": "5",
    "dtmf": {"track": "inbound_track", "digit": "1"},
}
MARK: JsonMessage = {
    "event": "mark",
    "sequenceNumber": "4",
    "streamSid": SID,
    "mark": {"name": "my label"},
}
STOP: JsonMessage = {
    "event": "stop",
    "sequenceNumber": "5",
    "stop": {"accountSid": "ACXXXXXXXXXX", "callSid": "CAXXXXXXXXXX"},
    "streamSid": SID,
}


def media(track: str, chunk: int, payload: str, *, time_ms: int | None = None) -> JsonMessage:
    return {
        "event": "media",
        "sequenceNumber": str(2 * chunk + (track == "outbound")),
        "media": {
            "track": track,
            "chunk": str(chunk),
            "timestamp": str(20 * chunk - 15 if time_ms is None else time_ms),
            "payload": payload,
        },
        "streamSid": SID,
    }


DOCUMENTED = [
    CONNECTED,
    START,
    media("outbound", 1, "no+JhoaJjpz=", time_ms=5),
    media("inbound", 2, "no+JhoaJjpzS", time_ms=5),
    DTMF,
    MARK,
    STOP,
]


def dialect(**arguments: Any) -> TwilioDialect:
    return TwilioDialect(HANDSHAKE, **arguments)


def test_it_is_a_dialect() -> None:
    named: Dialect = dialect()
    assert named.messages_to_send() == []


def test_a_documented_conversation() -> None:
    start, *rest = talk(dialect(), DOCUMENTED)
    assert start == Start(
        audio=AudioFormat(encoding="mulaw", sample_rate=8000, channels=2),
        roles=("customer", "agent"),
        call_id="CAXXXXXXXXXXXXXXXXXXXXXXXXXXXXXX",
        as_tracks=True,
    )
    assert [type(item) for item in rest] == [TrackChunk, TrackChunk, End]
    assert heard(rest, 0) == base64.b64decode("no+JhoaJjpzS")
    assert heard(rest, 1) == base64.b64decode("no+JhoaJjpz=")


def test_both_tracks_are_heard_as_the_same_audio_in_stereo() -> None:
    channels = [customer(), agent()]
    messages = [CONNECTED, START]
    pairs = zip(*(payloads(samples, MULAW) for samples in channels), strict=True)
    for chunk, (inbound, outbound) in enumerate(pairs, start=1):
        messages += [media("inbound", chunk, inbound), media("outbound", chunk, outbound)]
        messages += [DTMF, MARK] if chunk % 100 == 0 else []
    inputs = talk(dialect(), [*messages, STOP])
    assert_heard_as(inputs, channels)


def test_one_track_is_heard_as_the_same_audio_in_mono() -> None:
    messages = [CONNECTED, changed(START, "start.tracks", ["inbound"])]
    pieces = payloads(customer(), MULAW)
    messages += [media("inbound", chunk, piece) for chunk, piece in enumerate(pieces, start=1)]
    assert_heard_as(talk(dialect(), [*messages, STOP]), [customer()])


def test_what_was_lost_on_the_way_is_a_gap() -> None:
    payload = base64.b64encode(bytes(160)).decode()
    chunks = [chunk for chunk in range(1, 40) if chunk not in (5, 6)]
    inputs = talk(dialect(), [START, *(media("inbound", chunk, payload) for chunk in chunks)])
    assert gaps(inputs) == [Lost(640, "lost on the way", 0)]
    assert len(heard(inputs)) == 37 * 160


@pytest.mark.parametrize(
    ("tracks", "roles"),
    [
        (["inbound"], ("customer",)),
        (["outbound"], ("agent",)),
        (["outbound", "inbound"], ("customer", "agent")),
    ],
)
def test_the_tracks_decide_the_channels_and_roles(
    tracks: list[str], roles: tuple[str, ...]
) -> None:
    (start,) = talk(dialect(), [changed(START, "start.tracks", tracks)])
    assert isinstance(start, Start)
    assert (start.roles, start.audio.channels) == (roles, len(roles))


def test_the_flow_may_say_more_of_the_call() -> None:
    said = {"call_id": "ticket 17", "step_ms": "500", "roles": "agent,customer", "Name": "Jane"}
    (start,) = talk(dialect(), [changed(START, "start.customParameters", said)])
    assert isinstance(start, Start)
    assert (start.call_id, start.step_s) == ("ticket 17", 0.5)
    assert start.roles == ("agent", "customer")


@pytest.mark.parametrize("said", [None, {}, ...])
def test_parameters_need_not_be_there(said: Any) -> None:
    assert len(talk(dialect(), [changed(START, "start.customParameters", said)])) == 1


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("start", ..., '"start" without its fields: expected {"event":"start"'),
        ("start.callSid", ..., "missing required field `callSid`"),
        ("start.callSid", 7, "Expected `str`, got `int`"),
        ("start.callSid", "x" * 129, "129 characters"),
        ("start.tracks", [], 'tracks "": expected inbound, outbound or both'),
        ("start.tracks", ["inbound", "inbound"], 'tracks "inbound, inbound": expected'),
        ("start.tracks", ["sideways"], 'tracks "sideways": expected'),
        ("start.mediaFormat.encoding", "audio/x-l16", "audio of audio/x-l16, 8000 Hz, channels: 1"),
        ("start.mediaFormat.sampleRate", 16000, "expected audio/x-mulaw, 8000 Hz, 1 channel"),
        ("start.mediaFormat.channels", 2, "8000 Hz, channels: 2"),
        ("start.customParameters", {"step_ms": "90"}, "step of 90 ms: expected 100 to 10000 ms"),
        ("start.customParameters", {"step_ms": 500}, "step_ms is no text"),
        ("start.customParameters", {"roles": "agent"}, "for each of inbound, outbound"),
        ("start.customParameters", {"roles": "boss,agent"}, "roles is 'boss,agent': expected"),
        ("start.customParameters", {"call_id": "a\nb"}, "printable"),
    ],
)
def test_a_start_that_is_refused(path: str, value: Any, sentence: str) -> None:
    assert sentence in str(refusal(dialect(), changed(START, path, value)))


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("media", ..., '"media" without its fields'),
        ("media.payload", "no+J*oaJ", "Invalid base64 encoded string - at `$.media.payload`"),
        ("media.payload", "QUI", "Invalid base64 encoded string"),
        ("media.payload", "QUJD-_==", "Invalid base64 encoded string"),
        ("media.chunk", "-1", "Expected `int` >= 0 - at `$.media.chunk`"),
        ("media.chunk", "two", "Expected `int | null`, got `str`"),
        ("media.timestamp", "9" * 17, "Expected `int` <= 9007199254740992"),
        ("media.track", "sideways", "audio of track 'sideways': expected inbound or outbound"),
        ("media.track", ..., "audio of no track: expected inbound or outbound"),
        ("streamSid", "MZ2", "a message of stream 'MZ2': expected 'MZXX"),
    ],
)
def test_audio_that_is_refused(path: str, value: Any, sentence: str) -> None:
    bad = changed(media("inbound", 1, "QUI="), path, value)
    assert sentence in str(refusal(dialect(), START, bad))


def test_the_order_of_a_conversation() -> None:
    assert '"media" before "start"' in str(refusal(dialect(), media("inbound", 1, "QQ==")))
    assert '"stop" before "start"' in str(refusal(dialect(), CONNECTED, STOP))
    assert 'a second "start"' in str(refusal(dialect(), START, START))


def test_what_comes_after_stop_is_ignored() -> None:
    after = dialect()
    talk(after, [START, STOP])
    assert talk(after, [media("inbound", 1, "QQ=="), MARK, STOP, START]) == []


def test_what_is_no_message_is_refused() -> None:
    fault = refusal(dialect(), "nope")
    assert (fault.code, fault.close_code) == ("bad_json", CloseCode.INVALID_DATA)
    fault = refusal(dialect(), "[" * 300_000)
    assert (fault.code, fault.close_code) == ("too_big", CloseCode.TOO_BIG)
    fault = refusal(dialect(), START, b"\x00")
    assert (fault.code, fault.close_code) == ("unsupported", CloseCode.UNSUPPORTED)
    assert "missing required field `event`" in str(refusal(dialect(), "{}"))


TOKEN = "0123456789abcdef"


def signed(url: str, *, path: str = "/twilio", token: str = TOKEN, **headers: str) -> Handshake:
    """Return the handshake of a request that Twilio signed for a URL."""
    digest = hmac.new(token.encode(), url.encode(), hashlib.sha1).digest()
    sent = {"host": "ser.example.com", "x-twilio-signature": base64.b64encode(digest).decode()}
    return Handshake(path=path, headers=tuple({**sent, **headers}.items()))


def test_a_signature_computed_elsewhere() -> None:
    # printf %s wss://ser.example.com/twilio | openssl dgst -sha1 -hmac 0123456789abcdef -binary |
    # base64
    headers = (("host", "ser.example.com"), ("x-twilio-signature", "HY+9BjFMae1kPntioWnKRtIVreo="))
    TwilioDialect(Handshake(path="/twilio", headers=headers), auth_token=TOKEN)


@pytest.mark.parametrize(
    ("url", "headers"),
    [
        ("wss://ser.example.com/twilio", {}),
        ("wss://ser.example.com/twilio/", {}),
        ("wss://ser.example.com:443/twilio", {}),
        ("wss://ser.example.com/twilio", {"x-forwarded-proto": "https"}),
        ("wss://ser.example.com/twilio", {"host": "ser.example.com:443"}),
        ("wss://ser.example.com:8443/twilio", {"host": "ser.example.com:8443"}),
    ],
)
def test_a_right_signature(url: str, headers: dict[str, str]) -> None:
    TwilioDialect(signed(url, **headers), auth_token=TOKEN)


@pytest.mark.parametrize("query", ["a=x%20y", "a=x+y", "a=%7E&b", "a=b?c"])
def test_the_signature_is_of_the_url_as_it_was_sent(query: str) -> None:
    asked = replace(
        signed(f"wss://ser.example.com/twilio/?{query}"),
        query=tuple(parse_qsl(query, keep_blank_values=True)),
        target=f"/twilio?{query}",
    )
    TwilioDialect(asked, auth_token=TOKEN)
    with pytest.raises(PeerError, match="a wrong X-Twilio-Signature"):
        TwilioDialect(replace(asked, target=f"{asked.target}&c=1"), auth_token=TOKEN)


def test_the_signature_covers_the_query() -> None:
    asked = signed("wss://ser.example.com/twilio?a=1&b=x+y")
    query = (("a", "1"), ("b", "x y"))
    TwilioDialect(Handshake(path="/twilio", query=query, headers=asked.headers), auth_token=TOKEN)
    with pytest.raises(PeerError):
        TwilioDialect(asked, auth_token=TOKEN)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (HANDSHAKE, "no X-Twilio-Signature: expected the one of this URL"),
        (signed("wss://ser.example.com/twilio", token="other"), "a wrong X-Twilio-Signature"),
        (signed("https://ser.example.com/twilio"), "a wrong X-Twilio-Signature"),
        (signed("wss://other.example.com/twilio"), "a wrong X-Twilio-Signature"),
        (signed("wss://ser.example.com/telnyx"), "a wrong X-Twilio-Signature"),
        (signed("", **{"x-twilio-signature": "é\udc80"}), "a wrong X-Twilio-Signature"),
        (Handshake(path="/twilio", headers=(("x-twilio-signature", "x"),)), "a wrong"),
    ],
)
def test_a_wrong_signature_is_refused(request_: Handshake, sentence: str) -> None:
    with pytest.raises(PeerError, match=sentence) as caught:
        TwilioDialect(request_, auth_token=TOKEN)
    assert (caught.value.code, caught.value.close_code) == ("unauthorized", CloseCode.POLICY)
    assert int(caught.value.close_code) == 1008


def test_without_a_token_nothing_is_checked() -> None:
    TwilioDialect(signed("wss://elsewhere.example.com"))


@given(conversations(DOCUMENTED))
def test_only_peer_errors_come_out(messages: list[str | bytes]) -> None:
    assert_only_peer_errors(lambda: TwilioDialect(handshake()), messages)
