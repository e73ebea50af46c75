"""A server's worst day: everything that goes wrong, at once, around calls that must not notice.

python -m bench.chaos [--calls 60] [--seconds 20] [--handshakes 10000] [--storms 6] [--speech DIR]

Live calls in three dialects go on while handshakes and frames are broken, peers vanish or do not
read, windows fail and spoil their batch, telephones' clocks and the system's time jump, and the
disk under the store is full for a while. After some such storms the same number of calls, in the
middle of which the server is killed and started anew. Each call must come to what it comes to with
no server and nobody else, and be kept so; where windows were left out for lack of time, the others
and the turns must be the same; a killed one comes back and says what is missing. At the end every
slot is free, no task, connection, thread or file is left over, and memory grows no more. The last
line is one JSON object; a fault is a traceback.

A full disk is a limit on the size of files; with --folder on a small file system it is a real one:

unshare -Urm sh -c 'mount -t tmpfs -o size=16m none /mnt && python -m bench.chaos --folder /mnt'
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import socket
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from bench.load_callers import NUM_VOICES, Caller, Said, most_at_once, what_is_said
from bench.load_faults import (
    break_frames,
    break_handshakes,
    full_disk,
    jump_ms,
    stall,
    take_slots,
    vanish,
)
from bench.load_inside import PASSING
from bench.load_peers import NATIVE_PATH, TELNYX_PATH, TWILIO_PATH, Pacer, native_messages
from bench.load_server import Server, ser_serve
from bench.load_speech import FORMATS, bytes_per_s
from streamer.events import Gap
from streamer.kept import CallFilter, KeptFile
from tests.serving import wait_until

_MAX_CALLS = 300
_RESUME_S = 2.0
_RESTART_S = 20.0
"""What callers have to come back: a process must be there anew and have loaded its model."""
_CALM_S = 120.0
_CLOCK_S = 10 * 86_400.0


@dataclass(frozen=True, kw_only=True)
class ChaosConfig:
    """How bad a day it is.

    ``max_slope_mib`` bounds what a storm adds to the server's memory, ``max_slope_objects`` what it
    adds to its Python objects, after ``warm_storms`` in which allocators and caches fill.
    """

    calls: int = 60
    seconds: float = 20.0
    step_ms: int = 250
    poisoned: int = 4
    handshakes: int = 10_000
    frames: int = 300
    vanishing: int = 20
    stalling: int = 4
    storms: int = 6
    warm_storms: int = 2
    speech: Path | None = None
    folder: Path | None = None
    max_slope_mib: float = 4.0
    max_slope_objects: float = 200.0


@dataclass(frozen=True)
class Phase:
    """What one of the day's hours came to."""

    name: str
    live: int
    equal: int
    overloaded: int
    dropped: int
    ended: int
    resumed: int
    rss_mib: float
    files: int
    threads: int
    left: dict[str, int]
    late_ms: int


@dataclass
class Day:
    """One store, one port, and the processes that come after one another on them."""

    config: ChaosConfig
    folder: Path
    said: dict[str, list[Said]]
    phases: list[Phase] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    closes: Counter[int | None] = field(default_factory=Counter)
    num_callers: int = 0

    def __post_init__(self) -> None:
        self.kept = KeptFile(self.folder / "calls.db")
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]

    def serving(self, resume_timeout_s: float = _RESUME_S) -> AbstractContextManager[Server]:
        """Return the next process, to be entered."""
        return ser_serve(
            *("--port", str(self._port), "--store", str(self.kept.path)),
            *("--model", str(self.folder / "spoilt.onnx"), "--max-calls", str(_MAX_CALLS)),
            *("--resume-timeout-s", str(resume_timeout_s), "--send-timeout-s", "3"),
            *("--handshake-timeout-s", "5"),
            inside=True,
        )

    def callers(self) -> list[Caller]:
        """Return half native ones and half telephones, of which every third has a wrong clock."""
        found = []
        for number in range(self.config.calls):
            path = (NATIVE_PATH, TWILIO_PATH, NATIVE_PATH, TELNYX_PATH)[number % 4]
            name = "pcm16" if path == NATIVE_PATH and number % 8 else "mulaw"
            caller = self._caller(path, self.said[name][number // 4 % NUM_VOICES])
            caller.jump_ms = partial(jump_ms, number)
            caller.goes_back = number % 3 != 0
            found.append(caller)
        return found

    def _caller(self, path: str, said: Said) -> Caller:
        self.num_callers += 1
        return Caller(f"call-{self.num_callers}", path, said, self.config.step_ms)

    # Its hours

    async def storm(self, server: Server, seed: int) -> None:
        """Everything but a kill, while calls go on."""
        config, pacer, callers = self.config, Pacer(), self.callers()
        for caller in callers[2::16]:
            caller.reads = False
        for number in range(config.poisoned):
            poison = self.said["poison"]
            callers.append(self._caller(NATIVE_PATH, poison[number % len(poison)]))
        pacing = asyncio.create_task(pacer.run())
        noise = native_messages(self.said["pcm16"][0].data, bytes_per_s(FORMATS["pcm16"]))
        async with asyncio.TaskGroup() as running:
            self._begin(running, callers, pacer)
            running.create_task(self._fill_disk(server))
            running.create_task(self._turn_clock(server))
            broken = running.create_task(
                break_handshakes(self._port, config.handshakes, seed, config.seconds)
            )
            closed = running.create_task(break_frames(self._port, config.frames, seed))
            for number in range(config.vanishing):
                running.create_task(vanish(self._port, pacer, noise, seed + number))
            for _ in range(config.stalling):
                running.create_task(stall(self._port, pacer, noise))
        self.answers += broken.result()
        self.closes += closed.result()
        pacing.cancel()
        await self._check(server, callers, "storm", pacer)
        assert min(caller.passed_s for caller in callers) < 0.5 * -_CLOCK_S, "no clock was turned"
        await asyncio.to_thread(server.set_clock, 0.0)

    async def kill(self, stack: ExitStack, server: Server) -> Server:
        """Kill the process with all its calls in the middle; return the next one.

        Each call has begun on the disk, too: who is killed before that is known to nobody.
        """
        pacer, callers = Pacer(), self.callers()
        pacing = asyncio.create_task(pacer.run())
        async with asyncio.TaskGroup() as running:
            self._begin(running, callers, pacer)
            await asyncio.sleep(0.55 * self.config.seconds)
            await asyncio.to_thread(wait_until, partial(self._has_all, callers), "all are kept")
            await asyncio.to_thread(server.stop, 9)
            serving = self.serving(_RESTART_S)
            server = await asyncio.to_thread(stack.enter_context, serving)
        pacing.cancel()
        await self._check(server, callers, "kill -9", pacer)
        assert self.phases[-1].resumed, "nobody was killed"
        return server

    def _has_all(self, callers: list[Caller]) -> bool:
        return all(self.kept.calls(CallFilter(call_id=one.call_id), 1) for one in callers)

    def _begin(self, running: asyncio.TaskGroup, callers: list[Caller], pacer: Pacer) -> None:
        async def call(caller: Caller, wait_s: float) -> None:
            await asyncio.sleep(wait_s)
            await caller.run(self._port, pacer)

        for number, caller in enumerate(callers):
            running.create_task(call(caller, 2.0 * number / len(callers)))

    async def _turn_clock(self, server: Server) -> None:
        """Set the system's time wrong, by days: forwards, then backwards, where it stays."""
        for ahead_s in (_CLOCK_S, -_CLOCK_S):
            await asyncio.sleep(0.25 * self.config.seconds)
            await asyncio.to_thread(server.set_clock, ahead_s)

    async def _fill_disk(self, server: Server) -> None:
        """Let there be no room on the disk from when the store notices it on, for a while."""
        seconds = self.config.seconds
        await asyncio.sleep(0.3 * seconds)
        with full_disk(server.running.pid, self.folder):
            await asyncio.to_thread(
                wait_until,
                partial(server.has_metric, "ser_store_failing", 1.0),
                "the store notices that its disk is full",
                _CALM_S,
            )
            await asyncio.sleep(0.3 * seconds)

    async def _check(self, server: Server, callers: list[Caller], name: str, pacer: Pacer) -> None:
        await self._calm_down(server)
        for caller in callers:
            caller.fetch(self.kept)
        cut_off = [caller for caller in callers if caller.was_cut_off]
        whole = [caller for caller in callers if not caller.was_cut_off]
        assert name == "kill -9" or not cut_off, "calls were cut off, and nobody was killed"
        for caller in whole:
            caller.check()
        gaps = [caller.check_resumed() for caller in cut_off if caller.is_native]
        for caller in cut_off:
            if not caller.is_native:
                caller.check_ended()
        self.gaps += gaps
        overloaded = [caller for caller in whole if caller.is_overloaded]
        phase = Phase(
            name,
            live=most_at_once(callers),
            equal=len(whole) - len(overloaded),
            overloaded=len(overloaded),
            dropped=sum(caller.num_dropped for caller in overloaded),
            ended=len(cut_off) - len(gaps),
            resumed=len(gaps),
            rss_mib=round(server.rss_mib(), 1),
            files=server.num_files(),
            threads=server.num_threads(),
            left=await asyncio.to_thread(server.count),
            late_ms=round(1000 * pacer.max_late_s),
        )
        self.phases.append(phase)
        print(phase, flush=True)

    def slopes(self) -> tuple[float, float]:
        """Return how many MiB and how many objects a storm adds to the first process."""
        storms = [phase for phase in self.phases if phase.name == "storm"]
        warm = storms[self.config.warm_storms :]
        sizes_mib, numbers = [one.rss_mib for one in warm], [one.left["objects"] for one in warm]
        return slope(sizes_mib), slope(numbers)

    async def take_slots(self, server: Server) -> None:
        """Have as many calls at once as there may be: no slot is lost."""
        await take_slots(self._port, _MAX_CALLS)
        await self._calm_down(server)

    async def _calm_down(self, server: Server) -> None:
        """Wait until every call has ended and is kept, and nothing of it is left."""
        left: dict[str, int] = {}
        async with asyncio.timeout(_CALM_S):
            while True:
                status, state = await asyncio.to_thread(server.get, "/readyz")
                pending = await asyncio.to_thread(server.metric, "ser_store_pending_bytes")
                is_kept = pending == 0 and not self.kept.unfinished()
                left = await asyncio.to_thread(server.count)
                is_left = any(left[kind] for kind in PASSING)
                if status == 200 and not state["calls"] and is_kept and not is_left:
                    break
                await asyncio.sleep(0.2)
        assert await asyncio.to_thread(server.metric, "ser_calls_live") == 0
        status, found = await asyncio.to_thread(server.get, "/v1/calls?limit=500")
        assert status == 200 and found["calls"], found


def _check_log(server: Server) -> None:
    """None of the faults is one of ours."""
    log = "\n".join(server.lines)
    assert "Traceback" not in log, log
    assert "reason=internal" not in log, log
    errors = [line for line in server.lines if " ERROR " in line]
    assert all("store cannot be written" in line for line in errors), errors


def _check_met(server: Server, day: Day) -> None:
    """Each fault was met: windows failed in both ways, a disk was full, peers did not read."""
    log = "\n".join(server.lines)
    for words in ("failed to score 1 windows", "nan, nan", "store writes again"):
        assert words in log, (words, log)
    num_stalling = day.config.stalling * day.config.storms
    assert log.count("reason=slow_reader") >= num_stalling, log
    assert day.answers.total() == day.config.handshakes * day.config.storms
    assert not any(" 500 " in answer or " 503 " in answer for answer in day.answers), day.answers


def slope(sizes: Sequence[float]) -> float:
    """Return what a storm adds."""
    return float(np.polyfit(range(len(sizes)), sizes, 1)[0]) if len(sizes) > 1 else 0.0


def _check_left(day: Day) -> None:
    """What a storm leaves behind is what the one before it left."""
    first, last, config = day.phases[0], day.phases[-1], day.config
    slope_mib, slope_objects = day.slopes()
    print(f"{slope_mib:+.2f} MiB a storm, {slope_objects:+.0f} objects a storm", flush=True)
    assert last.left["Task"] <= first.left["Task"], "tasks are left over"
    assert last.files <= first.files + 2, "files are left open"
    assert last.threads <= first.threads + 2, "threads are left over"
    assert slope_mib < config.max_slope_mib, [phase.rss_mib for phase in day.phases]
    assert slope_objects < config.max_slope_objects, [phase.left for phase in day.phases]


async def _live(config: ChaosConfig, folder: Path) -> dict[str, Any]:
    words = folder, config.seconds, config.step_ms, config.speech
    day = Day(config, folder, await asyncio.to_thread(what_is_said, *words))
    with ExitStack() as stack:
        server = await asyncio.to_thread(stack.enter_context, day.serving())
        for seed in range(config.storms):
            await day.storm(server, seed)
        await day.take_slots(server)
        _check_left(day)
        _check_met(server, day)
        slope_mib, slope_objects = day.slopes()
        restarted = await day.kill(stack, server)
        _check_log(server)
        await day.take_slots(restarted)
        status = await asyncio.to_thread(restarted.stop)
        assert status == 0, status
        _check_log(restarted)
    return {
        "bench": "chaos",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "phases": [asdict(phase) for phase in day.phases],
        "equal": sum(phase.equal for phase in day.phases),
        "overloaded": sum(phase.overloaded for phase in day.phases),
        "resumed": len(day.gaps),
        "gap_s": sorted(round(gap.end_s - gap.start_s, 2) for gap in day.gaps),
        "answers_to_broken_handshakes": dict(day.answers.most_common()),
        "closes_after_broken_frames": {str(code): n for code, n in day.closes.most_common()},
        "rss_slope_mib_per_storm": round(slope_mib, 2),
        "objects_slope_per_storm": round(slope_objects),
    }


def live_through(config: ChaosConfig) -> dict[str, Any]:
    """Live through such a day; return what came of it.

    Raises:
        AssertionError: a call, a file, or memory suffered.
    """
    with tempfile.TemporaryDirectory(dir=config.folder) as folder:
        return uvloop.run(_live(config, Path(folder)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ChaosConfig()
    for name, value in asdict(default).items():
        if isinstance(value, int | float):
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--speech", type=Path, help="folder of real speech, **/*.flac")
    parser.add_argument("--folder", type=Path, help="where the store lies; a small file system")
    print(json.dumps(live_through(ChaosConfig(**vars(parser.parse_args())))))


if __name__ == "__main__":
    main()
