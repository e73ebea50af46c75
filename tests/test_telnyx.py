"""Telnyx media streaming: a documented conversation, out of order, and what is refused."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from streamer.audio import AudioFormat
from streamer.call import Lost, TrackChunk
from streamer.dialects import CloseCode, Dialect, End, Handshake, PeerError, Start
from streamer.dialects.telnyx import TelnyxDialect
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

STREAM_ID = "32DE0DEA-53CB-4B21-89A4-9E1819C043BC"
CALL_ID = "v2:T02llQxIyaRkhfRKxgAP8nY511EhFLizdvdUKJiSw8d6A9BborherQ"
CONNECTED: JsonMessage = {"event": "connected", "version": "1.0.0"}
START: JsonMessage = {
    "event": "start",
    "sequence_number": "1",
    "start": {
        "user_id": "3E6F995F-85F7-4705-9741-53B116D28237",
        "call_control_id": CALL_ID,
        "call_session_id": "ff55a038-6f5d-11ef-9692-02420aeffb1f",
        "from": "+13122010094",
        "to": "+13122123456",
        "tags": ["TAG1", "TAG2"],
        "client_state": "aGF2ZSBhIG5pY2UgZGF5ID1d",
        "custom_parameters": {"customer_id": "customer_123"},
        "media_format": {"encoding": "PCMU", "sample_rate": 8000, "channels": 1},
    },
    "stream_id": STREAM_ID,
}
DTMF: JsonMessage = {
    "event": "dtmf",
    "stream_id": STREAM_ID,
    "occurred_at": "2024-09-10T13:31:02.123456Z",
    "sequence_number": "5",
    "dtmf": {"digit": "1"},
}
MARK: JsonMessage = {
    "event": "mark",
    "sequence_number": "4",
    "stream_id": STREAM_ID,
    "mark": {"name": "my label"},
}
ERROR: JsonMessage = {
    "event": "error",
    "stream_id": STREAM_ID,
    "payload": {"code": 100003, "title": "malformed_frame", "detail": "Malformed frame"},
}
STOP: JsonMessage = {
    "event": "stop",
    "sequence_number": "5",
    "stop": {"user_id": "3E6F995F-85F7-4705-9741-53B116D28237", "call_control_id": CALL_ID},
    "stream_id": STREAM_ID,
}


def media(track: str, chunk: int, payload: str) -> JsonMessage:
    return {
        "event": "media",
        "sequence_number": str(chunk + 1),
        "media": {
            "track": track,
            "chunk": str(chunk),
            "timestamp": str(20 * chunk - 15),
            "payload": payload,
        },
        "stream_id": STREAM_ID,
    }


DOCUMENTED = [
    CONNECTED,
    START,
    media("inbound", 1, "no+JhoaJjpzS"),
    media("inbound", 2, "no+JhoaJjpzS"),
    DTMF,
    MARK,
    ERROR,
    STOP,
]


def started(encoding: str, rate: int) -> JsonMessage:
    said = {"encoding": encoding, "sample_rate": rate, "channels": 1}
    return changed(START, "start.media_format", said)


def test_a_documented_conversation() -> None:
    dialect: Dialect = TelnyxDialect(HANDSHAKE)
    start, *rest = talk(dialect, DOCUMENTED)
    assert start == Start(
        audio=AudioFormat(encoding="mulaw", sample_rate=8000),
        roles=("customer",),
        call_id=CALL_ID,
        as_tracks=True,
    )
    assert [type(item) for item in rest] == [TrackChunk, TrackChunk, End]


@pytest.mark.parametrize("encoding", ["PCMU", "PCMA"])
def test_both_tracks_out_of_order_are_heard_as_the_same_audio_in_stereo(encoding: str) -> None:
    channels = [customer(), agent()]
    code = AudioFormat(encoding="alaw" if encoding == "PCMA" else "mulaw", sample_rate=8000)
    sent: list[tuple[float, JsonMessage]] = []
    chance = random.Random(1)
    for track, samples in zip(("inbound", "outbound"), channels, strict=True):
        for chunk, payload in enumerate(payloads(samples, code), start=1):
            # The first comes first: it says when the call begins. Up to 7 places late, the rest.
            delay = chance.uniform(0, 7) if chunk > 1 else 0
            sent.append((chunk + delay, media(track, chunk, payload)))
    late = [message for _, message in sorted(sent, key=lambda item: item[0])]
    dialect = TelnyxDialect(handshake(tracks="both"))
    inputs = talk(dialect, [CONNECTED, started(encoding, 8000), *late, DTMF, STOP])
    assert_heard_as(inputs, channels)


@pytest.mark.parametrize("rate", [8000, 16000, 24000])
@pytest.mark.parametrize("byte_order", ["big", "little"])
def test_sixteen_bits_are_heard_as_the_same_audio(rate: int, byte_order: str) -> None:
    messages = [CONNECTED, started("L16", rate)]
    code = AudioFormat(encoding="pcm_s16le", sample_rate=rate)
    for chunk, payload in enumerate(payloads(customer(rate), code), start=1):
        if byte_order == "big":
            samples = np.frombuffer(base64.b64decode(payload), "<i2")
            payload = base64.b64encode(samples.astype(">i2").tobytes()).decode()
        messages.append(media("inbound", chunk, payload))
    asked = HANDSHAKE if byte_order == "big" else handshake(l16="little")
    assert_heard_as(talk(TelnyxDialect(asked), [*messages, STOP]), [customer(rate)])


def test_what_comes_after_its_place_was_given_up_is_dropped() -> None:
    late = [chunk for chunk in range(1, 40) if chunk != 5]
    late.insert(30, 5)
    payload = base64.b64encode(bytes(160)).decode()
    inputs = talk(TelnyxDialect(HANDSHAKE), [START, *(media("inbound", n, payload) for n in late)])
    assert gaps(inputs) == [Lost(320, "lost on the way", 0)]
    assert len(heard(inputs)) == 38 * 160


@pytest.mark.parametrize(
    ("tracks", "roles"),
    [
        ("inbound", ("customer",)),
        ("outbound", ("agent",)),
        ("both", ("customer", "agent")),
    ],
)
def test_the_operator_says_which_tracks_come(tracks: str, roles: tuple[str, ...]) -> None:
    by_url = talk(TelnyxDialect(handshake(tracks=tracks)), [START])
    said = changed(START, "start.custom_parameters", {"tracks": tracks})
    assert talk(TelnyxDialect(HANDSHAKE), [said]) == by_url
    assert isinstance(by_url[0], Start)
    assert (by_url[0].roles, by_url[0].audio.channels) == (roles, len(roles))


def test_a_track_that_the_operator_did_not_say_is_refused_in_words() -> None:
    fault = refusal(TelnyxDialect(HANDSHAKE), START, media("outbound", 1, "QQ=="))
    assert "audio of track 'outbound': expected inbound, as" in str(fault)
    assert 'the parameter "tracks" say' in str(fault)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("start.call_control_id", ..., "missing required field `call_control_id`"),
        ("start.media_format", ..., "missing required field `media_format`"),
        ("start.media_format.encoding", "OPUS", "audio of OPUS, 8000 Hz, channels: 1: expected PC"),
        ("start.media_format.encoding", "G722", "audio of G722"),
        ("start.media_format.sample_rate", 16000, "audio of PCMU, 16000 Hz"),
        ("start.media_format.channels", 2, "channels: 2: expected"),
        ("start.custom_parameters", {"tracks": "all"}, "tracks is 'all': expected one of inbound"),
        ("start.custom_parameters", {"l16": "middle"}, "l16 is 'middle': expected big or little"),
        ("start.custom_parameters", {"l16": ["big"]}, "expected big or little"),
        ("start.custom_parameters", [], "Expected `object | null`, got `array`"),
    ],
)
def test_a_start_that_is_refused(path: str, value: Any, sentence: str) -> None:
    assert sentence in str(refusal(TelnyxDialect(HANDSHAKE), changed(START, path, value)))


def test_the_url_and_the_parameters_may_only_say_the_same() -> None:
    said = changed(START, "start.custom_parameters", {"tracks": "inbound"})
    fault = refusal(TelnyxDialect(handshake(tracks="both")), said)
    assert str(fault) == "tracks is 'both' and 'inbound': expected one"


def test_half_a_sample_is_refused() -> None:
    fault = refusal(TelnyxDialect(HANDSHAKE), started("L16", 16000), media("inbound", 1, "QUJD"))
    assert "audio of 3 bytes: expected samples of 2 bytes" in str(fault)


def test_a_token_is_checked() -> None:
    header = "x-telnyx-streaming-auth-token"
    TelnyxDialect(Handshake(path="/telnyx", headers=((header, "secret"),)), auth_token="secret")
    for headers in ((), ((header, "other"),), ((header, "é\udc80"),)):
        with pytest.raises(PeerError, match=header) as caught:
            TelnyxDialect(Handshake(path="/telnyx", headers=headers), auth_token="secret")
        fault = caught.value
        assert (fault.code, fault.close_code) == ("unauthorized", CloseCode.POLICY)


@given(conversations(DOCUMENTED))
def test_only_peer_errors_come_out(messages: list[str | bytes]) -> None:
    assert_only_peer_errors(lambda: TelnyxDialect(handshake(tracks="inbound")), messages)
