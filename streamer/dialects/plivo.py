"""Plivo audio streaming: mu-law at 8 kHz or L16 at 8 or 16 kHz, one or both tracks.

Messages as in https://www.plivo.com/docs/voice-agents/audio-streaming/concepts/audio-streaming-reference.
A timestamp is the time of day, so it is believed less than where a platform counts the audio. The
reference has no ``stop``, Plivo's guide names one: the stream ends with it or with the connection.
"""

from __future__ import annotations

from typing import Any

from msgspec import Struct, field

from streamer.audio import Encoding
from streamer.dialects.media_streams import (
    Count,
    MediaFields,
    MediaStream,
    StreamStart,
    check_tracks,
    refuse_format,
)
from streamer.dialects.tracks import Pacing

_RATES: dict[str, tuple[Encoding, tuple[int, ...]]] = {
    "audio/x-mulaw": ("mulaw", (8000,)),
    "audio/x-l16": ("pcm_s16le", (8000, 16000)),
}
"""By Plivo's name: ours, and the sample rates there are."""


class MediaFormat(Struct, frozen=True, kw_only=True, rename="camel"):
    """What the payloads are."""

    encoding: str
    sample_rate: Count


class StartFields(Struct, frozen=True, kw_only=True, rename="camel"):
    """What the stream is."""

    call_id: str
    stream_id: str
    tracks: tuple[str, ...]
    media_format: MediaFormat


class Message(Struct, frozen=True, kw_only=True):
    """Any message; fields that are not named here are Plivo's to add."""

    event: str
    stream_id: str = field(name="streamId", default="")
    start: StartFields | None = None
    media: MediaFields | None = None


class PlivoDialect(MediaStream):
    """Plivo audio streaming, for the time of one connection; see `MediaStream`."""

    message_type = Message
    expected = (
        'expected {"event":"start","start":{"callId":…,"streamId":…,"tracks":[…],'
        '"mediaFormat":{…}}} or '
        '{"event":"media","media":{"track":…,"chunk":…,"timestamp":…,"payload":…}}'
    )
    pacing = Pacing(jitter_ms=500)

    def read_start(self, message: Any) -> StreamStart:
        """Return what a ``start`` message says.

        Raises:
            PeerError: a format or tracks that Plivo does not have.
        """
        start: StartFields = message.start
        # The XML's contentType is "audio/x-l16;rate=16000"; the message has the rate by itself.
        name = start.media_format.encoding.partition(";")[0].strip().lower()
        rate = start.media_format.sample_rate
        encoding, rates = _RATES.get(name, (None, ()))
        if encoding is None or rate not in rates:
            refuse_format(
                f"{name[:40]}, {rate} Hz",
                "audio/x-mulaw at 8000 Hz, or audio/x-l16 at 8000 or 16000 Hz",
            )
        return StreamStart(
            stream_id=start.stream_id,
            call_id=start.call_id,
            encoding=encoding,
            sample_rate=rate,
            tracks=check_tracks(start.tracks),
        )
