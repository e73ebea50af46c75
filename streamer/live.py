"""One WebSocket being heard: from its first message to its close, in whatever dialect."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, cast

from starlette.websockets import WebSocket, WebSocketDisconnect

from streamer.batching import Scorer
from streamer.call import Call, CallConfig
from streamer.dialects import CloseCode, Dialect, End, Input, PeerError, Start
from streamer.dialects.native import NativeDialect
from streamer.drivers import converse
from streamer.errors import AudioError, ConfigError
from streamer.events import Error, Event, Turn
from streamer.session import SessionConfig

_log = logging.getLogger("streamer.server")

_REST_S = 0.2
"""How long a call on which nobody speaks is left alone: how late a ``speech`` event may be told."""
_AT_ONCE_S = 0.002
"""A message that was waited for longer than this was not there before."""


@dataclass(frozen=True, kw_only=True)
class LiveConfig:
    """What holds for every call of a server; see :class:`streamer.server.ServerConfig`."""

    session: SessionConfig
    analyse_agents: bool
    min_step_s: float
    idle_timeout_s: float
    send_timeout_s: float


class _Gone(Exception):
    """The peer can be told nothing any more."""


class _Stopping(PeerError):
    """The server ends the call, as if its peer had."""

    def __init__(self) -> None:
        super().__init__(
            "the server is stopping: expected a new call elsewhere, or later",
            code="stopping",
            close_code=CloseCode.GOING_AWAY,
        )


class LiveCall:
    """One WebSocket being heard.

    Nothing is read while an event waits to be sent, so a peer that reads nothing is soon not read
    from either, and what it may make the server keep is bounded.
    """

    def __init__(self, websocket: WebSocket, config: LiveConfig) -> None:
        self._socket = websocket
        self._config = config
        self._session = secrets.token_hex(16)
        self._dialect: Dialect = NativeDialect()
        self._receiving: asyncio.Timeout | None = None
        self._silent_at_s = asyncio.get_running_loop().time() + config.idle_timeout_s
        self._is_ending = self._is_abandoned = False
        self._task: asyncio.Task[Any] | None = None
        self._fault: PeerError | None = None
        self._fatal: Error | None = None
        self._call: Call | None = None
        self._num_events = self._num_turns = 0

    def end(self) -> None:
        """End the call as if its peer had: it gets its last events, then close 1001."""
        self._is_ending = True
        if self._receiving is not None and not self._receiving.expired():
            self._receiving.reschedule(asyncio.get_running_loop().time())

    def abandon(self) -> None:
        """End the call at once, whatever it waits for; its peer gets nothing more."""
        self._is_abandoned = True
        if self._task is not None:
            self._task.cancel()

    async def refuse(self, code: str, message: str) -> None:
        """Tell the peer in words that it is not heard now, and close with 1013."""
        try:
            await self._accept()
            fault = PeerError(message, code=code, close_code=CloseCode.TRY_AGAIN_LATER)
            await self._send_fault(fault)
            self._log_line("call refused", reason=code)
        except _Gone as gone:
            self._log_line("call refused", reason=code, peer_left=str(gone))

    async def run(self, scorer: Scorer) -> None:
        """Hear the peer until it ends, errs or goes. Its faults end here."""
        self._task = asyncio.current_task()
        try:
            reason = await self._hear(scorer)
        except _Gone as gone:
            reason = str(gone)
        except asyncio.CancelledError:
            if not self._is_abandoned:
                raise
            reason = "abandoned"
        except Exception:  # noqa: BLE001 - a task's edge: one call's fault is that call's alone
            _log.exception("call failed session=%s", self._session)
            reason = "internal"
            await self._apologise()
        if self._call is None:
            self._log_line("call end", reason=reason)
            return
        audio_s = self._call.num_samples / self._call.card.features.sample_rate
        self._log_line(
            "call end",
            reason=reason,
            audio_s=round(audio_s, 2),
            turns=self._num_turns,
            events=self._num_events,
        )

    async def _hear(self, scorer: Scorer) -> str:
        """Hear the whole call; return why it ended."""
        await self._accept()
        try:
            self._dialect = NativeDialect(
                self._socket.query_params.multi_items(),
                min_step_ms=round(self._config.min_step_s * 1000),
            )
            inputs = await self._receive()
            self._call = self._begin(inputs, scorer)
        except PeerError as fault:
            await self._send_fault(fault)
            return fault.code
        chunks = self._chunks(inputs[1:])
        conversation = cast(AsyncGenerator[Event], converse(self._call, chunks, scorer))
        async with aclosing(conversation) as events:
            async for event in events:
                await self._send(event)
        close_code, reason = self._verdict()
        await self._close(close_code, reason)
        return reason

    def _begin(self, inputs: list[Input], scorer: Scorer) -> Call:
        """Make the call that the peer's first message asks for."""
        start = inputs[0]
        assert isinstance(start, Start)
        session = self._config.session
        if start.step_s is not None:
            session = replace(session, step_s=start.step_s)
        try:
            config = CallConfig(
                audio=start.audio,
                roles=start.roles,
                analyse_agents=self._config.analyse_agents,
                session=session,
                session_id=self._session,
            )
            call = Call(scorer.card, config)
        except (AudioError, ConfigError) as error:
            raise PeerError(str(error), code=error.code) from error
        self._log_line(
            "call start",
            call_id=start.call_id,
            encoding=start.audio.encoding,
            rate=start.audio.sample_rate,
            roles=",".join(session.role for session in call.sessions),
        )
        return call

    async def _chunks(self, inputs: list[Input]) -> AsyncIterator[bytes]:
        """Yield the peer's audio to its end; a fault of the peer ends it, too."""
        clock = asyncio.get_running_loop().time
        try:
            while True:
                for item in inputs:
                    if isinstance(item, End):
                        return
                    assert isinstance(item, bytes)
                    since_s = clock()
                    yield item
                    self._silent_at_s += clock() - since_s  # while we did not listen
                since_s = clock()
                inputs = await self._receive()
                if clock() - since_s > _AT_ONCE_S and not isinstance(inputs[-1], End):
                    await self._rest()
        except PeerError as fault:
            self._fault = fault
            if not isinstance(fault, _Stopping):
                raise

    async def _rest(self) -> None:
        """Let live audio gather for a while if nobody speaks.

        Waking for each 20 ms of silence would cost more than all that is done with it. Audio that
        is there at once, faster than it was spoken, never comes here.
        """
        if self._call is not None and not self._call.is_speaking and not self._is_ending:
            await asyncio.sleep(_REST_S)

    async def _receive(self) -> list[Input]:
        """Return what the peer's next message means.

        Raises:
            PeerError: it may not say that; or it has been silent for too long, or is to be ended.
            _Gone: it left.
        """
        message = await self._next_message()
        if message["type"] == "websocket.disconnect":
            raise _Gone(f"disconnected {message['code']}")
        text, chunk = message.get("text"), message.get("bytes")
        if text is not None:
            return self._dialect.receive_text(text)
        if chunk:
            loop = asyncio.get_running_loop()
            self._silent_at_s = loop.time() + self._config.idle_timeout_s
        else:
            await asyncio.sleep(0)  # a flood of empty messages must not keep the loop
        return self._dialect.receive_bytes(chunk or b"")

    async def _next_message(self) -> dict[str, Any]:
        """Wait for a message, but not longer than a peer may be silent."""
        if self._is_ending:
            raise _Stopping
        try:
            async with asyncio.timeout_at(self._silent_at_s) as self._receiving:
                message = await self._socket.receive()
            if asyncio.get_running_loop().time() > self._silent_at_s:  # it was there at once
                raise TimeoutError
        except TimeoutError:
            if self._is_ending:
                raise _Stopping from None
            raise PeerError(
                f"no audio for {self._config.idle_timeout_s:g} s: expected some, silence too, or "
                "the end",
                code="idle",
            ) from None
        finally:
            self._receiving = None
        return cast(dict[str, Any], message)

    async def _accept(self) -> None:
        await self._within(self._socket.accept())

    async def _send(self, event: Event) -> None:
        self._num_events += 1
        if isinstance(event, Turn):
            self._num_turns += 1
        elif isinstance(event, Error) and event.fatal:
            self._fatal = event
        text = self._dialect.message_of(event)
        if text is not None:
            await self._within(self._socket.send_text(text))

    async def _send_fault(self, fault: PeerError) -> None:
        error = Error(seq=self._num_events, code=fault.code, message=str(fault), fatal=True)
        await self._send(error)
        await self._close(fault.close_code, fault.code)

    async def _close(self, code: CloseCode, reason: str) -> None:
        await self._within(self._socket.close(code, "" if reason == "end" else reason))

    async def _within(self, sending: Any) -> None:
        """Send, in bounded time."""
        try:
            async with asyncio.timeout(self._config.send_timeout_s):
                await sending
        except TimeoutError:
            raise _Gone("slow_reader") from None
        except (OSError, RuntimeError, WebSocketDisconnect):  # whatever this server calls it
            raise _Gone("disconnected") from None

    async def _apologise(self) -> None:
        message = "the server failed, and has logged how: expected nothing of the kind"
        fault = PeerError(message, code="internal", close_code=CloseCode.INTERNAL)
        with suppress(_Gone):
            await self._send_fault(fault)

    def _verdict(self) -> tuple[CloseCode, str]:
        """Why the call ended, once it is over."""
        if self._fault is not None:
            return self._fault.close_code, self._fault.code
        if self._fatal is not None:
            is_peers = self._fatal.code == AudioError.code
            return CloseCode.INVALID_DATA if is_peers else CloseCode.INTERNAL, self._fatal.code
        return CloseCode.NORMAL, "end"

    def _log_line(self, what: str, **fields: object) -> None:
        client = self._socket.client
        peer = "unknown" if client is None else f"{client.host}:{client.port}"
        words = [f"session={self._session}", f"peer={peer}"]
        words += [f"{name}={json.dumps(value)}" for name, value in fields.items() if value != ""]
        _log.info("%s %s", what, " ".join(words))
