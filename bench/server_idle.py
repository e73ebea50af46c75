"""What a server costs that hears nobody speak: one idle client and one silent stream.

python bench/server_idle.py [--seconds 20] [--model can.onnx]

The silent stream is room noise at -70 dBFS, 16 kHz, in messages of 20 ms as they would come from
a telephone. `core_share` is the CPU time of the server's process, all threads, over the time that
passed; `ratio` divides it by the CPU time of a fixed loop in Python here, so that machines and busy
hours can be compared. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
from websockets.sync.client import connect

_SERVER = """
import sys
from pathlib import Path
from streamer.server import ServerConfig, serve
path = Path(sys.argv[1]) if sys.argv[1] else None
sys.exit(serve(ServerConfig(port=0, idle_timeout_s=3600.0), path, "cpu"))
"""
_MESSAGE_S = 0.02


def cpu_s(pid: int) -> float:
    """CPU seconds of a process so far, all threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def calibrate() -> float:
    """CPU seconds of a loop of ten million additions: the least of three."""
    times = []
    for _ in range(3):
        start, total = time.process_time(), 0
        for number in range(10_000_000):
            total += number
        times.append(time.process_time() - start)
    return min(times)


def wait_until_ready(url: str) -> None:
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"{url}/readyz", timeout=10):
                return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the server did not become ready within 60 s")


def measure(pid: int, url: str, seconds: float) -> float:
    """Return the share of one core that the server takes."""
    noise = np.random.default_rng(0).normal(0.0, 10 ** (-70 / 20), 16000 * 10)
    pcm = np.rint(noise * 32768).astype("<i2").tobytes()
    size = 2 * round(_MESSAGE_S * 16000)
    with (
        connect(url, compression=None, ping_interval=None),
        connect(url, compression=None, ping_interval=None) as silent,
    ):
        reader = threading.Thread(target=lambda: [None for _ in silent], daemon=True)
        reader.start()
        begin, before = 0.0, 0.0
        num_warm_up = round(1.0 / _MESSAGE_S)
        for number in range(num_warm_up + round(seconds / _MESSAGE_S)):
            if number == num_warm_up:
                begin, before = time.monotonic(), cpu_s(pid)
            start = number * size % len(pcm)
            silent.send(pcm[start : start + size])
            due = begin + (number - num_warm_up + 1) * _MESSAGE_S
            time.sleep(max(0.0, due - time.monotonic()) if begin else _MESSAGE_S)
        return (cpu_s(pid) - before) / (time.monotonic() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--model", default="", help="an ONNX file; the shipped one if not given")
    arguments = parser.parse_args()
    command = [sys.executable, "-c", _SERVER, arguments.model]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            found = None
            for line in server.stderr:
                found = re.search(r"ws://(\S+)/v1/stream", line)
                if found:
                    break
                print(line, end="", file=sys.stderr)
            if not found:
                raise SystemExit("the server did not start")
            threading.Thread(target=server.stderr.read, daemon=True).start()
            wait_until_ready(f"http://{found[1]}")
            calibration_s = calibrate()
            core_share = measure(server.pid, f"ws://{found[1]}/v1/stream", arguments.seconds)
        finally:
            server.terminate()
    print(f"{100 * core_share:.2f} % of a core; the loop takes {calibration_s:.3f} s")
    result = {
        "bench": "server_idle",
        "seconds": arguments.seconds,
        "core_share": round(core_share, 5),
        "calibration_s": round(calibration_s, 4),
        "ratio": round(core_share / calibration_s, 5),
        "target_core_share": 0.02,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
