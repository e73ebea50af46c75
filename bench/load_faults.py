"""Peers that know no manners: broken handshakes, broken frames, those who vanish, do not read."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

from bench.load_peers import (
    BINARY,
    CLOSE,
    NATIVE_PATH,
    PING,
    TELNYX_PATH,
    TEXT,
    TWILIO_PATH,
    Pacer,
    connect,
    frame,
    request,
    telephone_start,
    text,
)

_MAX_AT_ONCE = 50
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


async def break_handshakes(port: int, number: int, seed: int) -> Counter[str]:
    """Break so many handshakes, fifty at a time; return the answers' first words, counted."""
    answers: Counter[str] = Counter()
    numbers = iter(range(number))

    async def some() -> None:
        for one in numbers:
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
    """Begin to speak live, and break the connection in the middle of it."""
    chooser = random.Random(seed)
    loop = asyncio.get_running_loop()
    peer = await connect(port, NATIVE_PATH, lambda text: None)
    line = pacer.play(peer, messages[: chooser.randrange(1, len(messages))], loop.time())
    await line.is_done.wait()
    peer.abort()
