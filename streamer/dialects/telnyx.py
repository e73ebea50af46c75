"""Telnyx media streaming: PCMU, PCMA or L16, one or both tracks, in no guaranteed order.

Messages as in https://developers.telnyx.com/docs/voice/programmable-voice/media-streaming. A
payload is that of an RTP packet, so L16 is taken in network byte order (RFC 3551, section 4.5.11);
Telnyx's pages do not say it, and the parameter ``l16=little`` is for where it is otherwise.
"""

from __future__ import annotations

import hmac
from typing import Any

import numpy as np
from msgspec import Struct

from streamer.audio import Encoding
from streamer.dialects import Handshake, PeerError
from streamer.dialects.media_streams import (
    Count,
    MediaFields,
    MediaStream,
    StreamStart,
    refuse_format,
)

_RATES: dict[str, tuple[Encoding, tuple[int, ...]]] = {
    "PCMU": ("mulaw", (8000,)),
    "PCMA": ("alaw", (8000,)),
    "L16": ("pcm_s16le", (8000, 16000, 24000)),
}
"""By Telnyx's name: ours, and the sample rates there are."""
_BYTE_ORDERS = ("big", "little")


class MediaFormat(Struct, frozen=True, kw_only=True):
    """What the payloads are."""

    encoding: str
    sample_rate: Count
    channels: Count = 1


class StartFields(Struct, frozen=True, kw_only=True):
    """What the stream is; it does not say which tracks will come."""

    call_control_id: str
    media_format: MediaFormat
    custom_parameters: dict[str, Any] | None = None


class Message(Struct, frozen=True, kw_only=True):
    """Any message; fields that are not named here are Telnyx's to add."""

    event: str
    stream_id: str = ""
    start: StartFields | None = None
    media: MediaFields | None = None


class TelnyxDialect(MediaStream):
    """Telnyx media streaming, for the time of one connection; see `MediaStream`.

    Args:
        handshake: Telnyx's HTTP request.
        min_step_ms: the shortest step that an operator may ask for.
        auth_token: the ``stream_auth_token`` of the command that starts the stream. Without it
            nothing is checked.

    Raises:
        PeerError: the token is missing or wrong.
    """

    message_type = Message
    expected = (
        'expected {"event":"start","stream_id":…,"start":{"call_control_id":…,'
        '"media_format":{…}}}, '
        '{"event":"media","media":{"track":…,"chunk":…,"timestamp":…,"payload":…}} or '
        '{"event":"stop"}'
    )

    def __init__(
        self, handshake: Handshake, *, min_step_ms: int = 100, auth_token: str = ""
    ) -> None:
        super().__init__(handshake, min_step_ms=min_step_ms)
        self._must_swap = False
        found = (handshake.header("x-telnyx-streaming-auth-token") or "").encode(errors="replace")
        if auth_token and not hmac.compare_digest(auth_token.encode(), found):
            raise PeerError(
                f"{'a wrong' if found else 'no'} x-telnyx-streaming-auth-token: expected the "
                "stream_auth_token that this server was told",
                code="unauthorized",
            )

    def read_start(self, message: Any) -> StreamStart:
        """Return what a ``start`` message says.

        Raises:
            PeerError: a format that is not served.
        """
        start: StartFields = message.start
        found = start.media_format
        encoding, rates = _RATES.get(found.encoding.upper(), (None, ()))
        if encoding is None or found.sample_rate not in rates or found.channels != 1:
            refuse_format(
                f"{found.encoding[:40]}, {found.sample_rate} Hz, channels: {found.channels}",
                "PCMU or PCMA at 8000 Hz, or L16 at 8000, 16000 or 24000 Hz, 1 channel",
            )
        parameters = start.custom_parameters or {}
        byte_order = dict(self.handshake.query).get("l16", parameters.get("l16", "big"))
        if byte_order not in _BYTE_ORDERS:
            raise PeerError(f"l16 is {str(byte_order)[:40]!r}: expected big or little")
        self._must_swap = encoding == "pcm_s16le" and byte_order == "big"
        return StreamStart(
            stream_id=message.stream_id,
            call_id=start.call_control_id,
            encoding=encoding,
            sample_rate=found.sample_rate,
            parameters=parameters,
        )

    def read_audio(self, payload: bytes) -> bytes:
        """Return a piece's audio, little-endian if it is L16."""
        if not self._must_swap or len(payload) % 2:  # half a sample is refused with its track
            return payload
        return np.frombuffer(payload, ">i2").astype("<i2").tobytes()
