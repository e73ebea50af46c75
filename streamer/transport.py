"""uvicorn's protocols, with the limits that they lack.

uvicorn reads no further while the application takes no message, but it waits for ever: for the
first byte of a peer that connected, for the rest of a handshake, for a peer that reads nothing.
Each of these is bounded here, and so is the number of connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import ssl
import threading
from asyncio.transports import BaseTransport
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

if TYPE_CHECKING:
    from uvicorn._types import ASGISendEvent
    from websockets.frames import Frame

_MAX_HEAD_BYTES = 16_384
_MAX_FRAGMENTS = 4_096
"""Frames of one message: empty ones count nothing against the limit on a message's bytes."""
_ACCEPTS_A_TURN = 16
"""New connections that one turn of the event loop takes. libuv takes one of each listening socket,
and with 60 calls a turn is 10 ms: 500 broken handshakes a second kept others waiting for 5 s, now
0.3 s."""
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\n"
    b"content-type: text/plain; charset=utf-8\r\ncontent-length: 40\r\n"
    b"retry-after: 10\r\nconnection: close\r\n\r\n"
    b"too many connections, try again in 10 s\n"
)


class BoundedConfig(uvicorn.Config):
    """uvicorn's configuration for one application, with every limit set.

    There are no pings: their time-outs kill healthy calls under load. That a peer is alive is
    seen from its audio, by the application.

    Args:
        app: the ASGI application.
        max_connections: of any kind, whatever they do; the next ones get HTTP 503.
        max_message_bytes: of a WebSocket message; a longer one ends its connection with 1009.
        handshake_timeout_s: from the connection, or the last answer, to the end of the next answer
            or of the WebSocket's handshake; also how long a closing handshake may take.
        tls: the server's certificate; None for plain text.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_connections: int,
        max_message_bytes: int,
        handshake_timeout_s: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(
            app,
            http=BoundedHttp,
            ws=BoundedWebSocket,
            ws_max_size=max_message_bytes,
            ws_ping_interval=None,
            ws_per_message_deflate=False,
            h11_max_incomplete_event_size=_MAX_HEAD_BYTES,
            proxy_headers=False,
            server_header=False,
            log_config=None,
            log_level="error",
            access_log=False,
            timeout_graceful_shutdown=5,
            ssl_context_factory=None if tls is None else lambda *_: tls,
        )
        self.max_connections = max_connections
        self.handshake_timeout_s = handshake_timeout_s


class BoundedHttp(H11Protocol):
    """HTTP/1.1 up to the WebSocket's handshake, each step of it within its time."""

    config: BoundedConfig
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuse the connection if there are too many, else await a request, but not for ever."""
        super().connection_made(transport)
        self._arm()
        if len(self.connections) > self.config.max_connections:
            transport.write(_FULL)
            transport.close()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered, and every answer has been sent."""
        cycle = getattr(self, "cycle", None)  # None at first, whatever uvicorn's types say
        is_answering = cycle is not None and not cycle.response_complete
        return not is_answering and not self.transport.get_write_buffer_size()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        self._disarm()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Await the next request, but not for ever."""
        super().on_response_complete()
        self._arm()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        """Hand the connection over."""
        self._disarm()
        super().handle_websocket_upgrade(event)

    def _arm(self) -> None:
        self._disarm()
        self._deadline = self.loop.call_later(self.config.handshake_timeout_s, self.transport.abort)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """A WebSocket that cannot be kept open by a peer that reads nothing or answers no close."""

    config: BoundedConfig
    _abort: asyncio.TimerHandle | None = None

    def connection_made(self, transport: BaseTransport) -> None:
        """Take the connection over from HTTP."""
        super().connection_made(transport)
        self.close_timeout = self.config.handshake_timeout_s

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadline."""
        if self._abort is not None:
            self._abort.cancel()
            self._abort = None
        super().connection_lost(exc)

    async def run_asgi(self) -> None:
        """Run the application; what is unsent some time after its end is given up."""
        await super().run_asgi()
        if not self.disconnected:
            # `close` waits for the peer to read, without limit.
            self._abort = self.loop.call_later(self.close_timeout + 1.0, self.transport.abort)

    async def send(self, message: ASGISendEvent) -> None:
        """Send, or raise ClientDisconnected also where the connection is closing already.

        A peer that went before it was answered is nobody's error: no answer is owed any more.
        """
        if self.transport.is_closing():
            self.handshake_complete = True
            raise ClientDisconnected
        if self.close_sent:
            raise ClientDisconnected
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body"):
            # uvicorn 0.54 takes an application that answered in HTTP for one that did not answer.
            self.handshake_complete = True

    def handle_cont(self, event: Frame) -> None:
        """Take a fragment, unless there are too many."""
        if len(self.frames) >= _MAX_FRAGMENTS:
            self._fail(1009, f"a message of more than {_MAX_FRAGMENTS} frames")
        else:
            super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """Hand over a message; text that is not UTF-8 is the peer's fault and no traceback's."""
        if self.curr_msg_data_type == "text" and not _is_utf8(b"".join(self.frames)):
            self._fail(1007, "text that is not UTF-8")
        else:
            super().send_receive_event_to_app()

    def handle_ping(self) -> None:
        """Answer a ping, unless the peer does not read what was sent before."""
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()

    def handle_parser_exception(self) -> None:
        """Close after a broken frame; what came before it is still handed over."""
        if not self.close_sent:
            self.handle_events()
            self._close_failed()

    def _fail(self, code: int, reason: str) -> None:
        self.frames = []
        if not self.close_sent:
            self.conn.fail(code, reason)
            self._close_failed()

    def _close_failed(self) -> None:
        """Send the close frame that is due and half-close; read on, and throw away.

        Closing the socket with bytes unread in it would destroy the close frame on its way.
        """
        sent = self.conn.close_sent
        if self.close_sent or sent is None:
            return
        self.close_sent = True
        self.queue.put_nowait(
            {"type": "websocket.disconnect", "code": sent.code, "reason": sent.reason}
        )
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.read_paused = False
        self.transport.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)


class BoundedServer(uvicorn.Server):
    """uvicorn's server in a process of ours: signals end it, they do not kill it afterwards."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, on each socket as often as a turn of the loop is to accept from it."""
        copies = [one.dup() for one in sockets or [] for _ in range(_ACCEPTS_A_TURN - 1)]
        await super().startup(None if sockets is None else [*sockets, *copies])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let SIGINT and SIGTERM end the server; a second SIGINT does not wait for peers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def abort_connections(self) -> None:
        """Drop every connection that is left, sent or not."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def abort_idle(self) -> None:
        """Drop the HTTP connections on which nothing is owed.

        Those with TLS would wait for the peer's half of its closing handshake, which a peer that
        keeps a connection for later may never send.
        """
        for connection in list(self.server_state.connections):
            if isinstance(connection, BoundedHttp) and connection.is_idle:
                connection.transport.abort()

    def _on_signal(self, number: int, frame: FrameType | None) -> Any:
        self.handle_exit(number, frame)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
