"""Files through the Python client, and its examples as a person runs them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from ser_stream_client import ClientError, recognize_file

from streamer.audio import AudioFormat
from tests.peers import CARD, STEREO, decoded, free_url, local, stereo_call
from tests.scorers import FakeScorer, assert_same_events, encode_audio, tone_speech
from tests.serving import Running, serving, wait_until
from tests.virtual_microphone import VirtualMicrophone

CLIENTS = Path(__file__).resolve().parents[1] / "clients" / "python"


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with FakeScorer(CARD, answer="thread") as scorer, serving(scorer, max_calls=4) as running:
        yield running


@pytest.fixture
def wav(tmp_path: Path) -> Path:
    path = tmp_path / "call.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 8000, 0, "NONE", ""))
        file.writeframes(stereo_call())
    return path


def test_a_file_gives_the_events_of_a_local_run(server: Running, wav: Path) -> None:
    told = list(recognize_file(server.url, wav, roles=("customer", "agent"), call_id="one"))
    expected = local(STEREO, stereo_call(), "customer", "agent")
    assert_same_events(decoded(told), expected)
    kinds = [event["type"] for event in told]
    assert kinds[0] == "ready" and kinds[-1] == "summary" and "turn" in kinds


def test_realtime_is_the_pace_of_speech(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "short.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 8000, 0, "NONE", ""))
        file.writeframes(stereo_call()[: 8000 * 4])
    start_s = time.monotonic()
    told = list(recognize_file(server.url, path, realtime=True))
    assert time.monotonic() - start_s >= 1.0
    assert told[-1]["duration_s"] == 1.0


@pytest.mark.parametrize("width", [1, 3])
def test_a_wav_that_is_not_16_bits(tmp_path: Path, width: int) -> None:
    path = tmp_path / "other.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, width, 8000, 0, "NONE", ""))
        file.writeframes(bytes(width * 8))
    with pytest.raises(ClientError, match=f"{width * 8} bits a sample; expected a WAV"):
        next(recognize_file(free_url(), path))


@pytest.mark.parametrize("content", [b"", b"RIFF", b"no audio at all, but long enough to be read"])
def test_a_file_that_is_no_wav(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "none.wav"
    path.write_bytes(content)
    with pytest.raises(ClientError, match=r"none\.wav: .*expected a WAV file of 16-bit PCM"):
        next(recognize_file(free_url(), path))
    path.unlink()
    with pytest.raises(ClientError, match="No such file"):
        next(recognize_file(free_url(), path))


# The examples, as a person runs them


def run_example(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CLIENTS / name), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )


def test_example_file(server: Running, wav: Path) -> None:
    done = run_example(
        "example_file.py", str(wav), "--url", server.url, "--roles", "customer,agent"
    )
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == "# fake hears: customer, agent (speech only)"
    assert sum(" = turn of " in line for line in lines) == 1
    assert any("customer  speaks" in line for line in lines)
    assert any("agent     pauses" in line for line in lines)
    assert lines[-1].startswith("# 4.50 s heard: ") and lines[-1].endswith(" turns: 2")


def test_example_file_without_a_server(wav: Path) -> None:
    done = run_example("example_file.py", str(wav), "--url", free_url())
    assert done.returncode == 1 and done.stdout == ""
    assert "is ser-serve running?" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["example_file.py", "example_microphone.py"])
def test_examples_explain_themselves(name: str) -> None:
    done = run_example(name, "--help")
    assert done.returncode == 0 and "examples:" in done.stdout and "exit codes:" in done.stdout


def test_example_microphone_ends_with_the_tail_and_a_summary(
    server: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A made-up sounddevice: it records one turn, then Ctrl-C comes before its end."""
    pcm = encode_audio([tone_speech(2.0, 4)], AudioFormat())

    before = signal.getsignal(signal.SIGINT)

    def interrupt() -> None:
        wait_until(lambda: signal.getsignal(signal.SIGINT) is not before, "Ctrl-C is handled")
        os.kill(os.getpid(), signal.SIGINT)

    class Stream:
        def __init__(self, *, callback: Callable[..., None], **settings: object) -> None:
            assert (settings["samplerate"], settings["channels"]) == (16_000, 1)
            self.callback = callback

        def __enter__(self) -> None:
            for start in range(0, len(pcm), 640):
                self.callback(memoryview(pcm)[start : start + 640], 320, None, None)
            threading.Thread(target=interrupt).start()

        def __exit__(self, *_: object) -> None:
            pass

    device = SimpleNamespace(RawInputStream=Stream, PortAudioError=RuntimeError)
    monkeypatch.setitem(sys.modules, "sounddevice", device)
    monkeypatch.setattr(sys, "argv", ["example_microphone.py", "--url", server.url])
    import example_microphone

    try:
        assert example_microphone.main() == 0
    finally:
        signal.signal(signal.SIGINT, before)
    lines = capsys.readouterr().out.splitlines()
    assert " = turn of " in "\n".join(lines)
    assert lines[-1].startswith("# 2.00 s heard: ")


@pytest.mark.microphone
def test_example_microphone_hears_a_device(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "speech.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(encode_audio([tone_speech(2.0, 4)], AudioFormat()))
    command = [sys.executable, str(CLIENTS / "example_microphone.py"), "--url", server.url]
    with (
        VirtualMicrophone() as microphone,
        subprocess.Popen(
            command,
            env=microphone.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            first = process.stdout.readline()
            microphone.play(path)
            process.send_signal(signal.SIGINT)
            rest, complaints = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, complaints) == (0, "")
    assert first == "# fake hears: customer\n"
    assert " = turn of " in rest
    assert rest.splitlines()[-1].endswith(" turns: 1")
