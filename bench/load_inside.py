"""`ser-serve` in a process whose clock can be set and whose objects can be counted from outside.

Its door stays open: how late it is, is up to the machine; windows are left out, but no call.

Lines on its standard input: ``clock SECONDS`` sets the system's time so much ahead of the right one
for all that is asked of Python's `time.time`, and ``count`` has its objects counted. Each is
answered by a line of JSON on standard output.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import sys
import threading
import time
from collections import Counter
from functools import partial

import streamer.pressure

PASSING = ("Connection", "LiveCall", "Call", "Session", "BoundedHttp", "BoundedWebSocket")
"""What is there for as long as a call or a connection, and no longer."""

_unix_s = time.time
_clock = {"ahead_s": 0.0}


def _count() -> dict[str, int]:
    """Return how many there are of each kind, of tasks those that are not done, and of all."""
    gc.collect()
    objects = gc.get_objects()
    found: Counter[str] = Counter()
    for one in objects:
        kind = type(one)
        if issubclass(kind, asyncio.Task):
            found["Task"] += not one.done()
        elif kind.__name__ in PASSING and kind.__module__.startswith("streamer."):
            found[kind.__name__] += 1
    return {kind: found[kind] for kind in ("Task", *PASSING)} | {"objects": len(objects)}


def _answer(line: str) -> dict[str, int]:
    word, _, value = line.partition(" ")
    if word == "clock":
        _clock["ahead_s"] = float(value)
        return {}
    return _count()


def _listen() -> None:
    rest = b""
    # Not `sys.stdin`: a thread that waits in it holds a lock that a process needs to end.
    while chunk := os.read(0, 4096):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            print(json.dumps(_answer(line.decode())), flush=True)


def main() -> int:
    # Before the server is imported, which takes these for its defaults.
    time.time = lambda: _unix_s() + _clock["ahead_s"]
    streamer.pressure.PressureConfig = partial(  # type: ignore[assignment,misc]
        streamer.pressure.PressureConfig,
        raise_s=(0.4, 0.8, math.inf),
        patience_s=math.inf,
        behind_s=math.inf,
    )
    from streamer.server_command import main as serve

    threading.Thread(target=_listen, daemon=True).start()
    return serve(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
