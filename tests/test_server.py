"""The process: its limits, its readiness, its beginning and its end."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from streamer.audio import AudioFormat
from streamer.call import Call, CallConfig
from streamer.drivers import recognize
from streamer.errors import ConfigError
from streamer.events import Emotion, Error, Event, Summary, Turn, decode_event
from streamer.server import ServerConfig, ServerProcess, create_app, run, serve
from tests.scorers import FakeScorer, assert_same_events, encode_audio, make_card, tone_speech
from tests.serving import DEADLINE_S, Running, hear_all, serving, stream, wait_until

CARD = make_card()
PCM = encode_audio([np.concatenate([tone_speech(3.0), np.zeros(16000, np.float32)])], AudioFormat())
"""A turn of three seconds, and its end."""


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "streamer.server")
    return caplog


def local_events(pcm: bytes, config: CallConfig | None = None) -> list[Event]:
    return list(recognize(Call(CARD, config or CallConfig()), [pcm], FakeScorer(CARD)))


def test_too_many_calls_are_refused_in_words() -> None:
    with serving(FakeScorer(CARD), max_calls=1) as running:
        with running.connect() as first, running.connect() as second:
            first.send(PCM[:3200])
            first.recv(DEADLINE_S)
            second.send(PCM[:3200])  # who comes back is not refused: that is told by the first word
            (error,) = hear_all(second)
            assert isinstance(error, Error) and error.code == "busy"
            assert error.message == "no room for a call, the limit is 1: try again in 10 s"
            assert second.close_code == 1013
            assert running.get("/readyz")[0] == 503
            assert running.state()["reason"] == "busy"
        wait_until(lambda: running.state()["ready"], "the place is free again")
        stream(running, [PCM])


def test_a_server_that_is_not_ready_says_so() -> None:
    loaded = threading.Event()

    def load() -> Any:
        loaded.wait(DEADLINE_S)
        return nullcontext(FakeScorer(CARD))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        running = Running(listener.getsockname()[1])
        process = ServerProcess(ServerConfig(), load)
        thread = threading.Thread(target=process.run, args=([listener],))
        thread.start()
        assert running.get("/healthz")[0] == 200
        assert running.get("/readyz")[0] == 503
        with running.connect() as connection:
            (error,) = hear_all(connection)
        assert isinstance(error, Error) and error.code == "not_ready"
        assert connection.close_code == 1013
        loaded.set()
        wait_until(lambda: running.get("/readyz")[0] == 200, "the server is ready")
        process.should_exit = True
        thread.join(DEADLINE_S)


def test_under_a_server_of_ones_own() -> None:
    config = uvicorn.Config(create_app(FakeScorer(CARD)), ws="websockets-sansio", log_config=None)
    theirs = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=theirs.run, args=([listener],))
        thread.start()
        assert_same_events(stream(Running(listener.getsockname()[1]), [PCM]), local_events(PCM))
        theirs.should_exit = True
        thread.join(DEADLINE_S)


@pytest.mark.parametrize("path", ["/", "/v1", "/healthz", "/v1/stream/", "/v1/streams?rate=8000"])
def test_a_websocket_elsewhere_is_told_where(path: str) -> None:
    with serving(FakeScorer(CARD)) as running, pytest.raises(InvalidStatus) as caught:
        connect(f"ws://127.0.0.1:{running.port}{path}", proxy=None)
    response = caught.value.response
    assert response.status_code == 404
    assert response.body == b"nothing here: expected the path /v1/stream\n"


def test_a_websocket_elsewhere_under_a_server_without_words_is_closed() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "websocket", "path": "/v1", "headers": [], "query_string": b""}
    asyncio.run(create_app(FakeScorer(CARD))(scope, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]


def test_get_of_what_is_for_websockets_or_not_there() -> None:
    with serving(FakeScorer(CARD)) as running:
        assert running.get("/v1/stream") == (426, "expected a WebSocket here\n")
        assert running.get("/v1")[0] == 404


# Its beginning and its end


def test_a_stopping_server_ends_calls_as_their_peers_would() -> None:
    with serving(FakeScorer(CARD)) as running, running.connect() as connection:
        connection.send(PCM[:64000])
        while not isinstance(decode_event(connection.recv(DEADLINE_S)), Emotion):
            pass
        assert running.process is not None
        running.process.should_exit = True
        *_, turn, summary = hear_all(connection)
        assert isinstance(turn, Turn)
        assert isinstance(summary, Summary) and summary.duration_s == 2.0
        assert (connection.close_code, connection.close_reason) == (1001, "stopping")


def test_stopping_does_not_wait_for_ever(log: pytest.LogCaptureFixture) -> None:
    scorer = FakeScorer(CARD, answer="held")
    with serving(scorer, drain_timeout_s=0.2) as running, running.connect() as connection:
        connection.send(PCM[:64000])
        connection.recv(DEADLINE_S)
        wait_until(lambda: scorer.num_held > 0, "a window that nobody scores")
        assert running.process is not None
        running.process.should_exit = True
        hear_all(connection)
    assert "calls_left=1" in log.text
    assert "Traceback" not in log.text


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.1", "::", "example.org", ""])
def test_only_loopback_is_listened_on(host: str) -> None:
    with pytest.raises(ConfigError, match="or a loopback address"):
        ServerConfig(host=host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost"])
def test_loopback(host: str) -> None:
    assert ServerConfig(host=host).host == host


@pytest.mark.parametrize(
    "settings",
    [
        {"port": 65536},
        {"max_calls": 0},
        {"max_calls": 10, "max_connections": 9},
        {"max_message_bytes": 10},
        {"idle_timeout_s": 0.0},
        {"send_timeout_s": float("nan")},
    ],
)
def test_settings_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        ServerConfig(**settings)


def test_a_port_that_is_taken(log: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert serve(ServerConfig(port=port)) == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in log.text


def test_a_model_that_is_missing(log: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    assert serve(ServerConfig(port=0), tmp_path / "missing.onnx", "cpu") == 2
    assert "no model" in log.text
    assert "Traceback" not in log.text


def test_a_model_that_is_bad(log: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    path = tmp_path / "bad.onnx"
    path.write_bytes(b"no model")
    assert serve(ServerConfig(port=0), path, "cpu") == 2
    assert "no model" in log.text
    assert "Traceback" not in log.text


def test_a_fault_while_the_model_is_loaded(log: pytest.LogCaptureFixture) -> None:
    def load() -> Any:
        raise RuntimeError("out of luck")

    assert run(ServerConfig(port=0), load) == 1
    assert "out of luck" in log.text
