"""Plivo audio streaming: a documented conversation, times of day, and what is refused."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given

from streamer.audio import AudioFormat, Encoding
from streamer.call import TrackChunk
from streamer.dialects import Dialect, End, Start
from streamer.dialects.plivo import PlivoDialect
from tests.phone_calls import (
    HANDSHAKE,
    JsonMessage,
    agent,
    assert_heard_as,
    assert_only_peer_errors,
    changed,
    conversations,
    customer,
    handshake,
    payloads,
    refusal,
    talk,
)

STREAM_ID = "87654321-4321-4321-4321-cba987654321"
HEADERS = "userId=12345;sessionId=abc-xyz"
START: JsonMessage = {
    "event": "start",
    "sequenceNumber": 1,
    "start": {
        "callId": "12345678-1234-1234-1234-123456789abc",
        "streamId": STREAM_ID,
        "accountId": "MAXXXXXXXXXXXXXXXXXX",
        "tracks": ["inbound"],
        "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000},
    },
    "extra_headers": HEADERS,
}
DTMF: JsonMessage = {
    "event": "dtmf",
    "sequenceNumber": 50,
    "streamId": STREAM_ID,
    "dtmf": {"track": "inbound", "digit": "5", "timestamp": "1705312205000"},
    "extra_headers": HEADERS,
}
PLAYED: JsonMessage = {
    "event": "playedStream",
    "sequenceNumber": 75,
    "streamId": STREAM_ID,
    "name": "greeting-complete",
}
CLEARED: JsonMessage = {"event": "clearedAudio", "sequenceNumber": 76, "streamId": STREAM_ID}
STOP: JsonMessage = {"event": "stop", "sequenceNumber": 77, "streamId": STREAM_ID}


def media(track: str, chunk: int, payload: str, *, late_ms: int = 0) -> JsonMessage:
    return {
        "event": "media",
        "sequenceNumber": chunk + 1,
        "streamId": STREAM_ID,
        "media": {
            "track": track,
            "timestamp": str(1_705_312_200_000 + 20 * chunk + late_ms),
            "chunk": chunk,
            "payload": payload,
        },
        "extra_headers": HEADERS,
    }


DOCUMENTED = [
    START,
    media("inbound", 41, "//uQxAAAAAAN"),
    media("inbound", 42, "//uQxAAAAAAN"),
    DTMF,
    PLAYED,
    CLEARED,
    STOP,
]


def started(encoding: str, rate: int, *tracks: str) -> JsonMessage:
    start = changed(START, "start.mediaFormat", {"encoding": encoding, "sampleRate": rate})
    return changed(start, "start.tracks", [*tracks])


def test_a_documented_conversation() -> None:
    dialect: Dialect = PlivoDialect(HANDSHAKE)
    start, *rest = talk(dialect, DOCUMENTED)
    assert start == Start(
        audio=AudioFormat(encoding="mulaw", sample_rate=8000),
        roles=("customer",),
        call_id="12345678-1234-1234-1234-123456789abc",
        as_tracks=True,
    )
    assert [type(item) for item in rest] == [TrackChunk, TrackChunk, End]


@pytest.mark.parametrize(
    ("name", "encoding", "rate"),
    [
        ("audio/x-mulaw", "mulaw", 8000),
        ("audio/x-l16", "pcm_s16le", 8000),
        ("audio/x-l16", "pcm_s16le", 16000),
        ("audio/x-l16;rate=16000", "pcm_s16le", 16000),
    ],
)
def test_one_track_is_heard_as_the_same_audio(name: str, encoding: Encoding, rate: int) -> None:
    code = AudioFormat(encoding=encoding, sample_rate=rate)
    messages = [started(name, rate, "inbound")]
    for chunk, payload in enumerate(payloads(customer(rate), code), start=1):
        messages += [media("inbound", chunk, payload)]
        messages += [DTMF, PLAYED, CLEARED] if chunk % 100 == 0 else []
    # No "stop" need come: the connection closes, which ends the call.
    assert_heard_as(talk(PlivoDialect(HANDSHAKE), messages), [customer(rate)])


def test_times_of_day_that_tremble_are_heard_as_the_same_audio_in_stereo() -> None:
    chance = random.Random(1)
    channels = [customer(), agent()]
    code = AudioFormat(encoding="mulaw", sample_rate=8000)
    messages = [started("audio/x-mulaw", 8000, "inbound", "outbound")]
    pairs = zip(*(payloads(samples, code) for samples in channels), strict=True)
    for chunk, (inbound, outbound) in enumerate(pairs, start=1):
        messages += [
            media("inbound", chunk, inbound, late_ms=chance.randrange(200)),
            media("outbound", chunk, outbound, late_ms=chance.randrange(200)),
        ]
    assert_heard_as(talk(PlivoDialect(HANDSHAKE), [*messages, STOP]), channels)


def test_the_url_may_say_more_of_the_call() -> None:
    asked = handshake(call_id="ticket 17", step_ms="1000", roles="agent")
    (start,) = talk(PlivoDialect(asked), [START])
    assert isinstance(start, Start)
    assert (start.call_id, start.step_s, start.roles) == ("ticket 17", 1.0, ("agent",))


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("start", ..., '"start" without its fields'),
        ("start.callId", ..., "missing required field `callId`"),
        ("start.streamId", None, "Expected `str`, got `null`"),
        ("start.tracks", ["both"], 'tracks "both": expected inbound, outbound or both'),
        ("start.mediaFormat.sampleRate", 16000, "audio of audio/x-mulaw, 16000 Hz: expected"),
        ("start.mediaFormat.encoding", "audio/opus", "audio of audio/opus, 8000 Hz"),
        ("start.mediaFormat.sampleRate", "fast", "Expected `int`, got `str`"),
    ],
)
def test_a_start_that_is_refused(path: str, value: Any, sentence: str) -> None:
    assert sentence in str(refusal(PlivoDialect(HANDSHAKE), changed(START, path, value)))


def test_audio_of_another_stream_is_refused() -> None:
    other = changed(media("inbound", 1, "QQ=="), "streamId", "another")
    assert "stream 'another': expected '8765" in str(refusal(PlivoDialect(HANDSHAKE), START, other))


@given(conversations(DOCUMENTED))
def test_only_peer_errors_come_out(messages: list[str | bytes]) -> None:
    assert_only_peer_errors(lambda: PlivoDialect(HANDSHAKE), messages)
