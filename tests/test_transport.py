"""What is bounded: peers that say nothing, read nothing, or say more than can be scored."""

from __future__ import annotations

import logging
import socket
import threading

import numpy as np
import pytest
from websockets.frames import Frame, Opcode

from streamer.audio import AudioFormat
from streamer.events import Summary
from tests.scorers import FakeScorer, encode_audio, make_card, tone_speech
from tests.serving import DEADLINE_S, Running, hear_all, serving, stream, wait_until

CARD = make_card()
PCM = encode_audio([np.concatenate([tone_speech(3.0), np.zeros(16000, np.float32)])], AudioFormat())
"""A turn of three seconds, and its end."""


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "streamer.server")
    return caplog


def raw(running: Running, data: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", running.port), DEADLINE_S)
    connection.sendall(data)
    return connection


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET /v1/stream HTTP/1.1\r\nHost: localhost\r\nUpgrade: webso",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",  # and nothing more: no keep-alive for ever
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /he",
        b"\x16\x03\x01\x02\x00\x01\x00",  # TLS
    ],
)
def test_half_a_handshake_is_dropped(data: bytes) -> None:
    with serving(FakeScorer(CARD), handshake_timeout_s=0.3) as running:
        with raw(running, data) as connection:
            while connection.recv(1000):
                pass
        assert running.get("/healthz") == (200, {"alive": True})


def test_too_many_connections_are_refused() -> None:
    with (
        serving(FakeScorer(CARD), max_calls=1, max_connections=2) as running,
        raw(running),
        raw(running),
        raw(running) as third,
    ):
        assert third.recv(1000).startswith(b"HTTP/1.1 503 ")


def websocket_frames(running: Running, path: str = "/v1/stream") -> socket.socket:
    """Return a raw socket after the handshake, with small buffers."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(DEADLINE_S)
    connection.connect(("127.0.0.1", running.port))
    connection.sendall(
        b"GET " + path.encode() + b" HTTP/1.1\r\nHost: localhost\r\n"
        b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    assert connection.recv(4096).startswith(b"HTTP/1.1 101 ")
    return connection


def binary_frame(data: bytes) -> bytes:
    return Frame(Opcode.BINARY, data).serialize(mask=True)


def test_reading_stops_while_scoring_does() -> None:
    """Nothing is lost, either, and the peer is not taken for silent meanwhile."""
    audio = AudioFormat(encoding="pcm_f32le", sample_rate=48000, channels=2)
    voice = tone_speech(2.0, rate=48000)
    message = encode_audio([voice, voice], audio)  # 768 kB
    scorer = FakeScorer(CARD, answer="held")
    with (
        serving(scorer, idle_timeout_s=0.5, receive_buffer_bytes=262_144) as running,
        running.connect("?encoding=pcm_f32le&rate=48000&channels=2") as connection,
    ):
        connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        num_sent = 0

        def send() -> None:
            nonlocal num_sent
            for _ in range(30):
                connection.send(message)
                num_sent += 1
            connection.send('{"type":"end"}')

        sender = threading.Thread(target=send)
        sender.start()
        sender.join(2.0)
        assert sender.is_alive(), "23 MB were taken while nothing was scored"
        assert scorer.num_submitted < 40  # 32 may be out, and what one slice adds
        # Four seconds, the message that they end in, and what the kernel's buffers hold.
        assert num_sent < 12
        releasing = threading.Thread(target=release_while, args=(scorer, sender))
        releasing.start()
        events = hear_all(connection)
        sender.join(DEADLINE_S)
        releasing.join(DEADLINE_S)
    assert isinstance(events[-1], Summary)
    assert events[-1].duration_s == 60.0
    assert events[-1].channels[0].dropped == 0


def release_while(scorer: FakeScorer, sender: threading.Thread) -> None:
    """Answer windows as long as audio is sent, and the last ones."""
    num_idle = 0
    while sender.is_alive() or num_idle < 100:
        num_idle = 0 if scorer.release() else num_idle + 1
        sender.join(0.005) if sender.is_alive() else threading.Event().wait(0.005)


def test_a_peer_that_does_not_read_is_closed(log: pytest.LogCaptureFixture) -> None:
    with (
        serving(
            FakeScorer(CARD),
            send_buffer_bytes=4096,
            send_timeout_s=0.5,
            handshake_timeout_s=0.5,
            resume_timeout_s=0.0,
        ) as running,
        websocket_frames(running) as connection,
    ):
        sent = threading.Thread(target=send_until_refused, args=(connection,), daemon=True)
        sent.start()
        wait_until(lambda: "reason=slow_reader" in log.text, "the slow reader is given up")
        assert running.state()["calls"] == 0
        sent.join(DEADLINE_S)
        assert not sent.is_alive(), "its connection is still open"


def send_until_refused(connection: socket.socket) -> None:
    frame = binary_frame(PCM[:32000])
    with pytest.raises(OSError):
        while True:
            connection.sendall(frame)


@pytest.mark.parametrize("path", ["/v1/stream", "/v1/watch"])
def test_a_stopping_server_drops_who_does_not_read(
    path: str, log: pytest.LogCaptureFixture
) -> None:
    with serving(
        FakeScorer(CARD), send_buffer_bytes=4096, send_timeout_s=3600.0, drain_timeout_s=0.5
    ) as running:
        connection = websocket_frames(running, path)
        if path == "/v1/stream":
            for _ in range(30):  # more than a hundred events; both buffers hold some twenty
                connection.sendall(binary_frame(PCM[:32000]))
            assert running.process is not None
            hub = running.process.service.hub
            wait_until(lambda: [call.duration_s for call in hub.calls()] == [30.0], "it is heard")
        else:
            stream(running, [PCM] * 50)
    with connection, pytest.raises(ConnectionError):  # no time-out: it was dropped
        while True:
            connection.sendall(binary_frame(bytes(100)))
    assert "Traceback" not in log.text
