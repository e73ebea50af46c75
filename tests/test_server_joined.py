"""What a server joins: doors, calls, what is kept and shown of them, numbers, webhooks."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
import time
from contextlib import closing, nullcontext
from http.client import HTTPSConnection
from pathlib import Path
from socket import create_server
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import InvalidStatus

from streamer.alerts import AlertRule
from streamer.audio import AudioFormat
from streamer.errors import ConfigError
from streamer.events import Ready, Summary, decode_event
from streamer.records import public_name
from streamer.server import ServerConfig, ServerProcess, run
from streamer.server_command import main
from streamer.store import Store, StoreConfig
from streamer.tokens import new_token
from streamer.webhook_config import WebhooksConfig, WebhookTarget
from tests import audiohook
from tests.receivers import SECRET, receiving
from tests.scorers import FakeScorer, encode_audio, make_card, one_turn
from tests.serving import DEADLINE_S, Running, hear_all, serving, stream, wait_until
from tests.test_server_check import certificate  # noqa: F401 - a fixture

CARD = make_card()
PCM = encode_audio([np.concatenate([one_turn(2.0, 1), one_turn(1.2, 2)])], AudioFormat())


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


def samples(running: Running) -> dict[str, float]:
    """Return what /metrics says."""
    text = running.get("/metrics")[1]
    lines = [line.rpartition(" ") for line in text.splitlines() if line and line[0] != "#"]
    return {name: float(value) for name, _, value in lines}


def test_a_call_is_kept_shown_counted_and_posted(tmp_path: Path) -> None:
    with Store(StoreConfig(path=tmp_path / "calls.db")) as store, receiving() as receiver:
        target = WebhookTarget(url=receiver.url, secret=SECRET, events=("summary",))
        webhooks = WebhooksConfig(targets=(target,))
        with serving(FakeScorer(CARD), kept=store, webhooks=webhooks) as running:
            ready, *_, summary = stream(running, [PCM], "?call_id=theirs")
            assert isinstance(ready, Ready) and isinstance(summary, Summary)
            (call,) = running.get("/v1/calls")[1]["calls"]
            assert call["call_id"] == "theirs" and call["state"] == "ended"
            assert call["session"] == public_name(ready.session) != ready.session
            _, shown = running.get(f"/v1/calls/{call['session']}?events=all")
            assert ready.session not in json.dumps(shown), "nobody else may resume it"
            wait_until(lambda: bool(receiver.received), "the webhook")
            assert receiver.events() == [summary]
            wait_until(lambda: _delivered(running) == 1.0, "the answer is counted")
            found = samples(running)
            assert found['ser_calls_ended_total{dialect="native",reason="end"}'] == 1.0
            assert found["ser_windows_scored_total"] > 5
            assert (found["ser_store_failing"], found["ser_ready"]) == (0.0, 1.0)
            assert "ser_pressure_level" in found and "ser_store_pending_bytes" in found
    assert ready.session.encode() not in (tmp_path / "calls.db").read_bytes()


def _delivered(running: Running) -> float:
    names = (name for name in samples(running) if "ser_webhooks_total" in name)
    (name,) = (name for name in names if 'outcome="delivered"' in name)
    return samples(running)[name]


def test_peers_that_are_refused_are_counted() -> None:
    with serving(FakeScorer(CARD), max_calls=1) as running, running.connect() as first:
        first.send(PCM[:3200])
        first.recv(DEADLINE_S)
        with running.connect() as second:
            second.send(PCM[:3200])
            hear_all(second)
        assert samples(running)['ser_calls_refused_total{reason="busy"}'] == 1.0


def test_an_alert_for_a_label_that_the_model_has_not(log: pytest.LogCaptureFixture) -> None:
    rule = AlertRule(name="bored10", label="bored", probability=0.7, duration_s=10.0)
    config = ServerConfig(port=0, alerts=(rule,))
    assert run(config, lambda: nullcontext(FakeScorer(CARD))) == 2
    assert "bored" in log.text and "Traceback" not in log.text


def test_no_listening_without_the_store(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamer.server_command.configure", lambda **_: None)  # pytest's handlers
    path = tmp_path / "nowhere" / "calls.db"
    with pytest.raises(ConfigError, match="expected a folder"):
        run(
            ServerConfig(port=0, store=StoreConfig(path=path)),
            lambda: nullcontext(FakeScorer(CARD)),
        )
    assert main(["--store", str(path), "--port", "0"]) == 2
    assert str(path) in capsys.readouterr().err
    assert "listening" not in log.text


def tokens_file(folder: Path, **scopes: str) -> tuple[Path, dict[str, str]]:
    path, tokens = folder / "tokens", {}
    lines = []
    for name, scope in scopes.items():
        tokens[name], line = new_token(name, scope.split())  # type: ignore[arg-type]
        lines.append(line)
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o600)
    return path, tokens


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def test_only_who_began_a_call_comes_back_to_it(tmp_path: Path) -> None:
    path, tokens = tokens_file(tmp_path, pbx="send", desk="send watch")
    with serving(FakeScorer(CARD), tokens=path) as running:

        def answer(name: str, session: str) -> Any:
            with running.connect(additional_headers=bearer(tokens[name])) as connection:
                connection.send(json.dumps({"type": "resume", "session": session, "seq": 0}))
                return json.loads(connection.recv(DEADLINE_S))

        with pytest.raises(InvalidStatus):
            running.connect()
        with running.connect(additional_headers=bearer(tokens["pbx"])) as connection:
            connection.send(PCM[:3200])
            ready = decode_event(connection.recv(DEADLINE_S))
            assert isinstance(ready, Ready)
            for name, session in (
                ("desk", public_name(ready.session)),  # what a watcher sees
                ("pbx", public_name(ready.session)),
                ("desk", ready.session),
            ):
                assert answer(name, session)["code"] == "unknown_session"
            assert answer("pbx", ready.session)["type"] == "ack"


def test_a_connection_kept_open_for_later_does_not_delay_the_end(
    certificate: tuple[Path, Path],  # noqa: F811
    log: pytest.LogCaptureFixture,
) -> None:
    context = ssl.create_default_context(cafile=certificate[0])
    with create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        config = ServerConfig(port=port, tls_cert=certificate[0], tls_key=certificate[1])
        process = ServerProcess(config, lambda: nullcontext(FakeScorer(CARD)))
        thread = threading.Thread(target=process.run, args=([listener],))
        thread.start()
        client = HTTPSConnection("localhost", port, timeout=DEADLINE_S, context=context)
        with closing(client):
            client.request("GET", "/healthz")
            assert client.getresponse().read() == b'{"alive":true}'
            process.should_exit = True
            thread.join(DEADLINE_S)
    assert not [record for record in log.records if record.levelno >= logging.ERROR]
    assert "stopped" in log.text


def test_a_dropped_caller_of_another_dialect_is_done(tmp_path: Path) -> None:
    """It cannot come back: what it said is scored and kept at once."""
    with (
        Store(StoreConfig(path=tmp_path / "calls.db")) as store,
        serving(FakeScorer(CARD), kept=store) as running,
    ):
        with running.connect_to("/vosk?sample_rate=16000") as connection:
            connection.send(PCM)
            connection.recv(DEADLINE_S)
            connection.socket.shutdown(socket.SHUT_RDWR)
        wait_until(lambda: running.state()["calls"] == 0, "the call is over")
        (call,) = running.get("/v1/calls?state=ended")[1]["calls"]
        summary = running.get(f"/v1/calls/{call['session']}")[1]["summary"]
    assert call["dialect"] == "vosk" and call["reason"].startswith("disconnected")
    assert summary["channels"][0]["turns"] == 2, "the tail is scored"


def test_pings_in_a_pause_are_signs_of_life() -> None:
    peer = audiohook.Client(audiohook.genesys())
    with (
        serving(FakeScorer(CARD), idle_timeout_s=0.5) as running,
        running.connect_to("/genesys") as connection,
    ):

        def say(kind: str, **parameters: Any) -> str:
            connection.send(json.dumps(peer.message(kind, **parameters)))
            while (told := json.loads(connection.recv(DEADLINE_S))["type"]) == "event":
                pass
            return str(told)

        assert say("open", **audiohook.open_parameters(audiohook.EXTERNAL)) == "opened"
        connection.send(b"\xff" * 1600)
        until_s = time.monotonic() + 1.2  # a pause of more than twice what a silent peer has
        while time.monotonic() < until_s:
            assert say("ping") == "pong"
            threading.Event().wait(0.1)
        assert say("close", reason="end") == "closed"
