"""A client for ser-stream: send audio while people speak, get emotion events back.

One file; copy it beside your program. It needs Python 3.11 and ``websockets`` 15 or newer, nothing
else. Without asyncio::

    with Client("ws://127.0.0.1:8765/v1/stream", sample_rate=8000, encoding="mulaw") as client:
        for chunk in chunks:
            client.send(chunk)
        client.end()
        for event in client.events():
            print(event)

`AsyncClient` is its twin for asyncio; `recognize_file` sends a WAV file.

Every event is a plain dict, see `Event`; seconds count from the first sample sent. The server
slows a sender that is faster than it can score, and loses nothing. Events are received all the
while, read or not, so sending a whole file before the first look at `events` cannot lock up.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import threading
import time
import wave
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from os import PathLike
from typing import Any, Self, TypeAlias, TypedDict, TypeVar, Unpack

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

T = TypeVar("T")
_MESSAGE_BYTES = 65_536
"""Longer chunks are sent in pieces of this size: a server bounds the size of a message."""
_CLOSE_TIMEOUT_S = 5.0

Event: TypeAlias = dict[str, Any]
"""What the server tells, as it comes from JSON. All have ``type seq channel role``; by ``type``:

- ``ready``, the first: session model labels encoding sample_rate channels step_ms notice ...
- ``speech``: active time_s
- ``emotion``: start_s end_s label scores raw speech warming_up
- ``turn``, speech between two pauses: start_s end_s label scores windows
- ``gap``, audio that never arrived, and ``lag``, windows not scored: start_s end_s reason
- ``error``: code message fatal
- ``summary``, the last: duration_s max_lag_ms channels

``docs/protocol.md`` of ser-stream has every field, with an example of each.
"""


class ClientError(Exception):
    """Root of what this client raises."""


class ConnectError(ClientError):
    """No server there, or one that is full, not ready, or no ser-stream at all."""


class ConnectionLostError(ClientError):
    """The connection ended before the call did: the server stopped, or the network broke."""


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
    """

    roles: Sequence[str]
    call_id: str
    step_ms: int
    open_timeout_s: float
    max_unread: int


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
        self._connection: ClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._fault: ClientError | None = None
        self._has_ended = self._has_summary = self._is_over = False

    async def __aenter__(self) -> Self:
        timeout_s = self._options.get("open_timeout_s", 10.0)
        deadline_s = time.monotonic() + timeout_s
        self._connection = await self._connect(timeout_s)
        self._reader = asyncio.create_task(self._read(self._connection))
        try:
            await self._send(self._start_message())
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
        if self._connection is not None:
            try:
                # Closing sends first, and waits as any sender does while the server reads nothing.
                async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                    await self._connection.close()
            except TimeoutError:
                self._connection.transport.abort()
        if self._reader is not None:
            await self._reader

    async def send(self, chunk: bytes | bytearray | memoryview) -> None:
        """Send audio, cut anywhere, any size; waits while the server cannot keep up.

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
        for start in range(0, len(audio), _MESSAGE_BYTES):
            await self._send(audio[start : start + _MESSAGE_BYTES])

    async def end(self) -> None:
        """Say that the audio is over: the tail is scored, the summary comes. Once is enough."""
        if not self._has_ended:
            self._has_ended = True
            await self._send('{"type": "end"}')

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
        # Audio does not compress, and a busy server's late pong is no reason to hang up.
        settings: dict[str, Any] = {"compression": None, "ping_timeout": None}
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

    async def _send(self, message: str | memoryview) -> None:
        if self._connection is None or self._reader is None:
            raise ClientError("not connected: expected to be inside the with block")
        try:
            await self._connection.send(message)
        except ConnectionClosed:
            # The reader knows why: the server's last words come before the close.
            await asyncio.shield(self._reader)
            raise self._fault or ClientError("the call is over") from None

    async def _read(self, connection: ClientConnection) -> None:
        """Take in events until the connection ends, whether anyone reads them or not.

        A server that cannot send stops receiving; if this waited for the program to read events
        while the program waits to send audio, both would wait for ever.
        """
        try:
            async for message in connection:
                self._receive(message)
        except ConnectionClosed:
            pass  # judged below, by its code
        except ClientError as error:
            self._fault = error
            connection.transport.abort()
        finally:
            code, reason = connection.close_code, connection.close_reason
            if self._fault is None and (not self._has_summary or code == 1001):
                why = f"close code {code}{reason and ', '}{reason}"
                self._fault = ConnectionLostError(f"{self.url} ended the call early ({why})")
            self._is_over = True
            self._news.set()

    def _receive(self, message: str | bytes) -> None:
        try:
            event = json.loads(message)
            kind = event["type"]
        except (ValueError, TypeError, KeyError, RecursionError):
            found = f"{self.url} sent {message[:40]!r}"
            raise ConnectError(f"{found}: expected events of ser-stream") from None
        self._unread.append(event)
        self._news.set()
        if kind == "summary":
            self._has_summary = True
        elif kind == "error" and event.get("fatal"):
            self._fault = ServerError(str(event.get("code")), str(event.get("message")))


class Client:
    """A call, without asyncio: ``with``, then `send`, `end`, and ``for event in client.events()``.

    One thread may send while another reads; one thread may also send everything first. The
    connection lives on a thread of its own. Everything else is as in `AsyncClient`.
    """

    def __init__(self, url: str, **options: Unpack[Options]) -> None:
        self._client = AsyncClient(url, **options)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def ready(self) -> Event:
        """The first event, there from the start of the block; it is among `events`, too."""
        return self._client.ready

    def __enter__(self) -> Self:
        self._loop = loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_work, args=(loop,), daemon=True)
        self._thread.start()
        try:
            self._run(self._client.__aenter__())
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._run(self._client.__aexit__())
        finally:
            self._stop()

    def send(self, chunk: bytes | bytearray | memoryview) -> None:
        """Send audio, cut anywhere, any size; as `AsyncClient.send`."""
        self._run(self._client.send(chunk))

    def end(self) -> None:
        """Say that the audio is over; as `AsyncClient.end`."""
        self._run(self._client.end())

    def events(self, timeout_s: float | None = None) -> Iterator[Event]:
        """Give events as they come, to the end or for ``timeout_s``; as `AsyncClient.events`."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while (event := self._run(self._client._next(deadline_s))) is not None:
            yield event

    def _stop(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise ClientError("not connected: expected to be inside the with block")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise ClientError("the call was closed by another thread") from None
        except BaseException:
            future.cancel()  # Ctrl-C: nobody waits for it any more
            raise


def _work(loop: asyncio.AbstractEventLoop) -> None:
    with asyncio.Runner(loop_factory=lambda: loop):  # on leaving, cancels what still waits
        loop.run_forever()


def recognize_file(
    url: str,
    path: str | PathLike[str],
    *,
    realtime: bool = False,
    **options: Unpack[CallOptions],
) -> Iterator[Event]:
    """Send a WAV file (16-bit PCM) and give its events as they come.

    As fast as the server takes it, or with ``realtime`` as if it were being spoken. No more is
    sent while you look at an event, so a slow reader slows the sending.

    Raises:
        ClientError: no such WAV file; and all that `Client` raises.
    """
    with _open_wav(path) as wav:
        rate, num_channels = wav.getframerate(), wav.getnchannels()
        with Client(url, sample_rate=rate, channels=num_channels, **options) as client:
            start_s, num_blocks = time.monotonic(), 0
            while chunk := wav.readframes(rate // 10):
                num_blocks += len(chunk) // (2 * num_channels)
                wait_s = start_s + num_blocks / rate - time.monotonic() if realtime else 0.0
                yield from client.events(timeout_s=max(0.0, wait_s))
                client.send(chunk)
            client.end()
            yield from client.events()


def _open_wav(path: str | PathLike[str]) -> wave.Wave_read:
    try:
        wav = wave.open(str(path), "rb")  # noqa: SIM115  closed by the caller
        if wav.getsampwidth() == 2:
            return wav
        wav.close()
        found = f"{wav.getsampwidth() * 8} bits a sample"
    except (OSError, EOFError, wave.Error) as error:
        found = str(error) or "it ends too early"
    raise ClientError(
        f"{path}: {found}; expected a WAV file of 16-bit PCM, as "
        "`ffmpeg -i FILE -c:a pcm_s16le call.wav` makes it"
    )
