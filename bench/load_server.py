"""`ser-serve` in a process of its own, and what it costs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.serving import ServerUnderTest

_ROOT = Path(__file__).parents[1]
_PROGRAM = "import sys; from streamer.server_command import main; sys.exit(main(sys.argv[1:]))"


class Server(ServerUnderTest):
    """A running `ser-serve`; more of what its process holds."""

    def num_threads(self) -> int:
        return len(list(Path(f"/proc/{self.running.pid}/task").iterdir()))

    def metric(self, name: str) -> float:
        """Return one number of /metrics; the sum where it has labels."""
        found = [
            float(line.rpartition(" ")[2])
            for line in self.get("/metrics")[1].splitlines()
            if line.startswith((f"{name} ", f"{name}{{"))
        ]
        return sum(found)

    def has_metric(self, name: str, value: float) -> bool:
        """Whether a number of /metrics is this; False where it is not to be had just now."""
        try:
            return self.metric(name) == value
        except OSError:
            return False

    def set_clock(self, ahead_s: float) -> None:
        """Have it take the system's time for so much later than it is; ``inside`` alone."""
        self._ask(f"clock {ahead_s}")

    def count(self) -> dict[str, int]:
        """Return how many tasks, calls, connections and objects there are; ``inside`` alone."""
        return self._ask("count")

    def _ask(self, line: str) -> dict[str, int]:
        assert self.running.stdin is not None and self.running.stdout is not None
        self.running.stdin.write(f"{line}\n")
        self.running.stdin.flush()
        answer: dict[str, int] = json.loads(self.running.stdout.readline())
        return answer


@contextmanager
def ser_serve(*options: str, inside: bool = False) -> Iterator[Server]:
    """Run `ser-serve`; kill what is left of it at the end.

    With ``inside`` it is `bench.load_inside`, whose clock can be set and whose objects be counted.
    """
    program = ["-m", "bench.load_inside"] if inside else ["-c", _PROGRAM]
    command = [sys.executable, *program, "--provider", "cpu", *options]
    pipe = subprocess.PIPE if inside else None
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.PIPE, text=True, cwd=_ROOT
    ) as process:
        assert process.stderr is not None
        server = None
        try:
            server = Server(process, process.stderr)
            server.wait_until_ready()
            yield server
        finally:
            process.kill()
            if server is not None:
                server.stop(9)  # its log has been read to the end
