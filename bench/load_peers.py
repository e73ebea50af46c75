"""Cheap peers: one asyncio process that is hundreds of calls, every message framed beforehand.

A peer here is no client to copy: its masking key is zero, which masks nothing and costs nothing,
so that one frame serves all calls that say the same. What is measured is the server.
"""

from __future__ import annotations

import asyncio
import base64
import heapq
import json
import socket
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

MESSAGE_S = 0.02
TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9
NATIVE_PATH, TWILIO_PATH, TELNYX_PATH = "/v1/stream", "/twilio", "/telnyx"
OPEN_TIMEOUT_S = 60.0
_KEY = "AAAAAAAAAAAAAAAAAAAAAA=="


def frame(opcode: int, data: bytes) -> bytes:
    """Return one WebSocket frame of a client, RFC 6455 section 5.2, with a masking key of zero."""
    head = bytes([0x80 | opcode])
    if len(data) < 126:
        head += bytes([0x80 | len(data)])
    elif len(data) < 2**16:
        head += b"\xfe" + struct.pack("!H", len(data))
    else:
        head += b"\xff" + struct.pack("!Q", len(data))
    return head + bytes(4) + data


def text(message: dict[str, Any]) -> bytes:
    return frame(TEXT, json.dumps(message).encode())


def request(path: str) -> bytes:
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {_KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()


class Peer(asyncio.Protocol):
    """One WebSocket, from its request on; whoever wants its texts gives ``on_text``.

    ``status`` is the handshake's, ``answer`` all of a refusal; ``close_code`` is None where the
    connection broke.
    """

    def __init__(self, path: str, on_text: Callable[[str], None]) -> None:
        self._path = path
        self._on_text = on_text
        self._received = bytearray()
        self.status = 0
        self.answer = ""
        self.close_code: int | None = None
        self.close_reason = ""
        self.transport: asyncio.Transport | None = None
        self.opened = asyncio.Event()
        self.gone = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(request(self._path))

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self.status and not self._read_head():
            return
        if self.status == 101:
            self._read_frames()

    def connection_lost(self, error: Exception | None) -> None:
        if self.status and self.status != 101:
            self.answer += self._received.decode(errors="replace")
        self.opened.set()
        self.gone.set()

    def send(self, data: bytes) -> None:
        if self.transport is not None and not self.gone.is_set():
            self.transport.write(data)

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _read_head(self) -> bool:
        head, blank, rest = bytes(self._received).partition(b"\r\n\r\n")
        if not blank:
            return False
        self.status = int(head.split(maxsplit=2)[1])
        self._received = bytearray(rest)
        if self.status == 101:
            self.opened.set()
        else:
            self.answer = head.decode() + "\r\n\r\n"
            self.opened.set()
        return True

    def _read_frames(self) -> None:
        data, start = self._received, 0
        while len(data) >= start + 2:
            opcode, length, body = data[start] & 15, data[start + 1], start + 2
            if length == 126:
                length = int.from_bytes(data[body : body + 2])
                body += 2
            elif length == 127:
                length = int.from_bytes(data[body : body + 8])
                body += 8
            if len(data) < body + length:
                break
            self._receive(opcode, bytes(data[body : body + length]))
            start = body + length
        del data[:start]

    def _receive(self, opcode: int, data: bytes) -> None:
        if opcode == TEXT:
            self._on_text(data.decode())
        elif opcode == CLOSE:
            self.close_code = int.from_bytes(data[:2]) if data else 1005
            self.close_reason = data[2:].decode()
            self.send(frame(CLOSE, data[:2]))
            assert self.transport is not None
            self.transport.close()


async def connect(
    port: int, path: str, on_text: Callable[[str], None], *, is_narrow: bool = False
) -> Peer:
    """Return a peer whose handshake is over; its ``status`` says how.

    Where it ``is_narrow``, the kernels hold some 10 kB for a peer that does not read; else they
    would hold megabytes, and the server never notice.

    Raises:
        OSError: nobody listens, or hung up.
        TimeoutError: no answer.
    """
    loop = asyncio.get_running_loop()
    line = socket.socket()
    line.setblocking(False)
    if is_narrow:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    try:
        await loop.sock_connect(line, ("127.0.0.1", port))
    except BaseException:
        line.close()
        raise
    _, peer = await loop.create_connection(lambda: Peer(path, on_text), sock=line)
    async with asyncio.timeout(OPEN_TIMEOUT_S):
        await peer.opened.wait()
        if peer.status != 101:
            await peer.gone.wait()
    return peer


@dataclass(order=True)
class Line:
    """Messages that go to a peer one every 20 ms, the first at ``begin_s`` of the loop's clock."""

    due_s: float
    order: int
    peer: Peer = field(compare=False)
    messages: Sequence[bytes] = field(compare=False)
    begin_s: float = field(compare=False)
    num_sent: int = field(compare=False, default=0)
    is_done: asyncio.Event = field(compare=False, default_factory=asyncio.Event)


class Pacer:
    """Sends what is due, of all lines, from one timer; what is late goes out at once.

    ``max_late_s`` is how late a message went out: the generator's own fault, not the server's.
    """

    def __init__(self) -> None:
        self._lines: list[Line] = []
        self._orders = count()
        self._changed = asyncio.Event()
        self.max_late_s = 0.0

    def play(self, peer: Peer, messages: Sequence[bytes], begin_s: float) -> Line:
        """Begin to send; the time may be past, for what has to be caught up."""
        line = Line(begin_s, next(self._orders), peer, messages, begin_s)
        if messages:
            heapq.heappush(self._lines, line)
            self._changed.set()
        else:
            line.is_done.set()
        return line

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._lines:
                self._changed.clear()
                await self._changed.wait()
            wait_s = self._lines[0].due_s - loop.time()
            # Messages that are due within 2 ms go together: a wake-up costs more than a message.
            await asyncio.sleep(max(wait_s, 0.002))
            now_s = loop.time()
            while self._lines and self._lines[0].due_s <= now_s:
                self._send_due(self._lines[0], now_s)

    def _send_due(self, line: Line, now_s: float) -> None:
        first = line.num_sent
        due = max(first + 1, int((now_s - line.begin_s) / MESSAGE_S) + 1)
        due = min(due, len(line.messages))
        if first:
            self.max_late_s = max(self.max_late_s, now_s - line.due_s)
        line.peer.send(b"".join(line.messages[first:due]))
        line.num_sent = due
        if due == len(line.messages) or line.peer.gone.is_set():
            heapq.heappop(self._lines)
            line.is_done.set()
        else:
            line.due_s = line.begin_s + due * MESSAGE_S
            heapq.heapreplace(self._lines, line)


def pieces(audio: bytes, bytes_per_s: int) -> list[bytes]:
    """Cut audio into 20 ms."""
    size = round(bytes_per_s * MESSAGE_S)
    return [audio[start : start + size] for start in range(0, len(audio), size)]


def native_messages(audio: bytes, bytes_per_s: int) -> list[bytes]:
    """Return a native call's audio; who plays it sends the start and the end."""
    return [frame(BINARY, piece) for piece in pieces(audio, bytes_per_s)]


def native_start(encoding: str, rate: int, step_ms: int, call_id: str | None = None) -> bytes:
    audio = {"encoding": encoding, "sample_rate": rate, "channels": 1}
    start = {"type": "start", "audio": audio, "step_ms": step_ms}
    return text(start if call_id is None else {**start, "call_id": call_id})


NATIVE_END = text({"type": "end"})


def telephone_start(path: str, call_id: str, step_ms: int) -> bytes:
    """Return the first messages of Twilio or Telnyx: one track, mu-law at 8 kHz."""
    if path == TWILIO_PATH:
        start = {
            "streamSid": call_id,
            "callSid": call_id,
            "tracks": ["inbound"],
            "mediaFormat": {"encoding": "audio/x-mulaw", "sampleRate": 8000, "channels": 1},
            "customParameters": {"step_ms": str(step_ms)},
        }
        return text({"event": "connected", "protocol": "Call", "version": "1.0.0"}) + text(
            {"event": "start", "start": start, "streamSid": call_id}
        )
    start = {
        "call_control_id": call_id,
        "media_format": {"encoding": "PCMU", "sample_rate": 8000, "channels": 1},
        "custom_parameters": {"step_ms": str(step_ms)},
    }
    return text({"event": "connected", "version": "1.0.0"}) + text(
        {"event": "start", "start": start, "stream_id": call_id}
    )


def telephone_messages(
    path: str, call_id: str, audio: bytes, jump_ms: Callable[[int], int] = lambda number: 0
) -> list[bytes]:
    """Return mu-law audio as Twilio's or Telnyx's messages; ``jump_ms`` sets their clock wrong."""
    id_name = "streamSid" if path == TWILIO_PATH else "stream_id"
    return [
        text(
            {
                "event": "media",
                id_name: call_id,
                "media": {
                    "track": "inbound",
                    "chunk": str(number + 1),
                    "timestamp": str(max(0, 20 * number + jump_ms(number))),
                    "payload": base64.b64encode(piece).decode(),
                },
            }
        )
        for number, piece in enumerate(pieces(audio, 8000))
    ]


def telephone_stop(path: str, call_id: str) -> bytes:
    id_name = "streamSid" if path == TWILIO_PATH else "stream_id"
    return text({"event": "stop", id_name: call_id, "stop": {}})
