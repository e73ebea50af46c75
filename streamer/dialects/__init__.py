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
class Start:
    """The peer says what will come: ``roles`` by channel, and its own name for the call."""

    audio: AudioFormat = field(default_factory=AudioFormat)
    roles: tuple[str, ...] = ()
    step_s: float | None = None
    call_id: str = ""


@dataclass(frozen=True)
class End:
    """The peer says that its audio is over."""


Input: TypeAlias = Start | bytes | End
"""What a message means: one ``Start``, then audio in bytes, then one ``End``."""


class Dialect(Protocol):
    """One peer's way to speak, for the time of one connection."""

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

    def message_of(self, event: Event) -> str | None:
        """Return the text message that tells the peer of an event; None where it has no word."""
        ...
