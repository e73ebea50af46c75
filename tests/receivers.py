"""Receivers of webhooks, and senders whose time passes at once."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from streamer.audio import AudioFormat
from streamer.dialects import Start
from streamer.events import Alert, Event, Summary, decode_event
from streamer.records import CallRecord
from streamer.webhook_config import WebhooksConfig, WebhookTarget
from streamer.webhooks import Clocks, Webhooks, WebhookState

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()

DEADLINE_S = 20.0
"""Nothing here takes a second; two busy cores may make it more."""

RECORD = CallRecord(
    session="0f" * 16,
    call_id="2024-17",
    dialect="twilio",
    roles=("customer", "agent"),
    started_at=1_700_000_000.25,
    start=Start(audio=AudioFormat(channels=2)),
)
SUMMARY = Summary(seq=9, duration_s=3.0, max_lag_ms=0.0, channels=())


def alert(seq: int = 7) -> Alert:
    return Alert(
        seq=seq,
        channel=0,
        role="customer",
        rule="angry10",
        label="angry",
        probability=0.81,
        start_s=3.0,
        end_s=13.1,
    )


@dataclass
class Receiver:
    """A receiver of webhooks: a script of answers, and what came."""

    port: int = 0
    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    """What it answers, one after another; 200 from then on. Status 0 breaks the connection."""
    received: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    is_open: threading.Event = field(default_factory=threading.Event)
    """While it is not set, nothing is answered."""
    body: bytes = b"ok"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks/PATH"

    def events(self) -> list[Event]:
        return [decode_event(json.dumps(json.loads(body)["event"])) for _, body in self.received]


@contextmanager
def receiving(*answers: int | tuple[int, dict[str, str]]) -> Iterator[Receiver]:
    receiver = Receiver(
        answers=[item if isinstance(item, tuple) else (item, {}) for item in answers]
    )
    receiver.is_open.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.received.append(({k.lower(): v for k, v in self.headers.items()}, body))
            receiver.is_open.wait(DEADLINE_S)
            status, headers = receiver.answers.pop(0) if receiver.answers else (200, {})
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(receiver.body)))
            self.end_headers()
            self.wfile.write(receiver.body)

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A sender that has gone is no news."""

    with Server(("127.0.0.1", 0), Handler) as server:
        receiver.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield receiver
        finally:
            receiver.is_open.set()
            server.shutdown()
            thread.join()


@dataclass
class FakeClocks:
    """Time passes only while somebody waits, and then at once."""

    now_s: float = 1_700_000_000.0
    waits: list[float] = field(default_factory=list)
    random: float = 0.0
    waits_for_ever: bool = False

    def clocks(self) -> Clocks:
        return Clocks(
            unix_s=lambda: self.now_s,
            monotonic_s=lambda: self.now_s,
            sleep=self._sleep,
            random=lambda: self.random,
        )

    async def _sleep(self, wait_s: float) -> None:
        self.waits.append(wait_s)
        if self.waits_for_ever:
            await asyncio.Event().wait()
        self.now_s += wait_s


def config(*urls: str, events: tuple[str, ...] = ("alert",), **changes: Any) -> WebhooksConfig:
    targets = tuple(WebhookTarget(url=url, secret=SECRET, events=events) for url in urls)
    return WebhooksConfig(targets=targets, **changes)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - it happens in a server's thread
            await asyncio.sleep(0.005)


def with_webhooks(
    settings: WebhooksConfig,
    use: Callable[[Webhooks], Awaitable[None]],
    time_of_day: FakeClocks | None = None,
) -> tuple[WebhookState, ...]:
    """Return how the URLs do when `use` is done and the rest was tried."""

    async def run() -> tuple[WebhookState, ...]:
        webhooks = Webhooks(settings, clocks=(time_of_day or FakeClocks()).clocks())
        await use(webhooks)
        await webhooks.aclose(DEADLINE_S)
        return webhooks.state

    return asyncio.run(run())


def send_one(
    receiver: Receiver, time_of_day: FakeClocks | None = None, **changes: Any
) -> WebhookState:
    """Return how one URL does after one alert."""

    async def use(webhooks: Webhooks) -> None:
        webhooks.send(RECORD, alert())
        await until(lambda: webhooks.state[0].num_delivered + webhooks.state[0].num_given_up == 1)

    (state,) = with_webhooks(config(receiver.url, **changes), use, time_of_day)
    return state
