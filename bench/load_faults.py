"""What goes wrong: broken handshakes and frames, peers who vanish or do not read, a bad model."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import shutil
import socket
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from bench.load_peers import (
    BINARY,
    CLOSE,
    NATIVE_END,
    NATIVE_PATH,
    PING,
    TELNYX_PATH,
    TEXT,
    TWILIO_PATH,
    Pacer,
    Peer,
    connect,
    frame,
    native_start,
    request,
    telephone_start,
    text,
)

_MAX_AT_ONCE = 50
_STALL_S = 60.0
_SMALL_DISK_BYTES = 2**28
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: hang up with a reset, which also leaves no port waiting here."""


def _without(line: bytes) -> bytes:
    return b"\r\n".join(one for one in request(NATIVE_PATH).split(b"\r\n") if line not in one)


HANDSHAKES: dict[str, Callable[[random.Random], bytes]] = {
    "nothing": lambda r: b"",
    "half of one": lambda r: request(NATIVE_PATH)[: r.randrange(1, 150)],
    "random bytes": lambda r: r.randbytes(r.randrange(1, 3000)),
    "a long head": lambda r: b"GET / HTTP/1.1\r\nx: " + b"y" * 40_000,
    "another path": lambda r: request(f"/{r.randrange(10**9)}"),
    "no key": lambda r: _without(b"-Key"),
    "a bad key": lambda r: request(NATIVE_PATH).replace(b"AAAA==", b""),
    "no version": lambda r: _without(b"-Version"),
    "no upgrade": lambda r: _without(b"Upgrade: "),
    "a POST": lambda r: request(NATIVE_PATH).replace(b"GET", b"POST"),
    "a bad query": lambda r: request(f"{NATIVE_PATH}?rate={r.randrange(10**6)}x"),
    "TLS": lambda r: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + r.randbytes(500),
    "HTTP/2": lambda r: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + r.randbytes(40),
    "two at once": lambda r: request("/x") + request("/y"),
}


async def break_handshakes(port: int, number: int, seed: int, seconds: float) -> Counter[str]:
    """Break so many handshakes within that time; return the answers' first words, counted.

    Fifty at a time at most, and spread over the time: those who hang up at once would else fill the
    kernel's queue of connections, which it then drops, whoever's they are.
    """
    answers: Counter[str] = Counter()
    numbers = iter(range(number))
    clock = asyncio.get_running_loop().time
    begin_s = clock()

    async def some() -> None:
        for one in numbers:
            await asyncio.sleep(max(0.0, begin_s + seconds * one / number - clock()))
            chooser = random.Random(seed * 1_000_003 + one)
            kind = list(HANDSHAKES.values())[one % len(HANDSHAKES)]
            answers[await _break_handshake(port, kind(chooser), chooser)] += 1

    await asyncio.gather(*(some() for _ in range(min(_MAX_AT_ONCE, number))))
    return answers


async def _break_handshake(port: int, data: bytes, chooser: random.Random) -> str:
    loop = asyncio.get_running_loop()
    with socket.socket() as connection:
        connection.setblocking(False)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        try:
            await loop.sock_connect(connection, ("127.0.0.1", port))
            await loop.sock_sendall(connection, data)
            if chooser.random() < 0.3:
                return "hung up"
            # Half of a handshake gets no answer until its time is over.
            async with asyncio.timeout(0.25):
                answer = await loop.sock_recv(connection, 4096)
        except TimeoutError:
            return "none"
        except OSError:
            return "reset"
    return answer.split(b"\r\n")[0].decode(errors="replace") if answer else "closed"


def _start(path: str) -> bytes:
    return b"" if path == NATIVE_PATH else telephone_start(path, "broken", 250)


def _broken_json(chooser: random.Random) -> bytes:
    """Return a telephone message of which some bytes were changed."""
    message = {"event": "media", "media": {"track": "inbound", "chunk": "1", "payload": "////"}}
    data = bytearray(json.dumps(message).encode())
    for _ in range(chooser.randrange(1, 5)):
        data[chooser.randrange(len(data))] = chooser.randrange(256)
    return frame(TEXT, bytes(data))


FRAMES: dict[str, Callable[[random.Random], bytes]] = {
    "random bytes": lambda r: r.randbytes(r.randrange(1, 5000)),
    "bad JSON": lambda r: frame(TEXT, b"{" * r.randrange(1, 3000)),
    "broken JSON": _broken_json,
    "no UTF-8": lambda r: frame(TEXT, b"\xff\xfe\xfd"),
    "wrong types": lambda r: text({"type": "start", "audio": [r.random()], "event": 1}),
    "a rate": lambda r: text({"type": "start", "audio": {"sample_rate": r.randrange(10**6)}}),
    "a session": lambda r: text({"type": "resume", "session": str(r.random()), "seq": 1}),
    "a huge frame": lambda r: b"\x82\xff" + struct.pack("!Q", r.randrange(2**21, 2**63)) + bytes(9),
    "no mask": lambda r: b"\x82\x05hello",
    "half a frame": lambda r: frame(BINARY, bytes(2000))[: r.randrange(1, 1999)],
    "fragments": lambda r: b"\x02\x80" + bytes(4) + (b"\x00\x80" + bytes(4)) * 5000,
    "empty ones": lambda r: frame(BINARY, b"") * r.randrange(1, 3000),
    "pings": lambda r: frame(PING, r.randbytes(125)) * 2000,
    "a bad close": lambda r: frame(CLOSE, r.randbytes(r.randrange(1, 3))),
    "noise, and gone": lambda r: frame(BINARY, r.randbytes(64_000)),
    "no numbers": lambda r: (
        native_start("pcm_f32le", 16_000, 250) + frame(BINARY, b"\xff" * 40_000)
    ),
    "huge numbers": lambda r: (
        native_start("pcm_f32le", 16_000, 250)
        + frame(BINARY, struct.pack("<f", 10.0 ** r.randrange(3, 38)) * 10_000)
    ),
}


async def break_frames(port: int, number: int, seed: int) -> Counter[int | None]:
    """Open so many WebSockets and send nonsense; return the close codes, counted."""
    codes: Counter[int | None] = Counter()
    numbers = iter(range(number))

    async def some() -> None:
        for one in numbers:
            chooser = random.Random(seed * 1_000_003 + one)
            path = chooser.choice([NATIVE_PATH, TWILIO_PATH, TELNYX_PATH])
            kind = list(FRAMES.values())[one % len(FRAMES)]
            with suppress(OSError):
                peer = await connect(port, path, lambda text: None)
                peer.send(_start(path) + kind(chooser))
                with suppress(TimeoutError):
                    async with asyncio.timeout(chooser.choice([0.05, 0.5])):
                        await peer.gone.wait()
                peer.abort()
                codes[peer.close_code] += 1

    await asyncio.gather(*(some() for _ in range(10)))
    return codes


async def vanish(port: int, pacer: Pacer, messages: list[bytes], seed: int) -> None:
    """Begin to speak live, and in the middle of it be gone; some say nonsense before."""
    chooser = random.Random(seed)
    loop = asyncio.get_running_loop()
    peer = await connect(port, NATIVE_PATH, lambda text: None)
    line = pacer.play(peer, messages[: chooser.randrange(1, len(messages))], loop.time())
    await line.is_done.wait()
    if seed % 2:
        peer.send(chooser.choice(list(FRAMES.values()))(chooser))
        await asyncio.sleep(0.05)
    peer.abort()


async def stall(port: int, pacer: Pacer, messages: list[bytes]) -> None:
    """Speak live and never read, until the server breaks the connection off."""
    peer = await connect(port, NATIVE_PATH, lambda text: None, is_narrow=True)
    assert peer.transport is not None
    peer.transport.pause_reading()
    peer.send(frame(PING, bytes(125)) * 1000)  # whose answers fill what the kernels hold
    line = pacer.play(peer, messages, asyncio.get_running_loop().time())
    await line.is_done.wait()
    async with asyncio.timeout(_STALL_S):
        while not peer.gone.is_set():  # nothing but sending tells who does not read
            peer.send(messages[0])
            await asyncio.sleep(0.1)


async def take_slots(port: int, number: int) -> None:
    """Have so many calls at once, which is all that there may be; the next one is refused."""

    async def begin() -> tuple[Peer, str]:
        heard: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        peer = await connect(port, NATIVE_PATH, lambda text: heard.done() or heard.set_result(text))
        peer.send(native_start("mulaw", 8000, 250))
        async with asyncio.timeout(_STALL_S):
            return peer, await heard

    peers = []
    for start in range(0, number, _MAX_AT_ONCE):
        at_once = min(_MAX_AT_ONCE, number - start)
        peers += await asyncio.gather(*(begin() for _ in range(at_once)))
    assert [json.loads(said)["type"] for _, said in peers] == ["ready"] * number
    _, said = await begin()
    assert json.loads(said).get("code") == "busy", said
    for peer, _ in peers:
        peer.send(NATIVE_END)
    async with asyncio.timeout(_STALL_S):
        await asyncio.gather(*(peer.gone.wait() for peer, _ in peers))


def jump_ms(number: int, message: int) -> int:
    """Return how wrong a telephone's clock is: of every third it is set, back and forth."""
    if number % 3 != 1 or message < 100:
        return 0
    return (-5_000_000, 40_000_000, -1500)[message // 100 % 3]


@contextmanager
def full_disk(pid: int, folder: Path) -> Iterator[None]:
    """Fill a small file system; elsewhere let no file of the process grow beyond a page."""
    if shutil.disk_usage(folder).total <= _SMALL_DISK_BYTES:
        ballast = folder / "ballast"
        with ballast.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass
        try:
            yield
        finally:
            ballast.unlink()
        return
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


NOT_FINITE_ABOVE, FAILS_ABOVE = 15.0, 40.0
"""Of a window's loudest frame, above the mean: speech comes to 5, a hundred times as loud to 57."""


def spoil_model(model: bytes, path: Path) -> None:
    """Write a model that is what it was, but that windows which are too loud get NaN for logits.

    If one of a batch is louder still, the whole run fails, in ONNX Runtime's own words: it looks up
    an element that there is not.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    proto = onnx.load_model_from_string(model)
    graph = proto.graph
    for node in graph.node:
        for at, name in enumerate(node.output):
            if name == "logits":
                node.output[at] = "sound_logits"
    values = {
        "cepstra": np.array(0),
        "nothing": np.zeros(1, np.float32),
        "none": np.array(float("nan"), np.float32),
        "loud": np.array(NOT_FINITE_ABOVE, np.float32),
        "too_loud": np.array(FAILS_ABOVE, np.float32),
    }
    graph.initializer.extend(
        numpy_helper.from_array(value, f"spoil_{name}") for name, value in values.items()
    )
    nodes = (
        ("Gather", ["windows", "spoil_cepstra"], "spoil_1", {"axis": 1}),
        ("Gather", ["spoil_1", "spoil_cepstra"], "spoil_2", {"axis": 1}),
        ("ReduceMax", ["spoil_2"], "spoil_loudness", {"axes": [1], "keepdims": 1}),
        ("Greater", ["spoil_loudness", "spoil_too_loud"], "spoil_fails", {}),
        ("Cast", ["spoil_fails"], "spoil_where", {"to": TensorProto.INT64}),
        ("Gather", ["spoil_nothing", "spoil_where"], "spoil_added", {"axis": 0}),
        ("Greater", ["spoil_loudness", "spoil_loud"], "spoil_is_loud", {}),
        ("Where", ["spoil_is_loud", "spoil_none", "spoil_added"], "spoil_rest", {}),
        ("Add", ["sound_logits", "spoil_rest"], "logits", {}),
    )
    for operator, inputs, output, attributes in nodes:
        graph.node.append(helper.make_node(operator, inputs, [output], **attributes))
    onnx.save(proto, path)
