from __future__ import annotations

import asyncio
import json
import logging
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from streamer.errors import ConfigError
from streamer.events import Emotion, TalkOver, event_schema
from streamer.records import CallObserver
from streamer.webhook_config import WebhooksConfig, WebhookTarget
from streamer.webhooks import Clocks, WebhookObserver, Webhooks, WebhookState, sign
from tests.receivers import (
    DEADLINE_S,
    RECORD,
    SECRET,
    SUMMARY,
    FakeClocks,
    Receiver,
    alert,
    config,
    receiving,
    send_one,
    until,
    with_webhooks,
)

DOCS = Path(__file__).resolve().parent.parent / "docs" / "alerts.md"

# What is sent


def test_the_signature_is_that_of_standard_webhooks() -> None:
    """Its reference libraries test with this message."""
    assert (
        sign(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1614265330,
            b'{"test": 2432232314}',
        )
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


def test_an_alert_arrives_signed() -> None:
    with receiving() as receiver:
        state = send_one(receiver)
    ((headers, body),) = receiver.received
    message = json.loads(body)
    assert headers["webhook-id"] == message["id"] and message["id"].startswith("msg_")
    assert headers["webhook-timestamp"] == "1700000000"
    assert headers["webhook-signature"] == sign(SECRET, message["id"], 1_700_000_000, body)
    assert headers["content-type"] == "application/json"
    assert headers["user-agent"].startswith("ser-stream/")
    assert message["time"] == 1_700_000_000
    assert message["call"] == {
        "session": "0f" * 16,
        "call_id": "2024-17",
        "dialect": "twilio",
        "roles": ["customer", "agent"],
        "started_at": 1_700_000_000.25,
    }
    jsonschema.Draft202012Validator(event_schema()).validate(message["event"])
    assert receiver.events() == [alert()]
    assert state == (f"127.0.0.1:{receiver.port}", 0, 1, 0, 0)


def test_each_url_gets_the_events_that_it_asks_for() -> None:
    with receiving() as one, receiving() as other:
        settings = WebhooksConfig(
            targets=(
                WebhookTarget(url=one.url, secret=SECRET),
                WebhookTarget(url=other.url, secret=SECRET, events=("summary", "talk_over")),
            )
        )

        async def use(webhooks: Webhooks) -> None:
            observer: CallObserver = WebhookObserver(webhooks)
            observer.call_started(RECORD)
            emotion = Emotion(
                start_s=0, end_s=1, label="sad", scores={}, raw={}, speech=1, warming_up=True
            )
            for event in (emotion, alert(), TalkOver(start_s=1, end_s=2), alert(8), SUMMARY):
                observer.event(RECORD, event)
            observer.call_ended(RECORD, "end")

        with_webhooks(settings, use)
    assert one.events() == [alert(), alert(8)]
    assert other.events() == [TalkOver(start_s=1, end_s=2), SUMMARY]


# What is tried again


@pytest.mark.parametrize("failure", [0, 408, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(failure: int) -> None:
    hours = FakeClocks()
    with receiving(failure, failure, failure) as receiver:
        state = send_one(receiver, hours)
    assert state[1:] == (0, 1, 3, 0)
    assert hours.waits == [1.0, 2.0, 4.0]
    assert len({headers["webhook-id"] for headers, _ in receiver.received}) == 1
    stamps = [int(headers["webhook-timestamp"]) for headers, _ in receiver.received]
    assert [stamp - 1_700_000_000 for stamp in stamps] == [0, 1, 3, 7]
    for headers, body in receiver.received:
        stamp = int(headers["webhook-timestamp"])
        assert headers["webhook-signature"] == sign(SECRET, headers["webhook-id"], stamp, body)


@pytest.mark.parametrize("failure", [301, 302, 307, 400, 401, 404, 410])
def test_what_will_not_pass_is_given_up_and_no_redirect_is_followed(failure: int) -> None:
    with receiving() as elsewhere, receiving((failure, {"location": elsewhere.url})) as receiver:
        state = send_one(receiver)
        assert elsewhere.received == []
    assert state[1:] == (0, 0, 0, 1)
    assert len(receiver.received) == 1


def test_nobody_there_is_tried_again() -> None:
    with receiving() as gone:
        pass
    hours = FakeClocks()
    assert send_one(gone, hours, max_attempts=3)[1:] == (0, 0, 2, 1)
    assert hours.waits == [1.0, 2.0]


def test_attempts_are_bounded() -> None:
    hours = FakeClocks()
    with receiving(*[500] * 20) as receiver:
        state = send_one(receiver, hours, max_wait_s=10.0)
    assert state[1:] == (0, 0, 7, 1)
    assert len(receiver.received) == 8
    assert hours.waits == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


def test_time_is_bounded() -> None:
    hours = FakeClocks()
    with receiving(*[500] * 20) as receiver:
        send_one(receiver, hours, give_up_after_s=7.0)
    assert hours.waits == [1.0, 2.0, 4.0]


def test_waits_are_shorter_by_up_to_half() -> None:
    hours = FakeClocks(random=1.0)
    with receiving(500, 500) as receiver:
        send_one(receiver, hours)
    assert hours.waits == [0.5, 1.0]


@pytest.mark.parametrize(
    ("value", "wait_s"),
    [
        ("30", 30.0),
        ("0", 1.0),
        ("soon", 1.0),
        ("-5", 1.0),
        (formatdate(1_700_000_045, usegmt=True), 45.0),
        (formatdate(1_600_000_000, usegmt=True), 1.0),
    ],
)
def test_a_receiver_may_ask_for_a_longer_wait(value: str, wait_s: float) -> None:
    hours = FakeClocks()
    with receiving((429, {"retry-after": value})) as receiver:
        state = send_one(receiver, hours)
    assert hours.waits == [wait_s] and state.num_delivered == 1


def test_a_receiver_that_asks_for_too_long_a_wait_is_given_up() -> None:
    hours = FakeClocks()
    with receiving((503, {"retry-after": "9" * 30})) as receiver:
        assert send_one(receiver, hours).num_given_up == 1
    assert hours.waits == []


def test_a_receiver_that_does_not_answer_in_time_is_tried_again() -> None:
    with receiving() as receiver:
        receiver.is_open.clear()
        state = send_one(receiver, timeout_s=0.1, max_attempts=2)
    assert state[1:] == (0, 0, 1, 1)


def test_a_large_answer_is_not_read() -> None:
    with receiving() as receiver:
        receiver.body = bytes(2**24)
        assert send_one(receiver).num_delivered == 1


# Nobody waits for anybody


def test_a_slow_receiver_holds_up_nobody_and_its_oldest_messages_go() -> None:
    with receiving() as slow, receiving() as quick:
        slow.is_open.clear()

        async def use(webhooks: Webhooks) -> None:
            webhooks.send(RECORD, alert(0))
            await until(lambda: len(slow.received) == 1)
            for seq in range(1, 11):
                webhooks.send(RECORD, alert(seq))
                await until(lambda: webhooks.state[1].num_delivered == seq + 1)  # noqa: B023
            assert webhooks.state[0] == (f"127.0.0.1:{slow.port}", 3, 0, 0, 7)
            slow.is_open.set()

        states = with_webhooks(config(slow.url, quick.url, max_queued=3), use)
    assert [event.seq for event in quick.events()] == list(range(11))
    assert [event.seq for event in slow.events()] == [0, 8, 9, 10]
    assert [state[1:] for state in states] == [(0, 4, 0, 7), (0, 11, 0, 0)]


def test_a_poisoned_message_does_not_stop_the_next() -> None:
    """Whatever fails in an attempt, as a clock does here, is that message's alone."""
    readings = iter([1.0, 1.0, float("nan"), 1.0])

    async def run() -> WebhookState:
        with receiving() as receiver:
            webhooks = Webhooks(config(receiver.url), clocks=Clocks(unix_s=lambda: next(readings)))
            webhooks.send(RECORD, alert(1))
            webhooks.send(RECORD, alert(2))
            await webhooks.aclose(DEADLINE_S)
            assert [event.seq for event in receiver.events()] == [2]
            return webhooks.state[0]

    assert asyncio.run(run())[1:] == (0, 1, 0, 1)


# The end


def test_what_is_left_is_tried_at_once_at_the_end() -> None:
    hours = FakeClocks(waits_for_ever=True)
    with receiving(500, 500) as receiver:

        async def use(webhooks: Webhooks) -> None:
            for seq in range(3):
                webhooks.send(RECORD, alert(seq))
            await until(lambda: hours.waits == [1.0])

        (state,) = with_webhooks(config(receiver.url), use, hours)
    # The first is tried once more, and fails; the others are tried for the first time.
    assert [event.seq for event in receiver.events()] == [0, 0, 1, 2]
    assert state[1:] == (0, 2, 1, 1)


def test_the_end_does_not_wait_for_a_slow_receiver() -> None:
    async def run(receiver: Receiver) -> WebhookState:
        webhooks = Webhooks(config(receiver.url))
        for seq in range(3):
            webhooks.send(RECORD, alert(seq))
        await until(lambda: len(receiver.received) == 1)
        started_s = time.monotonic()
        await webhooks.aclose(0.1)
        assert time.monotonic() - started_s < 5.0, "the receiver would have taken 20 s"
        webhooks.send(RECORD, alert(3))
        await webhooks.aclose(0.1)
        return webhooks.state[0]

    with receiving() as receiver:
        receiver.is_open.clear()
        assert asyncio.run(run(receiver))[1:] == (0, 0, 0, 4)


def test_no_task_is_left() -> None:
    with receiving() as receiver:

        async def use(webhooks: Webhooks) -> None:
            before = asyncio.all_tasks()
            webhooks.send(RECORD, alert())
            assert len(asyncio.all_tasks() - before) == 1
            await until(lambda: asyncio.all_tasks() == before)
            assert webhooks.state[0].num_delivered == 1

        with_webhooks(config(receiver.url), use)


def test_logs_tell_neither_secret_nor_path(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with receiving(500, 404) as receiver:
        send_one(receiver)
    assert f"webhook to 127.0.0.1:{receiver.port} given up: msg_" in caplog.text
    assert "attempt 2: HTTP 404" in caplog.text
    assert "PATH" not in caplog.text and SECRET not in caplog.text


# Configuration that only the machine can judge


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ca_file": Path("no/such/file.pem")}, "expected certificates"),
        ({"ca_file": Path(__file__)}, "expected certificates"),
        ({"proxy": "nonsense"}, "a webhook proxy that is none: expected http://HOST:PORT"),
    ],
)
def test_what_cannot_be_used_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Webhooks(config("https://example.com/", **changes))


def test_certificates_are_checked(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        f"-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}",
        shell=True,
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def run(ca_file: Path | None) -> tuple[int, int]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as server:
            port = server.sockets[0].getsockname()[1]
            url = f"https://127.0.0.1:{port}/"
            webhooks = Webhooks(config(url, ca_file=ca_file, max_attempts=1))
            webhooks.send(RECORD, alert())
            await webhooks.aclose(DEADLINE_S)
            return webhooks.state[0].num_delivered, webhooks.state[0].num_given_up

    assert asyncio.run(run(certificate)) == (1, 0)
    assert asyncio.run(run(None)) == (0, 1)


# What the documentation tells receivers to do


def snippet(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    return found[1]


def delivery() -> tuple[dict[str, str], bytes]:
    with receiving() as receiver:
        send_one(receiver, FakeClocks(now_s=time.time()))
    return receiver.received[0]


Verify = Callable[[Mapping[str, str], bytes, str], bool]


def verify_in_python(headers: Mapping[str, str], body: bytes, secret: str) -> bool:
    names: dict[str, Any] = {}
    exec(snippet("python"), names)
    verified: bool = names["is_genuine"](headers, body, secret)
    return verified


def verify_in_node(headers: Mapping[str, str], body: bytes, secret: str) -> bool:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    call = f"isGenuine({json.dumps(dict(headers))}, Buffer.from({body.hex()!r}, 'hex'), {secret!r})"
    done = subprocess.run(
        ["node", "--input-type=module", "-e", f"{snippet('js')}\nconsole.log({call})"],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return {"true\n": True, "false\n": False}[done.stdout]


@pytest.mark.parametrize("verify", [verify_in_python, verify_in_node])
def test_receivers_can_verify_as_the_documentation_says(verify: Verify) -> None:
    headers, body = delivery()
    other = "whsec_" + "A" * 40
    old = str(int(headers["webhook-timestamp"]) - 400)
    stale = {
        **headers,
        "webhook-timestamp": old,
        "webhook-signature": sign(SECRET, headers["webhook-id"], int(old), body),
    }
    assert verify(headers, body, SECRET)
    assert not verify(headers, body + b" ", SECRET)
    assert not verify(headers, body, other)
    assert not verify({**headers, "webhook-id": "msg_1"}, body, SECRET)
    assert not verify(stale, body, SECRET)
    rotated = f"v1,{'A' * 43}= {headers['webhook-signature']}"
    assert verify({**headers, "webhook-signature": rotated}, body, SECRET)
    assert not verify({**headers, "webhook-signature": "v1,short"}, body, SECRET)
