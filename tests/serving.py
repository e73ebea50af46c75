"""A server under test: in a thread of this process, or in a process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from http.client import HTTPConnection
from pathlib import Path
from socket import SO_RCVBUF, SO_SNDBUF, SOL_SOCKET, create_server
from typing import IO, Any

from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import ClientConnection, connect

from streamer.batching import Scorer
from streamer.events import Event, Summary, decode_event
from streamer.pressure import PressureConfig
from streamer.records import Store
from streamer.server import ServerConfig, ServerProcess

DEADLINE_S = 30.0
"""Nothing here takes a second; two busy cores may make it ten."""
PATIENT = PressureConfig(raise_s=(100.0, 200.0, 300.0), behind_s=100.0)
"""What is said must not depend on how much of a core the server gets: nothing is overload."""


def wait_until(condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
    """Return when the condition holds; poll for it, because nobody tells of it."""
    give_up = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < give_up, f"not within {deadline_s:g} s: {what}"
        threading.Event().wait(0.01)


@dataclass
class Running:
    """A server that listens."""

    port: int
    process: ServerProcess | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/v1/stream"

    def get(self, path: str) -> tuple[int, Any]:
        """Return a path's status and its JSON, or its text."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        with closing(connection):
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read().decode()
        is_json = response.getheader("content-type") == "application/json"
        return response.status, json.loads(body) if is_json else body

    def connect(self, query: str = "", **arguments: Any) -> ClientConnection:
        # No pings: the server reads none while it holds back a client that is faster than it.
        return connect(
            self.url + query,
            compression=None,
            open_timeout=DEADLINE_S,
            ping_interval=None,
            proxy=None,
            **arguments,
        )

    def connect_to(self, path: str) -> ClientConnection:
        """Connect to any path, as a client of another dialect does."""
        return connect(f"ws://127.0.0.1:{self.port}{path}", compression=None, proxy=None)

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = self.get("/readyz")[1]
        return state


@contextmanager
def serving(
    scorer: Scorer,
    *,
    send_buffer_bytes: int | None = None,
    receive_buffer_bytes: int | None = None,
    kept: Store | None = None,
    **config: Any,
) -> Iterator[Running]:
    """Run a server with this scorer in a thread; what it hears is kept in ``kept``."""
    with create_server(("127.0.0.1", 0), backlog=512) as listener:
        if send_buffer_bytes is not None:  # else the kernel grows it, to 4 MB of unread events
            listener.setsockopt(SOL_SOCKET, SO_SNDBUF, send_buffer_bytes)
        if receive_buffer_bytes is not None:  # else the kernel grows it, to 6 or 32 MB of audio
            listener.setsockopt(SOL_SOCKET, SO_RCVBUF, receive_buffer_bytes)
        port = listener.getsockname()[1]
        settings = ServerConfig(port=port, **{"pressure": PATIENT, **config})
        process = ServerProcess(settings, lambda: nullcontext(scorer), store=kept)
        thread = threading.Thread(target=process.run, args=([listener],))
        thread.start()
        try:
            wait_until(lambda: process.service.scorer is not None, "the server is ready")
            yield Running(port, process)
        finally:
            process.should_exit = True
            thread.join(DEADLINE_S)
            assert not thread.is_alive(), "the server does not stop"


def hear_all(connection: ClientConnection) -> list[Event]:
    """Return all events up to the close of the connection; acks are none."""
    events = []
    with suppress(ConnectionClosedError):
        for text in connection:
            if not is_ack(text):
                events.append(decode_event(text))
    return events


def is_ack(text: str | bytes) -> bool:
    """Tell whether a message says what has arrived."""
    message: dict[str, Any] = json.loads(text)
    return message["type"] == "ack"


def stream(running: Running, chunks: Iterator[bytes] | list[bytes], query: str = "") -> list[Event]:
    """Send audio from one thread, `end`, and hear in this one, as a client must."""
    with running.connect(query) as connection:

        def send() -> None:
            for chunk in chunks:
                connection.send(chunk)
            connection.send('{"type":"end"}')

        sender = threading.Thread(target=send)
        sender.start()
        events = hear_all(connection)
        sender.join(DEADLINE_S)
    assert connection.close_code == 1000, connection.close_reason
    assert isinstance(events[-1], Summary)
    return events


class ServerUnderTest(Running):
    """`ser-serve` in a process of its own; its log is in ``lines``."""

    def __init__(self, process: subprocess.Popen[str], log: IO[str]) -> None:
        self.running = process
        self.lines: list[str] = []
        self._listening = threading.Event()
        self._reader = threading.Thread(target=self._read, args=(log,), daemon=True)
        self._reader.start()
        assert self._listening.wait(DEADLINE_S), self.lines
        super().__init__(self.port)

    def wait_until_ready(self) -> None:
        wait_until(lambda: self.get("/readyz")[0] == 200, "the server is ready")

    def rss_mib(self) -> float:
        """Memory that the process holds now."""
        status = Path(f"/proc/{self.running.pid}/status").read_text()
        found = re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) / 1024

    def num_files(self) -> int:
        """Files and sockets that the process has open."""
        return len(list(Path(f"/proc/{self.running.pid}/fd").iterdir()))

    def cpu_s(self) -> float:
        """Seconds that the process has computed so far, on all cores."""
        fields = Path(f"/proc/{self.running.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Return the exit status after a signal."""
        self.running.send_signal(number)
        status = self.running.wait(DEADLINE_S)
        self._reader.join(DEADLINE_S)
        return status

    def _read(self, log: IO[str]) -> None:
        for line in log:
            self.lines.append(line.rstrip("\n"))
            found = re.search(r"listening url=ws://127\.0\.0\.1:(\d+)/v1/stream", line)
            if found is not None:
                self.port = int(found[1])
                self._listening.set()


_PROGRAM = """
import json, sys
from pathlib import Path
from streamer.pressure import PressureConfig
from streamer.server import ServerConfig, serve
settings = json.loads(sys.argv[2])
pressure = PressureConfig(**settings.pop("pressure"))
sys.exit(serve(ServerConfig(port=0, pressure=pressure, **settings), Path(sys.argv[1]), "cpu"))
"""


@contextmanager
def server_process(model_path: Path, **settings: Any) -> Iterator[ServerUnderTest]:
    """Run `serve` in a process of its own, with settings that JSON can carry."""
    asked = {"pressure": asdict(PATIENT), **settings}
    command = [sys.executable, "-c", _PROGRAM, str(model_path), json.dumps(asked)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            yield ServerUnderTest(process, process.stderr)
        finally:
            process.kill()
