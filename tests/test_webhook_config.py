from __future__ import annotations

import base64
from typing import Any

import pytest

from streamer.errors import ConfigError
from streamer.webhook_config import WebhooksConfig, WebhookTarget, secret_key
from tests.receivers import SECRET


@pytest.mark.parametrize(
    "url",
    [
        "https://example.com/hooks/1",
        "https://example.com:8443",
        "http://localhost:9000/x",
        "http://127.0.0.1/x",
        "http://127.8.8.8:1/x",
        "http://[::1]:9000/x",
    ],
)
def test_urls_that_may_be_posted_to(url: str) -> None:
    assert WebhookTarget(url=url, secret=SECRET).url == url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://example.com/PATH", "webhook to http://example.com: expected https"),
        ("http://10.0.0.1/PATH", "expected https"),
        ("http://localhost.example.com/PATH", "expected https"),
        ("ftp://localhost/PATH", "webhook to ftp://localhost: expected https"),
        ("https://user:word@example.com/PATH", "a user in it"),
        ("example.com/PATH", "has no host"),
        ("https:///PATH", "has no host"),
        ("https://example.com:word/PATH", "cannot be read"),
        ("https://example.com:99999999/PATH", "a port out of range"),
        ("https://exa mple.com/\x00PATH", "cannot be read"),
        ("", "has no host"),
    ],
)
def test_urls_that_are_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        WebhookTarget(url=url, secret=SECRET)
    # A path may be a secret of its own, as with many chat services.
    assert "PATH" not in str(caught.value).replace("https://HOST/PATH", "")
    assert "word" not in str(caught.value)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        SECRET.removeprefix("whsec_"),
        "whsec_" + base64.b64encode(bytes(23)).decode(),
        "whsec_" + base64.b64encode(bytes(65)).decode(),
        "whsec_not base64 at all, but of some length",
        "whsec_ä",
    ],
)
def test_secrets_that_are_refused_are_not_told(secret: str) -> None:
    with pytest.raises(ConfigError, match="its secret is none: expected whsec_") as caught:
        WebhookTarget(url="https://example.com/", secret=secret)
    assert len(secret) < 7 or secret not in str(caught.value)


def test_neither_secret_nor_path_is_shown() -> None:
    target = WebhookTarget(url="https://example.com/PATH", secret=SECRET)
    assert repr(target) == "WebhookTarget(events=('alert',))"
    assert target.host == "example.com"
    assert secret_key(SECRET) == bytes(range(32))


@pytest.mark.parametrize("events", [(), ("emotion",), ("alert", "ready")])
def test_events_that_no_webhook_sends_are_refused(events: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="expected one or more of alert, talk_over, summary"):
        WebhookTarget(url="https://example.com/", secret=SECRET, events=events)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timeout_s": 0.0}, "a webhook timeout of 0 s: expected 0.1 to 60 s"),
        ({"timeout_s": float("nan")}, "a webhook timeout of nan s"),
        ({"first_wait_s": 5.0, "max_wait_s": 4.0}, "webhook waits of 5 to 4 s"),
        ({"max_wait_s": 4000.0}, "webhook waits of 1 to 4000 s"),
        ({"max_attempts": 0}, "0 webhook attempts, 1000 queued: expected"),
        ({"max_queued": 0}, "8 webhook attempts, 0 queued: expected"),
        ({"give_up_after_s": -1.0}, "given up after -1 s"),
    ],
)
def test_numbers_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WebhooksConfig(**changes)
