"""A real PortAudio microphone on a machine that has none, and a loudspeaker before it.

A PulseAudio of its own, in a folder of its own, with a null sink whose monitor is the default
source. Only processes that are given ``environment`` hear it: neither the test process nor the
machine is changed.
"""

from __future__ import annotations

import ctypes.util
import glob
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import pytest

from streamer.call import Call, CallConfig, Chunk
from streamer.drivers import recognize
from streamer.events import encode_event
from streamer.microphone import Microphone, list_devices
from tests.scorers import FakeScorer, make_card

ROOT = Path(__file__).resolve().parents[1]
LISTENING = "listening"

NO_MICROPHONE = "NO VIRTUAL MICROPHONE, so this was not tested"
_PACKAGES = "libportaudio2 pulseaudio pulseaudio-utils libasound2-plugins"
_START_S = 20.0

# The first line keeps the definition of type `pulse`, which a file alone would not know.
_ALSA = """\
</usr/share/alsa/alsa.conf>
pcm.!default { type pulse }
ctl.!default { type pulse }
"""


def missing_packages() -> str:
    """Return why there can be no virtual microphone here; empty where there can be one."""
    tools = [tool for tool in ("pulseaudio", "pactl", "paplay") if shutil.which(tool) is None]
    plugin = "alsa-lib/libasound_module_pcm_pulse.so"
    found = {
        **dict.fromkeys(tools, False),
        "libportaudio": ctypes.util.find_library("portaudio") is not None,
        "ALSA's pulse plugin": bool(
            glob.glob(f"/usr/lib*/{plugin}") + glob.glob(f"/usr/lib*/*/{plugin}")
        ),
    }
    missing = ", ".join(name for name, is_there in found.items() if not is_there)
    return f"{NO_MICROPHONE}: found no {missing}; expected {_PACKAGES}" if missing else ""


class VirtualMicrophone:
    """Runs from ``with`` to the end of the block; skips the test where packages are missing."""

    def __enter__(self) -> VirtualMicrophone:
        if reason := missing_packages():
            pytest.skip(reason)
        # A short path: a socket's name may have 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="mic"))
        socket = self._folder / "native"
        alsa = self._folder / "asound.conf"
        alsa.write_text(_ALSA)
        self._log = (self._folder / "log").open("w+b")
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith("PULSE_")
        } | {
            "HOME": str(self._folder),
            "XDG_RUNTIME_DIR": str(self._folder),
            "PULSE_RUNTIME_PATH": str(self._folder),
            "PULSE_STATE_PATH": str(self._folder),
        }
        self._daemon = subprocess.Popen(
            [
                "pulseaudio",
                "--daemonize=no",
                "--exit-idle-time=-1",
                "--log-target=stderr",
                "-n",
                f"--load=module-native-protocol-unix auth-anonymous=1 socket={socket}",
                "--load=module-null-sink sink_name=virt rate=16000 channels=1",
                "--load=module-remap-source master=virt.monitor source_name=virtmic",
            ],
            env=self.environment,
            stdout=self._log,
            stderr=self._log,
        )
        self.environment |= {
            "PULSE_SERVER": f"unix:{socket}",
            "PULSE_SOURCE": "virtmic",
            "ALSA_CONFIG_PATH": str(alsa),
        }
        try:
            self._wait_until_it_answers()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop()

    def play(self, path: Path) -> None:
        """Play a file before the microphone, from start to end."""
        subprocess.run(
            ["paplay", "--device=virt", str(path)], env=self.environment, check=True, timeout=120
        )

    def listener(self) -> subprocess.Popen[str]:
        """Start a process that runs `listen` on this microphone; SIGTERM ends its recording."""
        return subprocess.Popen(
            [sys.executable, "-m", "tests.virtual_microphone"],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                self._log.seek(0)
                pytest.fail(f"PulseAudio did not start: {self._log.read().decode()}")
            asked = subprocess.run(
                ["pactl", "list", "short", "sources"],
                env=self.environment,
                check=False,
                capture_output=True,
                text=True,
                timeout=_START_S,
            )
            if "virtmic" in asked.stdout:
                return
            time.sleep(0.05)  # between two questions; the deadline decides

    def _stop(self) -> None:
        self._daemon.terminate()
        try:
            self._daemon.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()
        self._log.close()
        shutil.rmtree(self._folder)


def listen() -> None:
    """Print the devices, `LISTENING` when audio comes, then the events of the microphone."""
    print("\n".join(list_devices()))
    microphone = Microphone()
    signal.signal(signal.SIGTERM, lambda number, frame: microphone.close())

    def chunks() -> Iterator[Chunk]:
        for number, chunk in enumerate(microphone):
            if number == 0:
                print(LISTENING, flush=True)
            yield chunk

    card = make_card()
    call = Call(card, CallConfig(audio=microphone.format))
    with microphone:
        for event in recognize(call, chunks(), FakeScorer(card), live=True):
            print(encode_event(event).decode(), flush=True)


if __name__ == "__main__":
    listen()
