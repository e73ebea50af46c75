"""Where webhooks go: URLs, their secrets, and how hard it is tried."""

from __future__ import annotations

import base64
import binascii
import ipaddress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from streamer.errors import ConfigError

SECRET_PREFIX = "whsec_"
SENDABLE = ("alert", "talk_over", "summary")
"""Types of events that a webhook may ask for: those that are few in a call."""


@dataclass(frozen=True, kw_only=True)
class WebhookTarget:
    """Where messages go: ``https``, or ``http`` to this machine; which ``events``.

    ``secret`` is ``whsec_`` and the base64 of 24 to 64 bytes. Neither it nor the URL's path, which
    may be a secret, too, is ever in a log or an error.

    Raises:
        ConfigError: a URL, a secret or a type of event that cannot be.
    """

    url: str = field(repr=False)
    secret: str = field(repr=False)
    events: tuple[str, ...] = ("alert",)

    def __post_init__(self) -> None:
        where = f"webhook to {self.host}"
        if not self.events or not set(self.events) <= set(SENDABLE):
            raise ConfigError(
                f"{where}: events {', '.join(self.events) or 'none'}: expected one or more of "
                f"{', '.join(SENDABLE)}"
            )
        if not 24 <= len(secret_key(self.secret)) <= 64:
            raise ConfigError(
                f"{where}: its secret is none: expected {SECRET_PREFIX} and the base64 of 24 to 64 "
                "random bytes"
            )

    @property
    def host(self) -> str:
        """The URL's host and port, which is what logs and metrics may tell.

        Raises:
            ConfigError: the URL is none that may be posted to.
        """
        try:
            url = httpx.URL(self.url)
        except httpx.InvalidURL:
            raise ConfigError(
                "a webhook's URL cannot be read: expected https://HOST/PATH"
            ) from None
        if not url.host or url.userinfo or not 0 < (url.port or 443) < 65536:
            raise ConfigError(
                "a webhook's URL has no host, a user in it, or a port out of range: expected "
                "https://HOST/PATH"
            )
        host = url.netloc.decode("ascii")
        if url.scheme != "https" and not (url.scheme == "http" and _is_loopback(url.host)):
            raise ConfigError(
                f"webhook to {url.scheme}://{host}: expected https; http is for this machine alone"
            )
        return host


@dataclass(frozen=True, kw_only=True)
class WebhooksConfig:
    """Where messages go and how hard it is tried.

    An attempt takes at most ``timeout_s``. After a failure that may pass, the next one waits
    ``first_wait_s``, then twice as long each time up to ``max_wait_s``, less up to half of it at
    random; longer where the receiver asks for it. A message is given up after ``max_attempts``, or
    when its next attempt would be more than ``give_up_after_s`` after it was made. ``ca_file``
    holds certificate authorities in place of the usual ones; ``proxy`` is a URL.

    Raises:
        ConfigError: a value outside its range.
    """

    targets: tuple[WebhookTarget, ...] = ()
    timeout_s: float = 10.0
    first_wait_s: float = 1.0
    max_wait_s: float = 120.0
    max_attempts: int = 8
    give_up_after_s: float = 900.0
    max_queued: int = 1000
    ca_file: Path | None = None
    proxy: str | None = None

    def __post_init__(self) -> None:
        if not 0.1 <= self.timeout_s <= 60:
            raise ConfigError(f"a webhook timeout of {self.timeout_s:g} s: expected 0.1 to 60 s")
        if not 0.01 <= self.first_wait_s <= self.max_wait_s <= 3600:
            raise ConfigError(
                f"webhook waits of {self.first_wait_s:g} to {self.max_wait_s:g} s: expected 0.01 "
                "to 3600 s, the first no longer than the last"
            )
        if not 1 <= self.max_attempts <= 100 or not 1 <= self.max_queued <= 100_000:
            raise ConfigError(
                f"{self.max_attempts} webhook attempts, {self.max_queued} queued: expected 1 to "
                "100, and 1 to 100000"
            )
        if not 0 <= self.give_up_after_s <= 86400:
            raise ConfigError(
                f"webhooks given up after {self.give_up_after_s:g} s: expected 0 to 86400 s"
            )


def secret_key(secret: str) -> bytes:
    """Return a secret's bytes; none where it is no secret."""
    if not secret.startswith(SECRET_PREFIX):
        return b""
    try:
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        return b""


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
