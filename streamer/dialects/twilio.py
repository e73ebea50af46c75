"""Twilio Media Streams: mu-law at 8 kHz, one or both tracks, a signed handshake.

Messages as in https://www.twilio.com/docs/voice/media-streams/websocket-messages; the signature as
in https://www.twilio.com/docs/usage/security, over the URL alone: a handshake has no body.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from msgspec import Struct, field

from streamer.dialects import Handshake, PeerError
from streamer.dialects.media_streams import (
    Count,
    MediaFields,
    MediaStream,
    StreamStart,
    check_tracks,
    refuse_format,
)


class MediaFormat(Struct, frozen=True, kw_only=True, rename="camel"):
    """Always the same, says Twilio; checked all the same."""

    encoding: str
    sample_rate: Count
    channels: Count


class StartFields(Struct, frozen=True, kw_only=True, rename="camel"):
    """What the stream is. ``customParameters`` are the TwiML's ``<Parameter>`` elements."""

    stream_sid: str
    call_sid: str
    tracks: tuple[str, ...]
    media_format: MediaFormat
    custom_parameters: dict[str, Any] | None = None


class Message(Struct, frozen=True, kw_only=True):
    """Any message; fields that are not named here are Twilio's to add."""

    event: str
    stream_id: str = field(name="streamSid", default="")
    start: StartFields | None = None
    media: MediaFields | None = None


class TwilioDialect(MediaStream):
    """Twilio Media Streams, for the time of one connection; see `MediaStream`.

    Args:
        handshake: Twilio's HTTP request.
        min_step_ms: the shortest step that an operator may ask for.
        auth_token: of the Twilio account. Without it the signature is not checked.

    Raises:
        PeerError: the signature is missing or wrong.
    """

    message_type = Message
    expected = (
        'expected {"event":"start","start":{"streamSid":…,"callSid":…,"tracks":[…],'
        '"mediaFormat":{…}}}, '
        '{"event":"media","media":{"track":…,"chunk":…,"timestamp":…,"payload":…}} or '
        '{"event":"stop"}'
    )

    def __init__(
        self, handshake: Handshake, *, min_step_ms: int = 100, auth_token: str = ""
    ) -> None:
        super().__init__(handshake, min_step_ms=min_step_ms)
        if auth_token:
            check_signature(handshake, auth_token)

    def read_start(self, message: Any) -> StreamStart:
        """Return what a ``start`` message says.

        Raises:
            PeerError: another format, or tracks that Twilio does not have.
        """
        start: StartFields = message.start
        found = start.media_format
        if (found.encoding, found.sample_rate, found.channels) != ("audio/x-mulaw", 8000, 1):
            refuse_format(
                f"{found.encoding[:40]}, {found.sample_rate} Hz, channels: {found.channels}",
                "audio/x-mulaw, 8000 Hz, 1 channel",
            )
        return StreamStart(
            stream_id=start.stream_sid,
            call_id=start.call_sid,
            encoding="mulaw",
            sample_rate=8000,
            tracks=check_tracks(start.tracks),
            parameters=start.custom_parameters or {},
        )


def check_signature(handshake: Handshake, auth_token: str) -> None:
    """Check that Twilio made a handshake: base64 of HMAC-SHA1 of the URL, with the account's token.

    Raises:
        PeerError: the signature is missing or wrong.
    """
    found = (handshake.header("x-twilio-signature") or "").encode(errors="replace")
    is_right = False
    for url in _signed_urls(handshake):
        digest = hmac.new(auth_token.encode(), url.encode(errors="replace"), hashlib.sha1).digest()
        # No early end: how long this takes must not say which URL was nearly right.
        is_right |= hmac.compare_digest(base64.b64encode(digest), found)
    if not is_right:
        said = "a wrong" if found else "no"
        raise PeerError(
            f"{said} X-Twilio-Signature: expected the one of this URL by the account's auth token",
            code="unauthorized",
        )


def _signed_urls(handshake: Handshake) -> Iterator[str]:
    """Yield what Twilio may have signed: the URL of the TwiML, as far as it can be known here.

    Twilio connects by ``wss`` alone, so the scheme is that, whatever a proxy in front speaks here.
    The port and a last slash may stand in the TwiML and not in the request, or the other way round.
    """
    host = handshake.header("host") or ""
    name, _, port = host.rpartition(":")
    hosts = [host, f"{host}:443"]
    if port.isdigit():
        hosts = [host, name]
    asked = f"?{urlencode(handshake.query, errors='replace')}" if handshake.query else ""
    path, mark, query = (handshake.target or handshake.path + asked).partition("?")
    path, query = path.rstrip("/"), mark + query
    for at in hosts:
        yield f"wss://{at}{path}{query}"
        yield f"wss://{at}{path}/{query}"
