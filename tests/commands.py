"""ser-stream as a process, and what it says."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEADLINE_S = 60
"""What a slow machine may take to start a command; nothing here waits this long when it works."""


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def types(text: str) -> list[str]:
    return [event["type"] for event in events(text)]


def command(*arguments: str) -> list[str]:
    """Return what runs ser-stream from this checkout, installed or not."""
    program = "import sys; from streamer.cli import main_stream; sys.exit(main_stream())"
    return [sys.executable, "-c", program, *arguments]


def start(*arguments: str, **streams: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command(*arguments), cwd=ROOT, **streams)


def on_terminal(
    arguments: Sequence[str], *, typed: bytes = b"", **environment: str
) -> tuple[int, str]:
    """Run ser-stream with a terminal of 80 x 24; return its exit code and what it drew."""
    leader, follower = pty.openpty()
    surroundings = {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24", "LC_ALL": "C.UTF-8"}
    kept = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    streams = {"stdin": follower, "stdout": follower, "stderr": follower}
    with start(*arguments, **streams, env={**kept, **surroundings, **environment}) as process:
        os.close(follower)
        os.write(leader, typed)
        drawn = read_terminal(leader)
        code = process.wait(DEADLINE_S)
    os.close(leader)
    return code, drawn


def read_terminal(leader: int) -> str:
    content, deadline_s = b"", time.monotonic() + DEADLINE_S
    while select.select([leader], [], [], max(0.0, deadline_s - time.monotonic()))[0]:
        try:
            more = os.read(leader, 65_536)
        except OSError:  # how Linux says that nobody holds the other end
            return content.decode()
        if not more:
            return content.decode()
        content += more
    raise AssertionError(f"still running after {DEADLINE_S} s: {content.decode()}")
