"""Two hundred peers that know no manners, all at once, and one good one that must not notice."""

from __future__ import annotations

import json
import math
import random
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from websockets.frames import Frame, Opcode

from streamer.audio import AudioFormat
from streamer.batching import Batcher
from streamer.call import Call, CallConfig
from streamer.drivers import recognize
from streamer.events import Event
from streamer.model import Model
from tests.models import tiny_model
from tests.scorers import assert_same_events, encode_audio, tone_speech
from tests.serving import DEADLINE_S, ServerUnderTest, server_process, stream, wait_until

NUM_PEERS = 200
PCM = encode_audio([np.concatenate([tone_speech(3.0), np.zeros(16000, np.float32)])], AudioFormat())

CHUNKS = [PCM[start : start + 6400] for start in range(0, len(PCM), 6400)]

HANDSHAKE = (
    b"GET /v1/stream%s HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Served(NamedTuple):
    server: ServerUnderTest
    num_files: int
    expected: list[Event]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server in a process of its own, and what it should say of PCM."""
    path = tiny_model(tmp_path_factory.mktemp("model"))
    with Batcher(Model.load(path, provider="cpu")) as scorer:
        expected = list(recognize(Call(scorer.card, CallConfig()), [PCM], scorer))
    settings = {"handshake_timeout_s": 2.0, "idle_timeout_s": 2.0, "resume_timeout_s": 2.0}
    with server_process(path, **settings) as server:
        server.wait_until_ready()
        yield Served(server, server.num_files(), expected)
        assert server.stop() == 0


def frame(opcode: Opcode, data: bytes, *, is_masked: bool = True, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin).serialize(mask=is_masked)


def text(message: object) -> bytes:
    return frame(
        Opcode.TEXT, message if isinstance(message, bytes) else json.dumps(message).encode()
    )


def binary(data: bytes) -> bytes:
    return frame(Opcode.BINARY, data)


def upgraded(*frames: bytes, query: bytes = b"") -> bytes:
    return HANDSHAKE % query + b"".join(frames)


GARBAGE: dict[str, Callable[[random.Random], bytes]] = {
    "nothing": lambda r: b"",
    "half a handshake": lambda r: HANDSHAKE[: r.randrange(1, len(HANDSHAKE) - 6)],
    "random bytes": lambda r: r.randbytes(r.randrange(1, 5000)),
    "a long head": lambda r: b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000,
    "another path": lambda r: HANDSHAKE.replace(b"/v1/stream", b"/" + b"x" * 50) % b"",
    "a bad key": lambda r: HANDSHAKE.replace(b"AAAA==", b"") % b"",
    "a bad query": lambda r: upgraded(binary(PCM), query=b"?rate=%ff&rate=\x7e"),
    "a WebSocket and nothing": lambda r: upgraded(),
    "bad JSON": lambda r: upgraded(text(b"{" * r.randrange(1, 4000))),
    "text that is not UTF-8": lambda r: upgraded(text(b"\xff\xfe\xfd")),
    "wrong types": lambda r: upgraded(text({"type": "start", "audio": [1]})),
    "a wrong rate": lambda r: upgraded(
        text({"type": "start", "audio": {"sample_rate": r.choice([0, 44.1, 10**30, 96000])}})
    ),
    "odd bytes": lambda r: upgraded(binary(PCM[:12345]), text({"type": "end"})),
    "NaN for audio": lambda r: upgraded(
        text({"type": "start", "audio": {"encoding": "pcm_f32le"}}), binary(b"\xff" * 40000)
    ),
    "audio, and gone": lambda r: upgraded(binary(PCM[: r.randrange(len(PCM))])),
    "half a frame": lambda r: upgraded(binary(PCM)[: r.randrange(1, len(PCM))]),
    "a huge frame": lambda r: upgraded(binary(bytes(2**20 + r.randrange(1, 2**20)))),
    "an unmasked frame": lambda r: upgraded(frame(Opcode.BINARY, PCM[:100], is_masked=False)),
    "frames of random bytes": lambda r: upgraded(r.randbytes(10_000)),
    "empty fragments": lambda r: upgraded(
        frame(Opcode.BINARY, b"", fin=False), frame(Opcode.CONT, b"", fin=False) * 5000
    ),
    "empty messages": lambda r: upgraded(binary(b"") * 5000),
    "pings": lambda r: upgraded(frame(Opcode.PING, b"x" * 125) * 5000),
    "a close with a bad code": lambda r: upgraded(frame(Opcode.CLOSE, struct.pack("!H", 1))),
}


def misbehave(port: int, seed: int, everyone: threading.Barrier) -> None:
    """Connect, send garbage of the seed's kind when everyone has connected, and vanish."""
    chooser = random.Random(seed)
    garbage = list(GARBAGE.values())[seed % len(GARBAGE)](chooser)
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as connection:
        everyone.wait(DEADLINE_S)
        head_length = garbage.find(b"\r\n\r\n") + 4 if garbage.startswith(b"GET /v1") else 0
        try:
            if head_length > 4:
                connection.sendall(garbage[:head_length])
                connection.recv(1000)
            connection.sendall(garbage[head_length:])
            match chooser.randrange(3):
                case 0:  # vanish at once, with a reset
                    linger = struct.pack("ii", 1, 0)
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                case 1:  # stay until thrown out, reading
                    while connection.recv(65536):
                        pass
                case _:  # hang up
                    pass
        except ConnectionError:
            pass


def storm(port: int, num_peers: int, seed: int) -> None:
    """Have that many peers misbehave at once; return when all have gone."""
    everyone = threading.Barrier(num_peers)
    threads = [
        threading.Thread(target=misbehave, args=(port, seed + number, everyone), daemon=True)
        for number in range(num_peers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * DEADLINE_S)
        assert not thread.is_alive(), "a peer was not thrown out"


@pytest.mark.parametrize("seed", range(3))
def test_any_cut_gives_the_same_events(served: Served, seed: int) -> None:
    """Law 1, to the far side of a real server: 1 byte to 1 s."""
    chooser, chunks, start = random.Random(seed), [], 0
    while start < len(PCM):
        longest = chooser.choice([1, 641, 32_000])
        end = start + chooser.randrange(1, longest + 1)
        chunks.append(PCM[start:end])
        start = end
    assert_same_events(stream(served.server, chunks), served.expected)


def serve_during_storm(served: Served, seed: int) -> int:
    """Have a good client served as long as two hundred rage; return how often it was."""
    server, expected = served.server, served.expected
    raging = threading.Thread(target=storm, args=(server.port, NUM_PEERS, seed))
    raging.start()
    num_heard = 0
    while raging.is_alive() or num_heard == 0:
        assert_same_events(stream(server, CHUNKS), expected)
        num_heard += 1
    raging.join()
    wait_until(lambda: server.state()["calls"] == 0, "all calls have ended")
    # What is open without a peer, and the connection of the question before, perhaps.
    wait_until(lambda: server.num_files() <= served.num_files + 1, "all sockets are closed")
    return num_heard


def test_the_good_one_does_not_notice(served: Served) -> None:
    server = served.server
    serve_during_storm(served, seed=0)
    num_heard, growth_mib = 0, math.inf
    # Measured after a first storm, because allocators keep what two hundred at once took (105 MiB
    # at the start, 134 after one storm, 136 after eight); and on a busy machine more of them are
    # there at once in one storm than in the one before, now and then. Leaking each peer's call
    # would be 30 MiB in every storm.
    for number in range(1, 5):
        rss_mib = server.rss_mib()
        num_heard += serve_during_storm(served, seed=number * NUM_PEERS)
        growth_mib = server.rss_mib() - rss_mib
        if growth_mib < 10.0:
            break
    assert growth_mib < 10.0
    assert server.get("/healthz") == (200, {"alive": True})
    assert server.state()["ready"]
    log = "\n".join(server.lines)
    assert "Traceback" not in log
    assert "ERROR" not in log
    assert log.count("call end") >= log.count("call start") > num_heard


def test_ctrl_c_ends_a_server(served: Served, tmp_path: Path) -> None:
    with server_process(tiny_model(tmp_path)) as server:
        server.wait_until_ready()
        assert server.stop(signal.SIGINT) == 0
        assert "Traceback" not in "\n".join(server.lines)
