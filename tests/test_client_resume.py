"""The Python client on a network that breaks."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from ser_stream_client import AsyncClient, Client, ConnectionLostError, ServerError
from ser_stream_client import Event as Told
from websockets.sync.server import ServerConnection

from tests.peers import CARD, STEREO, decoded, local, peer, stereo_call
from tests.scorers import FakeScorer, assert_same_events
from tests.serving import DEADLINE_S, Running, serving


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr("ser_stream_async._RETRY_S", (0.01, 0.05))


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with FakeScorer(CARD, answer="thread") as scorer, serving(scorer) as running:
        yield running


class BadLine:
    """A way to a server that breaks after so many bytes to it, each time it is used."""

    def __init__(self, port: int, *lengths: int) -> None:
        self._port, self._lengths = port, list(lengths)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}/v1/stream"
        self._pairs: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve, daemon=True)]
        self._threads[0].start()
        self.num_cuts = 0

    def __enter__(self) -> BadLine:
        return self

    def refuse(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def __exit__(self, *_: object) -> None:
        self.refuse()
        self._threads[0].join(DEADLINE_S)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(DEADLINE_S)
        for end in self._pairs:
            end.close()

    def cut(self) -> None:
        for end in self._pairs:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._pairs += [near, far]
                length = self._lengths.pop(0) if self._lengths else None
                for source, target, limit in ((near, far, length), (far, near, None)):
                    thread = threading.Thread(target=self._carry, args=(source, target, limit))
                    self._threads.append(thread)
                    thread.start()

    def _carry(self, source: socket.socket, target: socket.socket, limit: int | None) -> None:
        num_bytes = 0
        with suppress(OSError):
            while data := source.recv(4096 if limit is None else min(4096, limit - num_bytes)):
                target.sendall(data)
                num_bytes += len(data)
                if num_bytes == limit:
                    self.num_cuts += 1
                    break
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("lengths", [(5_000,), (400, 400, 400), (60_000, 20_000, 1_000, 600)])
def test_a_line_that_breaks_does_not_show(server: Running, lengths: tuple[int, ...]) -> None:
    pcm = stereo_call()
    with (
        BadLine(server.port, *lengths) as line,
        Client(line.url, sample_rate=8000, channels=2) as client,
    ):
        for start in range(0, len(pcm), 1001):
            client.send(pcm[start : start + 1001])
        client.end()
        told = list(client.events())
    assert line.num_cuts == len(lengths)
    assert [event["seq"] for event in told] == list(range(len(told)))
    assert_same_events(decoded(told), local(STEREO, pcm))


def test_it_breaks_when_everything_was_sent(server: Running) -> None:
    async def run(line: BadLine) -> list[Told]:
        async with AsyncClient(line.url, sample_rate=8000, channels=2) as client:
            await client.send(stereo_call())
            await client.end()
            line.cut()
            return [event async for event in client]

    with BadLine(server.port) as line:
        told = asyncio.run(run(line))
    assert_same_events(decoded(told), local(STEREO, stereo_call()))


def test_what_cannot_be_mended_is_told() -> None:
    with (
        serving(FakeScorer(CARD)) as running,
        BadLine(running.port) as line,
        Client(line.url, reconnect_s=0.2) as client,
    ):
        client.send(bytes(3200))
        line.__exit__()
        with pytest.raises(ConnectionLostError, match=r"ended the call early .*coming back"):
            list(client.events())
        with pytest.raises(ConnectionLostError):
            client.send(bytes(3200))


def test_leaving_does_not_wait_for_a_line_to_be_mended(server: Running) -> None:
    with BadLine(server.port) as line, Client(line.url) as client:
        client.send(bytes(3200))
        line.refuse()
        line.cut()


def test_a_session_that_is_gone_is_no_call_any_more() -> None:
    with (
        serving(FakeScorer(CARD), resume_timeout_s=0.0) as running,
        BadLine(running.port) as line,
        Client(line.url) as client,
    ):
        client.send(bytes(3200))
        events = client.events()
        assert next(events)["type"] == "ready"  # cut before, a call is begun anew, not resumed
        line.cut()
        with pytest.raises(ConnectionLostError, match="unknown_session"):
            list(events)


def test_a_call_that_the_server_ended_is_not_gone_on_with() -> None:
    num_connections = 0

    def handler(connection: ServerConnection) -> None:
        nonlocal num_connections
        num_connections += 1
        connection.recv()
        ready = {"type": "ready", "seq": 0, "session": "x", "channel": None, "role": None}
        ready |= {"encoding": "pcm_s16le", "sample_rate": 16000, "channels": [{}]}
        connection.send(json.dumps(ready))
        connection.recv()
        error = {"type": "error", "seq": 1, "code": "idle", "message": "m", "fatal": True}
        connection.send(json.dumps(error))
        connection.close(1008, "idle")

    with peer(handler) as url, Client(url) as client:
        client.send(bytes(100))
        with pytest.raises(ServerError, match="idle"):
            list(client.events())
    assert num_connections == 1
