"""How peers speak: a dialect turns one peer's messages into ours, and our events into its.

A dialect is sans-I/O, one object a connection. The server hands it every message that came and
takes what it means; what the peer may not say is a :class:`PeerError`, which names the code of
the ``error`` event and of the WebSocket's close.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, TypeAlias

from streamer.audio import AudioFormat
from streamer.call import Lost, TrackChunk
from streamer.errors import ProtocolError
from streamer.events import Event


class CloseCode(IntEnum):
    """Why a WebSocket is closed (RFC 6455, section 7.4.1, and the IANA registry for 1012 up)."""

    NORMAL = 1000
    """The call is over, its summary was sent."""
    GOING_AWAY = 1001
    """The server stops; the call was ended as by its peer, its summary was sent."""
    UNSUPPORTED = 1003
    """A message that this server does not serve."""
    INVALID_DATA = 1007
    """JSON or audio that cannot be read."""
    POLICY = 1008
    """A readable message with a value, or at a time, that is not allowed; or none for too long."""
    TOO_BIG = 1009
    """A message over the limit."""
    INTERNAL = 1011
    """The server failed."""
    TRY_AGAIN_LATER = 1013
    """The server is full, or not ready yet."""


class PeerError(ProtocolError):
    """What a peer may not do; ``str()`` is a sentence that is safe to send to it.

    Args:
        message: what was found and what was expected. Cut at 400 characters.
        code: of the ``error`` event.
        close_code: of the WebSocket's close.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str = "bad_message",
        close_code: CloseCode = CloseCode.POLICY,
    ) -> None:
        super().__init__(message if len(message) <= 400 else f"{message[:399]}…")
        self.code = code
        self.close_code = close_code


@dataclass(frozen=True, kw_only=True)
class Handshake:
    """What a peer's HTTP request for a WebSocket says; header names in lower case.

    ``target`` is path and query as they were sent, byte for byte, for signatures; it may hold a
    token, so that nobody logs it. It is empty where nobody knows it.
    """

    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    target: str = field(default="", repr=False)

    def header(self, name: str) -> str | None:
        """Return a header's first value; ``name`` in lower case."""
        return next((value for key, value in self.headers if key == name), None)


@dataclass(frozen=True, kw_only=True)
class Start:
    """The peer says what will come: ``roles`` by channel, and its own name for the call.

    With ``as_tracks`` the channels are not interleaved: audio comes as :class:`TrackChunk`.
    """

    audio: AudioFormat = field(default_factory=AudioFormat)
    roles: tuple[str, ...] = ()
    step_s: float | None = None
    call_id: str = ""
    as_tracks: bool = False


@dataclass(frozen=True, kw_only=True)
class Resume:
    """A peer that was cut off is back: it has every event up to ``seq`` of call ``session``."""

    session: str
    seq: int


@dataclass(frozen=True, kw_only=True)
class Acknowledge:
    """The peer has every event up to ``seq``: they need not be kept for it any longer."""

    seq: int


@dataclass(frozen=True)
class End:
    """The peer says that its audio is over."""


Input: TypeAlias = Start | Resume | Acknowledge | bytes | TrackChunk | Lost | End
"""What a message means: one ``Start`` or ``Resume``, then audio or what was lost, one ``End``."""


class Dialect(Protocol):
    """One peer's way to speak, for the time of one connection. Sans-I/O, never blocks."""

    def receive_text(self, text: str) -> list[Input]:
        """Return what a text message means.

        Raises:
            PeerError: the peer may not say that, or not now.
        """
        ...

    def receive_bytes(self, chunk: bytes) -> list[Input]:
        """Return what a binary message means.

        Raises:
            PeerError: the peer may not say that, or not now.
        """
        ...

    def receive_event(self, event: Event) -> None:
        """Take an event of the call, in order; the last one of a call is its ``summary``."""
        ...

    def messages_to_send(self) -> list[str]:
        """Return the text messages that the peer is to get now, in order, each once.

        They tell of events, or answer the peer's own messages: asked for after every call above,
        also after one that raised.
        """
        ...
