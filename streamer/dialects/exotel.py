"""Exotel AgentStream: L16 (little-endian) at 8, 16 or 24 kHz, or mu-law; mostly one track.

Messages as in https://developer.exotel.com/docs/agentstream/websocket-protocol. Exotel's pages
name the same 16-bit audio in several ways, so all of them are taken.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from streamer.audio import Encoding
from streamer.dialects import PeerError
from streamer.dialects.media_streams import (
    Count,
    MediaFields,
    MediaStream,
    StreamStart,
    refuse_format,
)

_PCM = ("", "audio/x-raw", "audio/l16", "audio/x-l16", "raw/slin", "slin", "raw", "base64", "pcm16")
_MULAW = ("audio/x-mulaw", "mulaw")
_PCM_RATES = (8000, 16000, 24000)
_MULAW_RATES = (8000,)


class MediaFormat(Struct, frozen=True, kw_only=True):
    """What the payloads are; the rate may come as the URL's ``sample-rate`` alone."""

    encoding: str = ""
    sample_rate: Count | None = None


class StartFields(Struct, frozen=True, kw_only=True):
    """What the stream is; it does not say which tracks will come."""

    call_sid: str
    stream_sid: str = ""
    media_format: MediaFormat = MediaFormat()
    custom_parameters: dict[str, Any] | None = None


class Message(Struct, frozen=True, kw_only=True):
    """Any message; fields that are not named here are Exotel's to add."""

    event: str
    stream_id: str = field(name="stream_sid", default="")
    start: StartFields | None = None
    media: MediaFields | None = None


class ExotelDialect(MediaStream):
    """Exotel AgentStream, for the time of one connection; see `MediaStream`."""

    message_type = Message
    expected = (
        'expected {"event":"start","stream_sid":…,"start":{"call_sid":…,"media_format":{…}}}, '
        '{"event":"media","media":{"chunk":…,"timestamp":…,"payload":…}} or {"event":"stop"}'
    )

    def read_start(self, message: Any) -> StreamStart:
        """Return what a ``start`` message says.

        Raises:
            PeerError: a format that Exotel does not have, or two different sample rates.
        """
        start: StartFields = message.start
        name = start.media_format.encoding.partition(";")[0].strip().lower()
        asked = dict(self.handshake.query).get("sample-rate")
        rate = start.media_format.sample_rate or _number_of(asked) or 8000
        if asked is not None and asked != str(rate):
            raise PeerError(
                f'sample-rate={asked[:40]!r} in the URL but {rate} Hz in "start": expected one',
                code="bad_audio",
            )
        is_mulaw = name in _MULAW
        if rate not in (_MULAW_RATES if is_mulaw else _PCM_RATES) or name not in _PCM + _MULAW:
            refuse_format(
                f"{name[:40] or 'no encoding'}, {rate} Hz",
                "audio/x-raw (16-bit) at 8000, 16000 or 24000 Hz, or audio/x-mulaw at 8000 Hz",
            )
        encoding: Encoding = "mulaw" if is_mulaw else "pcm_s16le"
        return StreamStart(
            stream_id=message.stream_id or start.stream_sid,
            call_id=start.call_sid,
            encoding=encoding,
            sample_rate=rate,
            parameters=start.custom_parameters or {},
        )


def _number_of(text: str | None) -> int:
    is_number = text is not None and text.isascii() and text.isdigit() and len(text) <= 6
    return int(text) if text is not None and is_number else 0
