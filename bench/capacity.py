"""How many live calls one `ser-serve` carries on this machine, and what it does with twice as many.

python -m bench.capacity [--encoding pcm16|mulaw] [--step-ms 250] [--seconds 15] [--start 20]

Calls are paced as they are spoken, in messages of 20 ms, with about 70 % speech, none in step with
another. `lag` is the peer's: from when the message that an emotion or a turn needed was due to when
it came. A number of calls is carried when p95 of it is below 250 ms and no window was left out.
Then twice that load comes: newcomers at twice the rate at which such calls end. Some are refused;
every call that was taken must get all its turns and its summary, in time. The load comes from this
process, on the same machine; its own CPU and lateness are printed. `ratio` is the calls carried
times the CPU time of one model window here, so that machines and busy hours can be compared. The
last line is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from bench.load_peers import (
    MESSAGE_S,
    NATIVE_END,
    NATIVE_PATH,
    TWILIO_PATH,
    Pacer,
    Peer,
    connect,
    native_messages,
    native_start,
    pieces,
)
from bench.load_server import Server, ser_serve
from bench.load_speech import FORMATS, bytes_per_s, conversation, encoded
from streamer.call import Call, CallConfig
from streamer.events import Emotion, Lag, Summary, Turn, decode_event
from streamer.model import Model
from streamer.session import SessionConfig

NUM_VOICES = 8
MAX_LAG_S = 0.25
_SPREAD_S = 3.0
"""Calls of one trial begin within this time."""
_FINISH_S = 60.0


@dataclass(frozen=True)
class Voice:
    """What one caller says: messages, and the turns that must come of it."""

    messages: list[bytes]
    turns: list[tuple[float, float]]
    needed: dict[tuple[str, float], int]
    """How many messages must be heard before an event can be told, by its type and end."""


@dataclass
class Caller:
    """One call, and what it got."""

    voice: Voice
    start: bytes
    begin_s: float
    lags_s: list[float] = field(default_factory=list)
    turns: list[tuple[float, float]] = field(default_factory=list)
    dropped: int = 0
    has_summary: bool = False
    refusal: str = ""
    peer: Peer | None = None

    def hear(self, text: str) -> None:
        if text.startswith('{"type":"ack"'):
            return
        event = decode_event(text)
        match event:
            case Emotion() | Turn():
                self._note_lag(event)
                if isinstance(event, Turn):
                    self.turns.append((event.start_s, event.end_s))
            case Lag():
                self.dropped = max(self.dropped, 1)
            case Summary():
                self.has_summary = True
                self.dropped = sum(channel.dropped for channel in event.channels)
            case _ if getattr(event, "fatal", False):
                self.refusal = event.message  # type: ignore[union-attr]

    async def run(self, port: int, pacer: Pacer) -> None:
        """Call, speak live, hear all."""
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self.begin_s - loop.time())
        self.peer = peer = await connect(port, NATIVE_PATH, self.hear)
        if peer.status != 101:
            self.refusal = peer.answer
            return
        peer.send(self.start)
        self.begin_s = loop.time()
        line = pacer.play(peer, self.voice.messages, self.begin_s)
        await line.is_done.wait()
        peer.send(NATIVE_END)
        with suppress(TimeoutError):  # then its summary is missing
            async with asyncio.timeout(_FINISH_S):
                await peer.gone.wait()
        peer.abort()

    def _note_lag(self, event: Emotion | Turn) -> None:
        kind = type(event).__name__
        needed = self.voice.needed.get((kind, event.end_s))
        if needed is not None:  # a window that another one's absence moved
            due_s = self.begin_s + (needed - 1) * MESSAGE_S
            self.lags_s.append(asyncio.get_running_loop().time() - due_s)

    @property
    def is_final(self) -> bool:
        """Whether nothing that must come is missing."""
        return self.has_summary and self.turns == self.voice.turns


@dataclass(frozen=True)
class Trial:
    """What so many calls came to."""

    num_calls: int
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float
    dropped: int
    refused: int
    lost_finals: int
    server_cores: float
    generator_cores: float
    late_s: float

    @property
    def is_carried(self) -> bool:
        return self.p95_s < MAX_LAG_S and not (self.dropped or self.refused or self.lost_finals)

    def report(self) -> dict[str, Any]:
        times = {
            f"{name}_ms": round(1000 * getattr(self, f"{name}_s"))
            for name in ("p50", "p95", "p99", "max", "late")
        }
        return {
            "calls": self.num_calls,
            **times,
            "dropped_windows": self.dropped,
            "refused": self.refused,
            "lost_finals": self.lost_finals,
            "server_cores": round(self.server_cores, 3),
            "generator_cores": round(self.generator_cores, 3),
        }


class Bench:
    """The trials of one server."""

    def __init__(self, server: Server, voices: list[Voice], start: bytes) -> None:
        self._server = server
        self._voices = voices
        self._start = start
        self.words: dict[str, str] = {}
        """What newcomers were told when there was no room."""

    async def trial(self, num_calls: int, *, spread_s: float = _SPREAD_S) -> Trial:
        """Run calls that begin within some time to their ends; the figures are of those taken."""
        pacer = Pacer()
        pacing = asyncio.create_task(pacer.run())
        loop = asyncio.get_running_loop()
        begin_s, server_s, own_s = loop.time(), self._server.cpu_s(), time.process_time()
        callers = [
            self._caller(number, begin_s + 0.1 + spread_s * number / num_calls)
            for number in range(num_calls)
        ]
        async with asyncio.TaskGroup() as running:
            tasks = [running.create_task(one.run(self._server.port, pacer)) for one in callers]
            while not self.words and not all(task.done() for task in tasks):
                if any(caller.refusal for caller in callers):
                    self.words = await _refusals(self._server.port)
                await asyncio.sleep(0.1)
        passed_s = loop.time() - begin_s
        taken = [caller for caller in callers if not caller.refusal]
        lags_s = [lag_s for caller in taken for lag_s in caller.lags_s] or [0.0]
        p50, p95, p99 = np.percentile(lags_s, (50, 95, 99))
        trial = Trial(
            num_calls=len(taken),
            p50_s=float(p50),
            p95_s=float(p95),
            p99_s=float(p99),
            max_s=max(lags_s),
            dropped=sum(caller.dropped for caller in taken),
            refused=len(callers) - len(taken),
            lost_finals=sum(not caller.is_final for caller in taken),
            server_cores=(self._server.cpu_s() - server_s) / passed_s,
            generator_cores=(time.process_time() - own_s) / passed_s,
            late_s=pacer.max_late_s,
        )
        pacing.cancel()
        await self._calm_down()
        return trial

    def _caller(self, number: int, begin_s: float) -> Caller:
        return Caller(self._voices[number % len(self._voices)], self._start, begin_s)

    async def _calm_down(self) -> None:
        """Wait until nothing of a trial is left: its calls, and what the server thinks of them."""
        for _ in range(600):
            status, state = await asyncio.to_thread(self._server.get, "/readyz")
            if status == 200 and not state["calls"]:
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(1.0)  # a level of pressure may last a little longer than its calls

    async def search(self, start: int, tolerance: float) -> Trial:
        """Return the trial of the largest number of calls that is carried."""
        best, failed, num_calls = None, None, start
        while True:
            trial = await self.trial(num_calls)
            print(("carried " if trial.is_carried else "too many"), trial.report(), flush=True)
            if trial.is_carried:
                best = trial
            else:
                failed = num_calls
            low = best.num_calls if best else 0
            if failed is not None and failed - low <= max(1, round(tolerance * failed)):
                assert best is not None, "not one call is carried"
                return best
            num_calls = 2 * num_calls if failed is None else (low + failed) // 2


async def _refusals(port: int) -> dict[str, str]:
    """Return what newcomers of both kinds are told now."""
    told: list[str] = []
    native = await connect(port, NATIVE_PATH, told.append)
    native.send(native_start("pcm_s16le", 16000, 250))
    async with asyncio.timeout(5.0):
        await native.gone.wait()
    telephone = await connect(port, TWILIO_PATH, told.append)
    return {
        "native": f"{native.close_code} {native.close_reason}: {told[0] if told else ''}",
        "telephone": " ".join(telephone.answer.split()),
    }


def make_voices(seconds: float, encoding: str, step_ms: int, model: Model) -> list[Voice]:
    audio = FORMATS[encoding]
    logits = np.zeros(len(model.card.labels), np.float32)
    voices = []
    for seed in range(NUM_VOICES):
        data = encoded(conversation(seconds, seed), audio)
        call = Call(
            model.card, CallConfig(audio=audio, session=SessionConfig(step_s=step_ms / 1000))
        )
        turns, needed = [], {}
        heard = pieces(data, bytes_per_s(audio))
        for number in range(1, len(heard) + 1):
            call.receive(heard[number - 1], 0.0)
            for window in call.windows_to_score():
                call.receive_scores(window, logits)  # when and whether do not depend on scores
            for event in call.events_to_send(0.0):
                if isinstance(event, Emotion | Turn):
                    needed[type(event).__name__, event.end_s] = number
                if isinstance(event, Turn):
                    turns.append((event.start_s, event.end_s))
        voices.append(Voice(native_messages(data, bytes_per_s(audio)), turns, needed))
    return voices


def window_ms(model: Model) -> float:
    """Return the CPU time of one window, the least of 20 calls of the model with one."""
    window = np.zeros((1, *model.card.input_shape), np.float32)
    times = []
    for _ in range(20):
        before = time.process_time()
        model.score(window)
        times.append(time.process_time() - before)
    return 1000 * min(times)


def machine() -> str:
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    name = found[1] if found else platform.machine()
    return f"{name}, {os.cpu_count()} cores"


async def measure(arguments: argparse.Namespace, server: Server, model: Model) -> dict[str, Any]:
    audio = FORMATS[arguments.encoding]
    voices = make_voices(arguments.seconds, arguments.encoding, arguments.step_ms, model)
    start = native_start(audio.encoding, audio.sample_rate, arguments.step_ms)
    bench = Bench(server, voices, start)
    await bench.trial(2)  # warm up
    best = await bench.search(arguments.start, arguments.tolerance)
    # Twice as many at a time, if all were taken, for twice as long as a call takes.
    twice = await bench.trial(4 * best.num_calls, spread_s=2 * arguments.seconds)
    print("twice   ", twice.report(), flush=True)
    for peer, sentence in bench.words.items():
        print(f"refused  {peer}: {sentence}")
    yardstick_ms = window_ms(model)
    return {
        "bench": "capacity",
        "machine": machine(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "encoding": arguments.encoding,
        "step_ms": arguments.step_ms,
        "calls": best.num_calls,
        "lag_ms": {name: best.report()[f"{name}_ms"] for name in ("p50", "p95", "p99", "max")},
        "core_share_per_call": round(best.server_cores / best.num_calls, 5),
        "window_cpu_ms": round(yardstick_ms, 3),
        "ratio": round(best.num_calls * yardstick_ms / 1000, 4),
        "at_capacity": best.report(),
        "at_twice": twice.report() | {"words": bench.words},
        "target_lost_finals": 0,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoding", choices=FORMATS, default="pcm16")
    parser.add_argument("--step-ms", type=int, default=250)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each call")
    parser.add_argument("--start", type=int, default=20, help="calls of the first trial")
    parser.add_argument("--tolerance", type=float, default=0.1, help="of the number of calls")
    parser.add_argument("--option", action="append", default=[], help="one more of ser-serve")
    arguments = parser.parse_args()
    model = Model.load(None, provider="cpu")
    options = ["--port", "0", "--no-store", "--max-calls", "2000", *arguments.option]
    with ser_serve(*options) as server:
        result = uvloop.run(measure(arguments, server, model))
    print(json.dumps(result))
    if result["at_twice"]["lost_finals"]:
        raise SystemExit("finals were lost")


if __name__ == "__main__":
    main()
