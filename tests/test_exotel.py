"""Exotel AgentStream: a documented conversation, its many names for 16 bits, what is refused."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given

from streamer.audio import AudioFormat, Encoding
from streamer.call import TrackChunk
from streamer.dialects import Dialect, End, Start
from streamer.dialects.exotel import ExotelDialect
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

SID = "MZxxxxxxxxxxxxxxxxxxxxxxxx"
CONNECTED: JsonMessage = {"event": "connected"}
START: JsonMessage = {
    "event": "start",
    "sequence_number": "1",
    "stream_sid": SID,
    "start": {
        "stream_sid": SID,
        "call_sid": "CAxxxxxxxxxxxxxxxxxxxxxxxx",
        "account_sid": "ACxxxxxxxxxxxxxxxxxxxxxxxx",
        "from": "+919876543210",
        "to": "+918047491899",
        "custom_parameters": {"key1": "value1"},
        "media_format": {"encoding": "audio/x-raw", "sample_rate": "8000", "bit_rate": "16"},
    },
}
DTMF: JsonMessage = {
    "event": "dtmf",
    "sequence_number": "7",
    "stream_sid": SID,
    "dtmf": {"digit": "5", "duration": "100"},
}
MARK: JsonMessage = {
    "event": "mark",
    "sequence_number": "15",
    "stream_sid": SID,
    "mark": {"name": "response-1"},
}
STOP: JsonMessage = {
    "event": "stop",
    "sequence_number": 20,
    "stream_sid": SID,
    "stop": {"call_sid": "CAxx", "account_sid": "ACxx", "reason": "callended"},
}


def media(chunk: int, payload: str, track: str = "") -> JsonMessage:
    fields = {"chunk": str(chunk), "timestamp": str(100 * chunk), "payload": payload}
    return {
        "event": "media",
        "sequence_number": str(chunk + 1),
        "stream_sid": SID,
        "media": {**fields, **({"track": track} if track else {})},
    }


DOCUMENTED = [CONNECTED, START, media(1, "AAABAAIA"), media(2, "AAABAAIA"), DTMF, MARK, STOP]


def started(encoding: str, rate: object) -> JsonMessage:
    return changed(START, "start.media_format", {"encoding": encoding, "sample_rate": rate})


def test_a_documented_conversation() -> None:
    dialect: Dialect = ExotelDialect(HANDSHAKE)
    start, *rest = talk(dialect, DOCUMENTED)
    assert start == Start(
        audio=AudioFormat(encoding="pcm_s16le", sample_rate=8000),
        roles=("customer",),
        call_id="CAxxxxxxxxxxxxxxxxxxxxxxxx",
        as_tracks=True,
    )
    assert [type(item) for item in rest] == [TrackChunk, TrackChunk, End]


@pytest.mark.parametrize(
    ("name", "encoding", "rate"),
    [
        ("audio/x-raw", "pcm_s16le", 8000),
        ("raw/slin", "pcm_s16le", 16000),
        ("base64", "pcm_s16le", 24000),
        ("audio/L16;rate=16000", "pcm_s16le", 16000),
        ("audio/x-mulaw;rate=8000", "mulaw", 8000),
    ],
)
def test_one_track_is_heard_as_the_same_audio(name: str, encoding: Encoding, rate: int) -> None:
    code = AudioFormat(encoding=encoding, sample_rate=rate)
    messages = [CONNECTED, started(name, str(rate))]
    for chunk, payload in enumerate(payloads(customer(rate), code, piece_ms=100), start=1):
        messages += [media(chunk, payload)]
        messages += [DTMF, MARK] if chunk % 20 == 0 else []
    dialect = ExotelDialect(handshake(**{"sample-rate": str(rate)}))
    assert_heard_as(talk(dialect, [*messages, STOP]), [customer(rate)])


def test_both_tracks_are_heard_as_the_same_audio_in_stereo() -> None:
    channels = [customer(), agent()]
    code = AudioFormat(encoding="pcm_s16le", sample_rate=8000)
    messages = [CONNECTED, START]
    pairs = zip(*(payloads(samples, code, piece_ms=100) for samples in channels), strict=True)
    for chunk, (inbound, outbound) in enumerate(pairs, start=1):
        messages += [media(chunk, outbound, "outbound"), media(chunk, inbound, "inbound")]
    dialect = ExotelDialect(handshake(tracks="both"))
    assert_heard_as(talk(dialect, [*messages, STOP]), channels)


@pytest.mark.parametrize("media_format", [..., {}, {"encoding": ""}, {"sample_rate": "8000"}])
def test_without_a_format_it_is_sixteen_bits_at_8_khz(media_format: Any) -> None:
    (start,) = talk(ExotelDialect(HANDSHAKE), [changed(START, "start.media_format", media_format)])
    assert isinstance(start, Start)
    assert start.audio == AudioFormat(encoding="pcm_s16le", sample_rate=8000)


def test_the_url_may_say_the_rate() -> None:
    dialect = ExotelDialect(handshake(**{"sample-rate": "16000"}))
    (start,) = talk(dialect, [changed(START, "start.media_format", ...)])
    assert isinstance(start, Start)
    assert start.audio.sample_rate == 16000


def test_the_url_and_the_message_may_only_say_one_rate() -> None:
    fault = refusal(ExotelDialect(handshake(**{"sample-rate": "16000"})), START)
    assert str(fault).startswith("sample-rate='16000' in the URL but 8000 Hz in \"start\"")
    assert fault.code == "bad_audio"
    without = changed(START, "start.media_format", ...)
    fault = refusal(ExotelDialect(handshake(**{"sample-rate": "fast"})), without)
    assert str(fault).startswith("sample-rate='fast' in the URL but 8000 Hz")


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("start.call_sid", ..., "missing required field `call_sid`"),
        ("start.media_format.encoding", "opus", "audio of opus, 8000 Hz: expected audio/x-raw"),
        ("start.media_format.sample_rate", "11025", "audio of audio/x-raw, 11025 Hz"),
        ("start.media_format.sample_rate", "0x10", "Expected `int | null`, got `str`"),
        ("start.custom_parameters", {"tracks": "stereo"}, "tracks is 'stereo': expected one of"),
    ],
)
def test_a_start_that_is_refused(path: str, value: Any, sentence: str) -> None:
    assert sentence in str(refusal(ExotelDialect(HANDSHAKE), changed(START, path, value)))


def test_mulaw_is_at_8_khz_alone() -> None:
    fault = refusal(ExotelDialect(HANDSHAKE), started("audio/x-mulaw", 16000))
    assert "audio of audio/x-mulaw, 16000 Hz" in str(fault)


def test_a_largest_piece_is_taken() -> None:
    talk(ExotelDialect(HANDSHAKE), [START, media(1, base64.b64encode(bytes(100_000)).decode())])


@given(conversations(DOCUMENTED))
def test_only_peer_errors_come_out(messages: list[str | bytes]) -> None:
    assert_only_peer_errors(lambda: ExotelDialect(HANDSHAKE), messages)
