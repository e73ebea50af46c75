"""What the tests of the clients share: audio, what it comes to, servers made for one test."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from socket import create_server
from typing import Any

import numpy as np
from ser_stream_client import Event as Told
from websockets.sync.server import ServerConnection, serve

from streamer.audio import AudioFormat
from streamer.call import Call, CallConfig
from streamer.events import Event, decode_event
from tests.scorers import encode_audio, hear, make_card, tone_speech
from tests.serving import DEADLINE_S

CARD = make_card()
STEREO = AudioFormat(sample_rate=8000, channels=2)


@lru_cache
def stereo_call() -> bytes:
    """Return 4.5 s of two people at 8 kHz, 16 bits."""
    pause = np.zeros(12_000, np.float32)
    left = np.concatenate([tone_speech(3.0, 1, 8000), pause])
    right = np.concatenate([pause, tone_speech(3.0, 2, 8000)])
    return encode_audio([left, right], STEREO)


def local(audio: AudioFormat, pcm: bytes, *roles: str) -> list[Event]:
    """Return what a call comes to without any server."""
    return hear(Call(CARD, CallConfig(audio=audio, roles=roles)), [pcm])


def decoded(told: Iterable[Told]) -> list[Event]:
    """Return events as types: whatever does not fit them is refused."""
    return [decode_event(json.dumps(event)) for event in told]


def free_url() -> str:
    """Return an address where nobody listens."""
    with create_server(("127.0.0.1", 0)) as listener:
        return f"ws://127.0.0.1:{listener.getsockname()[1]}/v1/stream"


@contextmanager
def peer(handler: Callable[[ServerConnection], None], **settings: Any) -> Iterator[str]:
    """Run a server that does whatever the test wants; its URL."""
    with serve(handler, "127.0.0.1", 0, compression=None, close_timeout=1, **settings) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{running.socket.getsockname()[1]}/v1/stream"
        finally:
            running.shutdown()
            thread.join(DEADLINE_S)
