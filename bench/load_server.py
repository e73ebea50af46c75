"""`ser-serve` in a process of its own, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.serving import ServerUnderTest

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


@contextmanager
def ser_serve(*options: str) -> Iterator[Server]:
    """Run `ser-serve`; kill what is left of it at the end."""
    command = [sys.executable, "-c", _PROGRAM, "--provider", "cpu", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
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
