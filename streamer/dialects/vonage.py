"""Vonage Voice: a call leg that an NCCO's ``connect`` joins to a WebSocket.

The first message, text, is ``{"event": "websocket:connected", "content-type":
"audio/l16;rate=16000", ...}`` with the headers of the NCCO's endpoint beside; then binary messages
of 20 ms, 16-bit linear PCM, little-endian, mono. Other text tells of keys pressed, of audio played
and the like. The end is the connection's close. (Vonage Voice API, guide "WebSockets".)

Nothing goes back: Vonage plays binary messages to the caller, and takes commands alone as text.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import asdict

from streamer.audio import AudioFormat
from streamer.dialects import CloseCode, Handshake, Input, PeerError, Start
from streamer.dialects.reading import read_asked, read_text
from streamer.dialects.signatures import check_bearer_jwt
from streamer.errors import AudioError
from streamer.events import Event

_MAX_TEXT = 16_384
"""Characters of a text message; Vonage allows 512 bytes of headers."""
_CONNECTED = "websocket:connected"
_HEADERS = ("call_id", "roles", "step_ms")
_CONTENT_TYPE = re.compile(r"audio/l16\s*;\s*rate\s*=\s*([0-9]{1,6})", re.IGNORECASE)
_EXPECTED = (
    'expected {"event":"websocket:connected","content-type":"audio/l16;rate=16000"} first, then '
    "binary audio"
)

_Number: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
"""Small enough to be printed."""


class _Message(Struct, frozen=True, kw_only=True):
    """Any text message."""

    event: str


class _Connected(Struct, frozen=True, kw_only=True):
    """The first one: the headers of the NCCO's endpoint are fields of it."""

    content_type: str = msgspec.field(name="content-type")
    call_id: str | _Number | None = None
    roles: str | None = None
    step_ms: str | _Number | None = None


class VonageDialect:
    """Vonage's side of one call leg; see :class:`streamer.dialects.Dialect`.

    Args:
        handshake: the request for the WebSocket. Its URL, or the headers of the NCCO's endpoint,
            may say ``call_id``, ``roles`` (here one, ``customer`` or ``agent``) and ``step_ms``.
        min_step_ms: the shortest step that may be asked for.
        signature_secret: of the Vonage account: the request must bring a JWT signed with it.
            Unchecked where it is empty.
        clock: seconds since 1970, UTC; for the age of the JWT alone.

    Raises:
        PeerError: a signature is wanted, and is not there or not good.
    """

    def __init__(
        self,
        handshake: Handshake,
        *,
        min_step_ms: int = 100,
        signature_secret: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        if signature_secret:
            key = signature_secret.encode("utf-8", "surrogatepass")
            check_bearer_jwt(handshake.header("authorization"), key=key, now_s=clock())
        self._query = handshake.query
        self._min_step_ms = min_step_ms
        self._has_started = False

    def receive_text(self, text: str) -> list[Input]:
        """Return what a text message means: the first one the start, the others nothing.

        Raises:
            PeerError: not JSON, no event, or a start that cannot be or comes twice.
        """
        message = read_text(text, _Message, expected=_EXPECTED, max_text=_MAX_TEXT)
        if message.event != _CONNECTED:
            if not self._has_started:
                raise PeerError(f"{message.event[:80]!r} before the start: {_EXPECTED}")
            return []
        if self._has_started:
            raise PeerError(f"a second {_CONNECTED!r}: expected one")
        connected = read_text(text, _Connected, expected=_EXPECTED, max_text=_MAX_TEXT)
        said = asdict(connected)
        headers = [(name, str(said[name])) for name in _HEADERS if said[name] is not None]
        asked = read_asked([*self._query, *headers], min_step_ms=self._min_step_ms)
        audio = _format(connected.content_type)
        self._has_started = True
        return [Start(audio=audio, roles=asked.roles, step_s=asked.step_s, call_id=asked.call_id)]

    def receive_bytes(self, chunk: bytes) -> list[Input]:
        """Return a binary message's audio.

        Raises:
            PeerError: before the start.
        """
        if not self._has_started:
            raise PeerError(f"{len(chunk)} bytes of audio before the start: {_EXPECTED}")
        return [chunk]

    def receive_event(self, event: Event) -> None:
        """Take an event, which Vonage has no words for."""

    def messages_to_send(self) -> list[str]:
        """Return nothing: watchers, webhooks and the store have the events."""
        return []


def _format(content_type: str) -> AudioFormat:
    found = _CONTENT_TYPE.fullmatch(content_type.strip())
    if found is None:
        raise PeerError(
            f"content-type is {content_type[:80]!r}: expected 'audio/l16;rate=16000' or "
            "'audio/l16;rate=8000'",
            code=AudioError.code,
            close_code=CloseCode.UNSUPPORTED,
        )
    try:
        return AudioFormat(encoding="pcm_s16le", sample_rate=int(found[1]))
    except AudioError as error:
        raise PeerError(str(error), code=error.code, close_code=CloseCode.UNSUPPORTED) from error
