"""A server's worst day: everything that goes wrong, at once, around calls that must not notice.

python -m bench.chaos [--calls 60] [--seconds 20] [--handshakes 10000] [--storms 4] [--speech DIR]

Live calls in three dialects go on while handshakes and frames are broken, peers vanish or do not
read, telephones' clocks jump, and the disk under the store is full for a while. Then the same
number of calls, in the middle of which the server is killed and started anew. Each call must come
to what it comes to with no server and nobody else; where windows were left out for lack of time, to
the same turns; a killed one comes back and says what is missing. At the end no slot, thread or file
may be left over, and memory grow no more. The last line is one JSON object; a fault is a traceback.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import socket
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from bench.load_callers import Caller, Said
from bench.load_faults import break_frames, break_handshakes, vanish
from bench.load_peers import NATIVE_PATH, TELNYX_PATH, TWILIO_PATH, Pacer, native_messages
from bench.load_server import Server, ser_serve
from bench.load_speech import FORMATS, bytes_per_s, conversation, encoded, undisturbed
from streamer.batching import Batcher
from streamer.events import Gap
from streamer.kept import KeptFile
from streamer.model import Model

_NUM_VOICES = 4
_RESUME_S = 6.0
_CALM_S = 60.0
_WARM_STORMS = 1
"""Storms after which memory is what it is going to be: allocators keep what a first one took."""


@dataclass(frozen=True, kw_only=True)
class ChaosConfig:
    """How bad a day it is. ``max_slope_mib`` bounds what a storm adds to the server's memory."""

    calls: int = 60
    seconds: float = 20.0
    step_ms: int = 250
    handshakes: int = 10_000
    frames: int = 300
    vanishing: int = 20
    storms: int = 4
    speech: Path | None = None
    max_slope_mib: float = 4.0


@dataclass(frozen=True)
class Phase:
    """What one of the day's hours came to."""

    name: str
    calls: int
    equal: int
    overloaded: int
    resumed: int
    rss_mib: float
    files: int
    threads: int
    late_ms: int


class Day:
    """One store, one port, and the processes that come after one another on them."""

    def __init__(self, config: ChaosConfig, folder: Path) -> None:
        self.config = config
        self.kept = KeptFile(folder / "calls.db")
        self.phases: list[Phase] = []
        self.gaps: list[Gap] = []
        self.answers: dict[str, int] = {}
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        self._num_callers = 0
        with Batcher(Model.load(None, provider="cpu"), num_workers=1) as scorer:
            self._said = {name: self._say(name, scorer) for name in FORMATS}

    def _say(self, name: str, scorer: Batcher) -> list[Said]:
        audio, config = FORMATS[name], self.config
        found = []
        for seed in range(_NUM_VOICES):
            data = encoded(conversation(config.seconds, seed, config.speech), audio)
            found.append(Said(audio, data, undisturbed(data, audio, scorer, config.step_ms)))
        return found

    def serving(self) -> Any:
        """Return the next process, to be entered."""
        return ser_serve(
            *("--port", str(self._port), "--store", str(self.kept.path), "--max-calls", "500"),
            *("--resume-timeout-s", str(_RESUME_S), "--handshake-timeout-s", "3"),
        )

    def callers(self, *, all_read: bool) -> list[Caller]:
        """Return half native ones, of which some may not read for long, half telephones."""
        found = []
        for number in range(self.config.calls):
            path = (NATIVE_PATH, TWILIO_PATH, NATIVE_PATH, TELNYX_PATH)[number % 4]
            format_name = "pcm16" if path == NATIVE_PATH and number % 8 else "mulaw"
            self._num_callers += 1
            found.append(
                Caller(
                    call_id=f"call-{self._num_callers}",
                    path=path,
                    said=self._said[format_name][number // 4 % _NUM_VOICES],
                    step_ms=self.config.step_ms,
                    reads=all_read or number % 16 != 2,
                    goes_back=number % 3 != 0,
                    jump_ms=partial(_jump_ms, number),
                )
            )
        return found

    # Its hours

    async def storm(self, server: Server, seed: int) -> None:
        """Everything but a kill, while calls go on."""
        config, pacer, callers = self.config, Pacer(), self.callers(all_read=False)
        pacing = asyncio.create_task(pacer.run())
        noise = native_messages(self._said["pcm16"][0].data, bytes_per_s(FORMATS["pcm16"]))
        async with asyncio.TaskGroup() as running:
            self._begin(running, callers, pacer)
            running.create_task(self._fill_disk(server))
            broken = running.create_task(break_handshakes(self._port, config.handshakes, seed))
            running.create_task(break_frames(self._port, config.frames, seed))
            for number in range(config.vanishing):
                running.create_task(vanish(self._port, pacer, noise, seed + number))
        self.answers = dict(broken.result().most_common())
        pacing.cancel()
        await self._check(server, callers, "storm", pacer)

    async def kill(self, stack: ExitStack, server: Server) -> Server:
        """Kill the process with all its calls in the middle; return the next one."""
        pacer, callers = Pacer(), self.callers(all_read=True)
        pacing = asyncio.create_task(pacer.run())
        async with asyncio.TaskGroup() as running:
            self._begin(running, callers, pacer)
            await asyncio.sleep(0.55 * self.config.seconds)
            await asyncio.to_thread(server.stop, 9)
            server = await asyncio.to_thread(stack.enter_context, self.serving())
        pacing.cancel()
        await self._check(server, callers, "kill -9", pacer)
        return server

    def _begin(self, running: asyncio.TaskGroup, callers: list[Caller], pacer: Pacer) -> None:
        async def call(caller: Caller, wait_s: float) -> None:
            await asyncio.sleep(wait_s)
            await caller.run(self._port, pacer)

        for number, caller in enumerate(callers):
            running.create_task(call(caller, 2.0 * number / len(callers)))

    async def _fill_disk(self, server: Server) -> None:
        """Let no file grow beyond a page for a while, which is a full disk to the store."""
        pid, seconds = server.running.pid, self.config.seconds
        await asyncio.sleep(0.3 * seconds)
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            await asyncio.sleep(0.3 * seconds)
            failing = await asyncio.to_thread(server.metric, "ser_store_failing")
            assert failing == 1, "the store did not notice that its disk is full"
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    async def _check(self, server: Server, callers: list[Caller], name: str, pacer: Pacer) -> None:
        await self._calm_down(server)
        resumed = [caller for caller in callers if caller.was_cut_off and caller.is_native]
        ended = {
            caller.call_id: caller.fetch(self.kept) for caller in callers if not caller.is_native
        }
        for caller in callers:
            if not caller.was_cut_off:
                caller.check()
                assert caller.close_code == 1000, (caller.call_id, caller.close_code)
            elif not caller.is_native:
                assert ended[caller.call_id] == "server_restart", ended[caller.call_id]
        self.gaps += [caller.check_resumed() for caller in resumed]
        assert name != "kill -9" or resumed, "nobody was killed"
        whole = [caller for caller in callers if not caller.was_cut_off and caller.reads]
        overloaded = sum(caller.is_overloaded for caller in whole)
        phase = Phase(
            name,
            calls=len(callers),
            equal=len(whole) - overloaded,
            overloaded=overloaded,
            resumed=len(resumed),
            rss_mib=round(server.rss_mib(), 1),
            files=server.num_files(),
            threads=server.num_threads(),
            late_ms=round(1000 * pacer.max_late_s),
        )
        self.phases.append(phase)
        print(phase, flush=True)

    async def _calm_down(self, server: Server) -> None:
        """Wait until every call has ended and is kept."""
        async with asyncio.timeout(_CALM_S):
            while True:
                status, state = await asyncio.to_thread(server.get, "/readyz")
                pending = await asyncio.to_thread(server.metric, "ser_store_pending_bytes")
                is_kept = pending == 0 and not self.kept.unfinished()
                if status == 200 and not state["calls"] and is_kept:
                    break
                await asyncio.sleep(0.2)
        assert await asyncio.to_thread(server.metric, "ser_calls_live") == 0


def _jump_ms(number: int, message: int) -> int:
    """Return how wrong a telephone's clock is: of every third it is set, back and forth."""
    if number % 3 != 1 or message < 100:
        return 0
    return (-5_000_000, 40_000_000, -1500)[message // 100 % 3]


def _slope_mib(phases: list[Phase]) -> float:
    """Return what a storm adds to the memory of the process that was there after the kill."""
    sizes = [phase.rss_mib for phase in phases][_WARM_STORMS:]
    return float(np.polyfit(range(len(sizes)), sizes, 1)[0]) if len(sizes) > 1 else 0.0


async def _live(config: ChaosConfig, folder: Path) -> dict[str, Any]:
    day = await asyncio.to_thread(Day, config, folder)
    with ExitStack() as stack:
        server = await asyncio.to_thread(stack.enter_context, day.serving())
        await day.storm(server, seed=0)
        killed_after = len(day.phases)
        server = await day.kill(stack, server)
        files, threads = server.num_files(), server.num_threads()
        for seed in range(1, config.storms):
            await day.storm(server, seed)
        after = day.phases[killed_after:]
        slope_mib = _slope_mib(after)
        log = "\n".join(server.lines)
        assert after[-1].files <= files + 4, "files are left open"
        assert after[-1].threads <= threads + 2, "threads are left over"
        assert slope_mib < config.max_slope_mib, f"{slope_mib:.1f} MiB more each storm"
        assert "Traceback" not in log, log
        status = await asyncio.to_thread(server.stop)
        assert status == 0, status
    checked = [phase for phase in day.phases if phase.equal + phase.overloaded]
    return {
        "bench": "chaos",
        "phases": [asdict(phase) for phase in day.phases],
        "equal": sum(phase.equal for phase in checked),
        "overloaded": sum(phase.overloaded for phase in checked),
        "resumed": len(day.gaps),
        "gap_s": [round(gap.end_s - gap.start_s, 2) for gap in day.gaps],
        "answers_to_broken_handshakes": day.answers,
        "rss_slope_mib_per_storm": round(slope_mib, 2),
    }


def live_through(config: ChaosConfig) -> dict[str, Any]:
    """Live through such a day; return what came of it.

    Raises:
        AssertionError: a call, a file, or memory suffered.
    """
    with tempfile.TemporaryDirectory() as folder:
        return uvloop.run(_live(config, Path(folder)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("calls", "seconds", "step_ms", "handshakes", "frames", "vanishing", "storms"):
        default = getattr(ChaosConfig, name)
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--speech", type=Path, help="folder of real speech, **/*.flac")
    print(json.dumps(live_through(ChaosConfig(**vars(parser.parse_args())))))


if __name__ == "__main__":
    main()
