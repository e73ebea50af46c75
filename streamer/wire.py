"""A WebSocket of which nothing is waited for without limit."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any

from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from streamer.dialects import CloseCode

_MAX_WAITING = 64
"""Answers to the peer's own messages that wait for it to read; then no more is read from it."""


class GoneError(Exception):
    """The peer can be told nothing any more; it may come back, unless it hung up."""

    def __init__(self, reason: str, *, has_hung_up: bool = False) -> None:
        super().__init__(reason)
        self.has_hung_up = has_hung_up

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> GoneError:
        """Return what an ASGI ``websocket.disconnect`` means."""
        # A close frame has a reason, be it empty; uvicorn calls a broken connection 1005, too.
        has_hung_up = message["code"] in (1000, 1005) and message.get("reason") is not None
        return cls(f"disconnected {message['code']}", has_hung_up=has_hung_up)


class ClosedError(GoneError):
    """The connection was found closed; what came before that is still there to be read."""


class Wire:
    """What goes to one peer; every method that sends raises GoneError where it is gone.

    Args:
        websocket: not accepted yet.
        timeout_s: that a peer may take to read a message.
    """

    def __init__(self, websocket: WebSocket, timeout_s: float) -> None:
        self._socket = websocket
        self._timeout_s = timeout_s
        self._waiting: deque[str] = deque()
        self._sent = asyncio.Event()

    @property
    def peer(self) -> str:
        """Who it is, for the log."""
        client = self._socket.client
        return "unknown" if client is None else f"{client.host}:{client.port}"

    async def accept(self) -> None:
        """Accept the handshake."""
        await self._within(self._socket.accept())

    async def deny(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        """Refuse the handshake in words where the ASGI server can; else it says 403."""
        if "websocket.http.response" in self._socket.scope.get("extensions", {}):
            answer = PlainTextResponse(f"{sentence}\n", status, headers)
            await self._within(self._socket.send_denial_response(answer))
        else:
            await self._within(self._socket.close())

    def put(self, messages: Iterable[str]) -> bool:
        """Have messages sent by the next :meth:`flush`; return whether any wait for it."""
        self._waiting.extend(messages)
        return bool(self._waiting)

    async def room(self) -> None:
        """Wait while too many messages wait for a :meth:`flush` that goes on elsewhere."""
        while len(self._waiting) > _MAX_WAITING:
            self._sent.clear()
            await self._sent.wait()

    async def flush(self) -> None:
        """Send what waits."""
        while self._waiting:
            await self._within(self._socket.send_text(self._waiting.popleft()))
            self._sent.set()

    async def close(self, code: CloseCode, reason: str) -> None:
        """Close, with a reason; a call that ended as it should has none."""
        await self._within(self._socket.close(code, "" if reason == "end" else reason))

    async def _within(self, sending: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await sending
        except TimeoutError:
            raise GoneError("slow_reader") from None
        except (OSError, RuntimeError, WebSocketDisconnect):  # whatever this server calls it
            raise ClosedError("disconnected") from None
