"""A client for ser-stream: send audio while people speak, get emotion events back.

Three files, this one, ``ser_stream_async.py`` and ``ser_stream_progress.py``; copy them beside your
program. They need Python 3.11 and ``websockets`` 15 or newer, nothing else. Without asyncio::

    with Client("ws://127.0.0.1:8765/v1/stream", sample_rate=8000, encoding="mulaw") as client:
        for chunk in chunks:
            client.send(chunk)
        client.end()
        for event in client.events():
            print(event)

`AsyncClient` is its twin for asyncio; `recognize_file` sends a WAV file.

Every event is a plain dict, see `Event`; seconds count from the first sample sent. The server
slows a sender that is faster than it can score, and loses nothing. Events are received all the
while, read or not, so sending a whole file before the first look at `events` cannot lock up. A
connection that breaks is mended: the call goes on, nothing comes twice, nothing is missing.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
import wave
from collections.abc import Coroutine, Iterator
from os import PathLike
from typing import Any, Self, TypeVar, Unpack

from ser_stream_async import (
    AsyncClient,
    CallOptions,
    ClientError,
    ConnectError,
    ConnectionLostError,
    Event,
    Options,
    ServerError,
)

__all__ = [
    "AsyncClient",
    "CallOptions",
    "Client",
    "ClientError",
    "ConnectError",
    "ConnectionLostError",
    "Event",
    "Options",
    "ServerError",
    "recognize_file",
]

T = TypeVar("T")


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
