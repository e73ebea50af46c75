"""Webhooks: what happens in calls, posted to URLs, signed and tried again; no call waits for it.

Signed as Standard Webhooks 1.0 says (https://www.standardwebhooks.com): HMAC-SHA256 of id, time of
the attempt and body. One task a URL posts its messages one at a time, in order; it lives only while
there are any. A URL that is slow or dead holds up nothing but itself: its queue is bounded, and
the oldest message goes first.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import random
import ssl
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import NamedTuple

import httpx
import msgspec

from streamer import __version__
from streamer.errors import ConfigError
from streamer.events import Event, encode_event
from streamer.records import CallRecord
from streamer.webhook_config import WebhooksConfig, WebhookTarget, secret_key

_MAX_ANSWER_BYTES = 65536
_READ_ANSWER_S = 1.0
_log = logging.getLogger(__name__)


class WebhookState(NamedTuple):
    """How one URL does: messages that wait, and what became of the others so far."""

    host: str
    num_queued: int
    num_delivered: int
    num_retried: int
    num_given_up: int


@dataclass(frozen=True, kw_only=True)
class Clocks:
    """What time it is and how to wait: replaced by tests.

    ``unix_s`` and ``monotonic_s`` are readings, ``random`` is from 0 to 1.
    """

    unix_s: Callable[[], float] = time.time
    monotonic_s: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    random: Callable[[], float] = random.random


def sign(secret: str, message_id: str, timestamp: int, body: bytes) -> str:
    """Return the ``webhook-signature`` of a message (Standard Webhooks, "Signature scheme")."""
    signed = b".".join([message_id.encode(), str(timestamp).encode(), body])
    digest = hmac.new(secret_key(secret), signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


class Webhooks:
    """Posts events of calls. Used in one event loop, closed with :meth:`aclose`.

    Args:
        config: where to, and how hard it is tried.
        clocks: for tests.

    Raises:
        ConfigError: the certificate authorities or the proxy cannot be used.
    """

    def __init__(self, config: WebhooksConfig, *, clocks: Clocks | None = None) -> None:
        self._clocks = clocks or Clocks()
        self._transport = _transport(config)
        self._closing = asyncio.Event()
        self._senders = [
            _Sender(target, config, self._transport, self._clocks, self._closing)
            for target in config.targets
        ]

    @property
    def state(self) -> tuple[WebhookState, ...]:
        """How each URL does, in the order of the configuration."""
        return tuple(sender.state for sender in self._senders)

    def send(self, record: CallRecord, event: Event) -> None:
        """Queue an event for the URLs that ask for its type; return at once, raise nothing."""
        kind = event.__struct_config__.tag
        senders = [sender for sender in self._senders if kind in sender.target.events]
        if senders:
            message = self._message(record, event)
            for sender in senders:
                sender.send(message)

    async def aclose(self, timeout_s: float) -> None:
        """Try once more, now, what is left, for at most ``timeout_s``; what still is, is given up.

        Events that are sent after it are given up.
        """
        self._closing.set()
        await asyncio.gather(*(sender.aclose(timeout_s) for sender in self._senders))
        await self._transport.aclose()

    def _message(self, record: CallRecord, event: Event) -> _Message:
        message_id = f"msg_{uuid.uuid4().hex}"
        call = {
            "session": record.session,
            "call_id": record.call_id,
            "dialect": record.dialect,
            "roles": record.roles,
            "started_at": record.started_at,
        }
        body = msgspec.json.encode(
            {
                "id": message_id,
                "time": round(self._clocks.unix_s(), 3),
                "call": call,
                "event": msgspec.Raw(encode_event(event)),
            }
        )
        return _Message(message_id, body, self._clocks.monotonic_s())


class WebhookObserver:
    """Follows all calls, as :class:`streamer.records.CallObserver` says, and sends what is due."""

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks

    def call_started(self, record: CallRecord) -> None:
        """Nothing: a webhook tells what happened."""

    def event(self, record: CallRecord, event: Event) -> None:
        """Send the event to whoever asked for its type."""
        self._webhooks.send(record, event)

    def call_ended(self, record: CallRecord, reason: str) -> None:
        """Nothing: the call's ``summary`` was its last event."""


class _Message(NamedTuple):
    id: str
    body: bytes
    made_s: float


class _Answer(NamedTuple):
    """What came of an attempt: a status, or what went wrong in its place."""

    status: int | None
    words: str
    retry_after_s: float = 0.0

    @property
    def is_taken(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def may_pass(self) -> bool:
        return self.status is None or self.status in (408, 429) or self.status >= 500


class _Sender:
    """One URL: its queue, and the task that empties it."""

    def __init__(
        self,
        target: WebhookTarget,
        config: WebhooksConfig,
        transport: httpx.AsyncBaseTransport,
        clocks: Clocks,
        closing: asyncio.Event,
    ) -> None:
        self.target = target
        self._config = config
        self._transport = transport
        self._clocks = clocks
        self._closing = closing
        self._queue: deque[_Message] = deque()
        self._task: asyncio.Task[None] | None = None
        self._num_delivered = self._num_retried = self._num_given_up = 0

    @property
    def state(self) -> WebhookState:
        return WebhookState(
            self.target.host,
            len(self._queue),
            self._num_delivered,
            self._num_retried,
            self._num_given_up,
        )

    def send(self, message: _Message) -> None:
        if self._closing.is_set():
            self._give_up(message, "the server stops")
            return
        if len(self._queue) >= self._config.max_queued:
            self._give_up(self._queue.popleft(), "too many wait")
        self._queue.append(message)
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def aclose(self, timeout_s: float) -> None:
        if self._task is not None:
            await asyncio.wait([self._task], timeout=timeout_s)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        while self._queue:
            self._give_up(self._queue.popleft(), "the server stops")

    async def _run(self) -> None:
        while self._queue:
            message = self._queue.popleft()
            why: str | None = "the server stops"
            try:
                why = await self._deliver(message)
            except Exception as error:  # noqa: BLE001 - a task's edge: the next one is none the worse
                why = f"a fault: {type(error).__name__}"
                _log.exception("webhook to %s failed", self.target.host)
            finally:
                if why is None:
                    self._num_delivered += 1
                else:
                    self._give_up(message, why)

    async def _deliver(self, message: _Message) -> str | None:
        """Try until the message is taken; return why it was not."""
        for number in range(1, self._config.max_attempts + 1):
            is_last = number == self._config.max_attempts or self._closing.is_set()
            answer = await self._attempt(message)
            if answer.is_taken:
                return None
            wait_s = max(self._back_off_s(number), answer.retry_after_s)
            due_s = self._clocks.monotonic_s() + wait_s
            is_late = due_s > message.made_s + self._config.give_up_after_s
            if is_last or is_late or not answer.may_pass:
                return f"attempt {number}: {answer.words}"
            self._num_retried += 1
            await self._wait(wait_s)
        raise AssertionError("the last attempt returns")

    async def _attempt(self, message: _Message) -> _Answer:
        timestamp = int(self._clocks.unix_s())
        request = httpx.Request(
            "POST",
            self.target.url,
            content=message.body,
            headers={
                "content-type": "application/json",
                "user-agent": f"ser-stream/{__version__}",
                "webhook-id": message.id,
                "webhook-timestamp": str(timestamp),
                "webhook-signature": sign(self.target.secret, message.id, timestamp, message.body),
            },
        )
        try:
            async with asyncio.timeout(self._config.timeout_s):
                # The transport itself: it follows no redirect, keeps no cookie, logs no URL.
                response = await self._transport.handle_async_request(request)
        except TimeoutError:
            return _Answer(None, f"no answer within {self._config.timeout_s:g} s")
        except httpx.TransportError as error:
            return _Answer(None, type(error).__name__)
        await self._drain(response)
        after_s = self._retry_after_s(response.headers.get("retry-after"))
        return _Answer(response.status_code, f"HTTP {response.status_code}", after_s)

    async def _drain(self, response: httpx.Response) -> None:
        """Read the answer's body, if it is small, so that the connection can be used again."""
        num_bytes = 0
        with suppress(TimeoutError, httpx.TransportError):
            try:
                async with asyncio.timeout(_READ_ANSWER_S):
                    async for part in response.aiter_raw():
                        num_bytes += len(part)
                        if num_bytes > _MAX_ANSWER_BYTES:
                            break
            finally:
                await response.aclose()

    def _retry_after_s(self, value: str | None) -> float:
        """Seconds that a receiver asks for (RFC 9110, section 10.2.3); 0 where it asks for none."""
        if value is None:
            return 0.0
        if value.isascii() and value.isdecimal():
            return float(value[:9])
        try:
            return max(0.0, parsedate_to_datetime(value).timestamp() - self._clocks.unix_s())
        except (ValueError, OverflowError):
            return 0.0

    def _back_off_s(self, number: int) -> float:
        wait_s = min(self._config.max_wait_s, self._config.first_wait_s * 2.0 ** (number - 1))
        return wait_s * (1.0 - 0.5 * self._clocks.random())

    async def _wait(self, wait_s: float) -> None:
        """Wait, or until the server stops."""
        tasks = {
            asyncio.ensure_future(self._clocks.sleep(wait_s)),
            asyncio.ensure_future(self._closing.wait()),
        }
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _give_up(self, message: _Message, why: str) -> None:
        self._num_given_up += 1
        _log.warning("webhook to %s given up: %s (%s)", self.target.host, message.id, why)


def _transport(config: WebhooksConfig) -> httpx.AsyncBaseTransport:
    try:
        verify = ssl.create_default_context(cafile=config.ca_file) if config.ca_file else True
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{config.ca_file}: {error}: expected certificates (PEM)") from error
    try:
        return httpx.AsyncHTTPTransport(
            verify=verify,
            proxy=config.proxy,
            trust_env=False,
            # One request a URL at a time is bound enough; in a pool they would wait for each other.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        )
    except (ValueError, httpx.InvalidURL) as error:
        raise ConfigError("a webhook proxy that is none: expected http://HOST:PORT") from error
