"""The asyncio half of ser-stream's client; see ``ser_stream_client.py``."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Self, TypeAlias, TypedDict, Unpack

from ser_stream_progress import MESSAGE_BYTES, Progress
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

_CLOSE_TIMEOUT_S = 5.0
_RETRY_S = 0.1, 2.0
"""Between two attempts to come back: at first, and at most."""
_TRY_AGAIN = ("busy", "not_ready", "overloaded", "stopping")

Event: TypeAlias = dict[str, Any]
"""What the server tells, as it comes from JSON. All have ``type seq channel role``; by ``type``:

- ``ready``, the first: session model labels encoding sample_rate channels step_ms notice ...
- ``speech``: active time_s
- ``emotion``: start_s end_s label scores raw speech warming_up
- ``turn``, speech between two pauses: start_s end_s label scores windows
- ``gap``, audio that never arrived, and ``lag``, windows not scored: start_s end_s reason
- ``talk_over``, two channels speaking at once: start_s end_s
- ``alert``, a rule of the server was met: rule label probability start_s end_s
- ``error``: code message fatal
- ``summary``, the last: duration_s max_lag_ms talk_over_s channels

``docs/protocol.md`` of ser-stream has every field, with an example of each.
"""


class ClientError(Exception):
    """Root of what this client raises."""


class ConnectError(ClientError):
    """No server there, or one that is full, not ready, or no ser-stream at all."""


class ConnectionLostError(ClientError):
    """The connection ended before the call did, and could not be mended in time."""


class ServerError(ClientError):
    """The server ended the call, or refused it: ``code`` for programs, ``message`` for people.

    ``busy``, ``not_ready`` and ``stopping`` say: try again later.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.message = message


class CallOptions(TypedDict, total=False):
    """How to open a call; what is not given is the server's to choose.

    ``roles``: who speaks on each channel, ``customer`` or ``agent``; customers if not given, and
    agents are not analysed. ``call_id``: your own name for the call. ``step_ms``: time between two
    emotions. ``open_timeout_s``: until the server is ready, 10 s. ``max_unread``: events that may
    wait to be read, 100 000, which is hours of a call; beyond it `send` raises.
    ``reconnect_s``: how long to try to come back to a call that was cut off, 30 s; 0: not at all.
    """

    roles: Sequence[str]
    call_id: str
    step_ms: int
    open_timeout_s: float
    max_unread: int
    reconnect_s: float


class Options(CallOptions, total=False):
    """The same, and what the bytes are: 16-bit PCM, 16 000 Hz, one channel if not given.

    ``encoding``: ``pcm_s16le``, ``pcm_f32le``, ``mulaw`` or ``alaw``. ``sample_rate``: 8000 to
    48000 Hz. ``channels``: 1, or 2 interleaved.
    """

    encoding: str
    sample_rate: int
    channels: int


class AsyncClient:
    """A call, from asyncio: ``async with``, then `send`, `end`, and ``async for event in client``.

    Tasks may send and read at the same time. Leaving the block without `end` hangs up: what was
    not scored by then is lost.

    Args:
        url: such as ``ws://127.0.0.1:8765/v1/stream``.
        options: see `Options`.

    Raises:
        ConnectError: on entering, where no server takes the call.
        ServerError: on entering, where the server refuses it: it is full, or the rate is wrong.
    """

    def __init__(self, url: str, **options: Unpack[Options]) -> None:
        self.url = url
        self.ready: Event = {}
        """The first event, there from the start of the block; it is among `events`, too."""
        self._options = options
        self._max_unread = options.get("max_unread", 100_000)
        self._unread: deque[Event] = deque()
        self._news = asyncio.Event()
        self._progress = Progress()
        self._connection: ClientConnection | None = None
        self._changed = asyncio.Event()
        self._sending = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self._resender: asyncio.Task[None] | None = None
        self._fault: ClientError | None = None
        self._has_ended = self._has_said_end = self._has_summary = False
        self._is_over = self._is_leaving = False

    async def __aenter__(self) -> Self:
        timeout_s = self._options.get("open_timeout_s", 10.0)
        deadline_s = time.monotonic() + timeout_s
        self._connection = connection = await self._connect(timeout_s)
        self._reader = asyncio.create_task(self._run(connection))
        try:
            with suppress(ConnectionClosed):  # why it was closed is raised below
                await connection.send(self._start_message())
            while (event := await self._next(deadline_s)) and event["type"] != "ready":
                pass  # a refusal: what closes the connection after it is raised
            if event is None:
                raise ConnectError(f"{self.url} was not ready within {timeout_s:g} s")
        except BaseException:
            await self.__aexit__()
            raise
        self.ready = event
        self._unread.appendleft(event)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_leaving = True
        if self._connection is not None:
            try:
                # Closing sends first, and waits as any sender does while the server reads nothing.
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await self._connection.close()
            except TimeoutError:
                self._connection.transport.abort()
        elif self._reader is not None:
            self._reader.cancel()
        tasks = [task for task in (self._reader, self._resender) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def send(self, chunk: bytes | bytearray | memoryview) -> None:
        """Send audio, cut anywhere, any size; waits while the server cannot keep up, or is away.

        Raises:
            ServerError: the server has ended the call; `events` still gives what came before.
            ConnectionLostError: the connection is gone.
            ClientError: after `end`, or ``max_unread`` events wait to be read.
        """
        if self._has_ended:
            raise ClientError("audio after end(): expected none")
        if len(self._unread) >= self._max_unread:
            raise ClientError(f"{len(self._unread)} unread events: expected them read meanwhile")
        audio = memoryview(chunk).cast("B")
        for start in range(0, len(audio), MESSAGE_BYTES):
            self._progress.add(audio[start : start + MESSAGE_BYTES])
            await self._deliver()

    async def end(self) -> None:
        """Say that the audio is over: the tail is scored, the summary comes. Once is enough."""
        if not self._has_ended:
            self._has_ended = True
            await self._deliver()

    async def events(self, timeout_s: float | None = None) -> AsyncIterator[Event]:
        """Give events as they come, to the end of the call, or for ``timeout_s`` seconds.

        With ``timeout_s=0``: those that are there. Breaking off loses none: iterate again.

        Raises:
            ServerError: in place of a normal end, after all events, where one was a fatal error.
            ConnectionLostError: in place of a normal end.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while (event := await self._next(deadline_s)) is not None:
            yield event

    def __aiter__(self) -> AsyncIterator[Event]:
        return self.events()

    async def _next(self, deadline_s: float | None) -> Event | None:
        """Wait for an event; None at the call's end and after the deadline (monotonic clock)."""
        while not self._unread:
            if self._is_over:
                if self._fault is not None:
                    raise self._fault
                return None
            self._news.clear()
            left_s = None if deadline_s is None else deadline_s - time.monotonic()
            try:
                async with asyncio.timeout(left_s):
                    await self._news.wait()
            except TimeoutError:
                if not self._unread:
                    return None
        return self._unread.popleft()

    async def _connect(self, timeout_s: float) -> ClientConnection:
        # Audio does not compress; a busy server answers no ping in time, and reads none for long.
        settings: dict[str, Any] = {"compression": None, "ping_interval": None}
        settings |= {"open_timeout": timeout_s, "close_timeout": _CLOSE_TIMEOUT_S}
        try:
            return await connect(self.url, **settings)
        except (OSError, WebSocketException) as error:
            why = "cannot be reached, is ser-serve running?"
            if isinstance(error, WebSocketException):
                why = "does not take the call:"
            if isinstance(error, InvalidStatus) and error.response.status_code == 503:
                why = "is full or not ready, try again later:"
            raise ConnectError(f"{self.url} {why} {error}") from error

    def _start_message(self) -> str:
        # Only what was given: query parameters of the URL may say the rest, none may disagree.
        given: dict[str, Any] = {**self._options}
        names = ("encoding", "sample_rate", "channels"), ("roles", "call_id", "step_ms")
        audio, call = ({name: given[name] for name in part if name in given} for part in names)
        return json.dumps({"type": "start", "audio": audio, **call})

    async def _deliver(self) -> None:
        """Send what is to be sent and was not, on whatever connection there is."""
        if self._reader is None:
            raise ClientError("not connected: expected to be inside the with block")
        broken: ClientConnection | None = None
        async with self._sending:
            while True:
                connection = await self._connection_after(broken)
                piece = b""
                message: str | bytes | None = self._progress.ack_message()
                if message is None:
                    message = piece = self._progress.next_piece()
                if not message and self._has_ended and not self._has_said_end:
                    self._has_said_end = True
                    message = '{"type": "end"}'
                if not message:
                    return
                try:
                    await connection.send(message)
                except ConnectionClosed:
                    broken = connection
                else:
                    if connection is self._connection:
                        self._progress.sent(len(piece))

    async def _connection_after(self, broken: ClientConnection | None) -> ClientConnection:
        """Wait for a connection that is not broken; or raise why there will be none."""
        while self._connection is None or self._connection is broken:
            if self._is_over:
                # The server's last words came before the close.
                raise self._fault or ClientError("the call is over")
            self._changed.clear()
            await self._changed.wait()
        return self._connection

    async def _run(self, connection: ClientConnection) -> None:
        """Take in events until the call ends, whether anyone reads them or not; mend the link.

        A server that cannot send stops receiving; if this waited for the program to read events
        while the program waits to send audio, both would wait for ever.
        """
        try:
            while await self._read(connection):
                self._connection = None
                connection = await self._come_back(connection)
                self._has_said_end = False
                self._connection = connection
                self._changed.set()
                self._resender = asyncio.create_task(self._redeliver())
        except ClientError as error:
            self._fault = self._fault or error
            connection.transport.abort()
        finally:
            code = connection.close_code
            if self._fault is None and (not self._has_summary or code == 1001):
                self._fault = ConnectionLostError(self._early_end(connection))
            self._is_over = True
            self._news.set()
            self._changed.set()

    async def _read(self, connection: ClientConnection) -> bool:
        """Take in events until the connection ends; return whether the call may go on."""
        try:
            async for message in connection:
                self._receive(message)
                if self._has_summary and (ack := self._progress.ack_message(is_last=True)):
                    async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                        await connection.send(ack)
        except (ConnectionClosed, TimeoutError):
            pass  # judged by its code
        is_broken = connection.close_code not in (1000, 1001, 1008)
        is_wanted = self._options.get("reconnect_s", 30.0) > 0 and not self._is_leaving
        is_going_on = self._fault is None and not self._has_summary
        return is_broken and is_wanted and is_going_on and bool(self._progress.session)

    async def _come_back(self, broken: ClientConnection) -> ClientConnection:
        """Try to resume the call for a while."""
        wait_s, longest_s = _RETRY_S
        deadline_s = time.monotonic() + self._options.get("reconnect_s", 30.0)
        while True:
            try:
                return await self._resume(await self._connect(10.0))
            except (ConnectError, ConnectionClosed, TimeoutError) as error:
                if time.monotonic() + wait_s > deadline_s:
                    why = f"{self._early_end(broken)}; coming back failed: {error}"
                    raise ConnectionLostError(why) from error
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, longest_s)

    async def _resume(self, connection: ClientConnection) -> ClientConnection:
        try:
            async with asyncio.timeout(10.0):
                await connection.send(self._progress.resume_message())
                answer = json.loads(await connection.recv())
            if answer["type"] == "ack":
                if self._progress.go_on_from(answer["samples"]):
                    return connection
                raise ConnectionLostError(f"{self.url} goes on from audio that is not kept here")
            why = f"{answer.get('message')} ({answer.get('code')})"
            if answer.get("code") in _TRY_AGAIN:
                raise ConnectError(why)
            raise ConnectionLostError(f"{self.url} ended the call early, and says: {why}")
        except BaseException:
            connection.transport.abort()
            raise

    async def _redeliver(self) -> None:
        with suppress(ClientError):  # told by whatever is called next
            await self._deliver()

    def _early_end(self, connection: ClientConnection) -> str:
        code, reason = connection.close_code, connection.close_reason
        return f"{self.url} ended the call early (close code {code}{reason and ', '}{reason})"

    def _receive(self, message: str | bytes) -> None:
        try:
            event = json.loads(message)
            kind = event["type"]
        except (ValueError, TypeError, KeyError, RecursionError):
            found = f"{self.url} sent {message[:40]!r}"
            raise ConnectError(f"{found}: expected events of ser-stream") from None
        if kind == "ack":
            self._progress.receive_ack(event["samples"])
            return
        self._progress.receive_event(event)
        self._unread.append(event)
        self._news.set()
        if kind == "summary":
            self._has_summary = True
        elif kind == "error" and event.get("fatal"):
            self._fault = ServerError(str(event.get("code")), str(event.get("message")))
