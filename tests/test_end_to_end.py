"""What a person does: the commands, the shipped model, real speech, a plain client."""

from __future__ import annotations

import csv
import itertools
import json
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
import soundfile

from streamer.audio import AudioFormat
from streamer.card import UNCERTAIN
from streamer.model import Model
from tests.golden.synthetic import silence
from tests.scorers import LABELS, encode_audio, tone_speech
from tests.serving import ServerUnderTest

ROOT = Path(__file__).resolve().parents[1]
CORPORA = ("ravdess", "emodb", "nemo", "banglaser")
TIMEOUT_S = 120
"""Each command takes a few seconds of two idle cores; these may not be idle."""

JsonEvent: TypeAlias = dict[str, Any]

pytestmark = pytest.mark.usefixtures("model_path")


def files_of(speech_data: Path, corpus: str, count: int) -> list[Path]:
    """Return files from all over a corpus, one speaker after the other."""
    with (speech_data / corpus / "manifest.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: (row["speaker"], row["path"]))
    return [speech_data / corpus / row["path"] for row in rows[:: len(rows) // count]][:count]


def run_python(program: str, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run a program in a process of its own; return what it printed."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        check=False,
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT_S,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout


SER_STREAM = "import sys; from streamer.cli import main_stream; sys.exit(main_stream())"


def ser_stream(*arguments: str, stdin: bytes = b"") -> list[JsonEvent]:
    output = run_python(SER_STREAM, "--json", *arguments, stdin=stdin)
    return [json.loads(line) for line in output.splitlines()]


@contextmanager
def ser_serve() -> Iterator[ServerUnderTest]:
    program = "import sys; from streamer.cli import main_serve; sys.exit(main_serve())"
    command = [sys.executable, "-c", program, "--port", "0", "--no-store"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stderr is not None
        try:
            server = ServerUnderTest(process, process.stderr)
            server.wait_until_ready()
            yield server
            assert server.stop() == 0, server.lines
        finally:
            process.kill()


def of_type(events: list[JsonEvent], kind: str) -> list[JsonEvent]:
    return [event for event in events if event["type"] == kind]


def assert_same(found: list[JsonEvent], expected: list[JsonEvent]) -> None:
    """Law 1, over the wire: `source` is the command's, the session is the call's."""
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for event in (one, other):
            for name in ("lag_ms", "max_lag_ms", "session", "source"):
                event.pop(name, None)
        for name in ("scores", "raw"):
            assert one.pop(name, None) == pytest.approx(other.pop(name, None), abs=1e-4)
        assert one == other


def pcm16(*parts: np.ndarray) -> bytes:
    return encode_audio([np.concatenate(parts)], AudioFormat())


# Real speech through the command


@pytest.mark.parametrize("corpus", CORPORA)
def test_real_speech_gives_turns_and_emotions_by_the_book(speech_data: Path, corpus: str) -> None:
    files = files_of(speech_data, corpus, 15)
    events = ser_stream(*map(str, files))
    num_steps = num_pauses = 0
    for file in files:
        of_file = [event for event in events if event["source"] == str(file)]
        assert [event["seq"] for event in of_file] == list(range(len(of_file)))
        assert of_file[0]["type"] == "ready" and of_file[-1]["type"] == "summary"
        assert of_type(of_file, "turn"), file
        assert not of_type(of_file, "error"), file
        summary = of_file[-1]["channels"][0]
        info = soundfile.info(file)
        # Each 10 ms frame of 40 ms is computed once.
        assert summary["frames_computed"] == (info.frames - 640) // 160 + 1
        assert summary["dropped"] == 0
        for event in of_type(of_file, "emotion") + of_type(of_file, "turn"):
            for scores in [event[name] for name in ("scores", "raw") if name in event]:
                assert tuple(scores) == LABELS
                # Four numbers of six decimals.
                assert sum(scores.values()) == pytest.approx(1.0, abs=1e-5)
            assert 0.0 <= event["start_s"] < event["end_s"] <= info.duration + 1e-3
        for turn in turns_of(of_file):
            onset, emotions = turn[0], of_type(turn, "emotion")
            # When it is due: 40 ms of look-ahead and a block of 20 ms after its end.
            assert emotions[0]["end_s"] + 0.06 - onset["time_s"] <= 1.1
            steps = np.diff([emotion["end_s"] for emotion in emotions])[:-1]
            np.testing.assert_allclose(steps / 0.25, np.rint(steps / 0.25), atol=1e-6)
            num_pauses += int((steps > 0.26).sum())
            num_steps += len(steps)
    # Windows that end in a pause within a turn are not scored: silence costs nothing.
    assert num_pauses <= 0.1 * num_steps


@pytest.mark.parametrize("corpus", CORPORA)
def test_the_label_changes_less_often_than_raw(
    speech_data: Path, corpus: str, tmp_path: Path
) -> None:
    files = files_of(speech_data, corpus, 40)
    call = np.concatenate([soundfile.read(file, dtype="int16")[0] for file in files])
    soundfile.write(tmp_path / "call.wav", call, 16000)
    emotions = of_type(ser_stream(str(tmp_path / "call.wav")), "emotion")
    labels = [emotion["label"] for emotion in emotions]
    leaders = [max(emotion["raw"], key=emotion["raw"].get) for emotion in emotions]
    assert num_changes([label for label in labels if label != UNCERTAIN]) < num_changes(leaders)
    # A change often leads by way of `uncertain`, which nothing raw says: with that,
    # fewer than raw scores would have that are as often not sure enough.
    threshold = Model.load(provider="cpu").card.rejection.smoothed
    doubtful = [
        leader if emotion["raw"][leader] >= threshold else UNCERTAIN
        for leader, emotion in zip(leaders, emotions, strict=True)
    ]
    assert num_changes(labels) < num_changes(doubtful)


def num_changes(labels: list[str]) -> int:
    return sum(one != other for one, other in itertools.pairwise(labels))


def turns_of(events: list[JsonEvent]) -> Iterator[list[JsonEvent]]:
    """Yield the events of each turn, from the onset to the turn's average."""
    start = 0
    for number, event in enumerate(events):
        if event["type"] == "speech" and event["active"]:
            start = number
        if event["type"] == "turn":
            yield events[start : number + 1]


def test_raw_bytes_on_stdin_are_heard() -> None:
    data = pcm16(tone_speech(2.5), silence(0.8))
    events = ser_stream("-", stdin=data)
    assert of_type(events, "turn") and events[-1]["duration_s"] == 3.3


# The same bytes over a WebSocket


def random_cuts(data: bytes, rng: random.Random, num_bytes_a_second: int) -> Iterator[bytes]:
    """Yield chunks of 1 byte to 1 s, as many small ones as large ones."""
    while data:
        size = round(num_bytes_a_second ** rng.random())
        yield data[:size]
        data = data[size:]


def test_the_server_says_of_any_cut_what_the_command_says_of_the_file(speech_data: Path) -> None:
    files = [files_of(speech_data, corpus, 3)[1] for corpus in CORPORA]
    by_command = ser_stream(*map(str, files))
    with ser_serve() as server:
        for number, file in enumerate(files):
            samples, rate = soundfile.read(file, dtype="float32")
            expected = [event for event in by_command if event["source"] == str(file)]
            for cut in range(2):
                chunks = random_cuts(samples.tobytes(), random.Random(10 * number + cut), 4 * rate)
                query = f"?encoding=pcm_f32le&sample_rate={rate}"
                with server.connect(query) as connection:
                    for chunk in chunks:
                        connection.send(chunk)
                    connection.send('{"type": "end"}')
                    events = [json.loads(text) for text in connection]
                assert connection.close_code == 1000
                assert_same(events, [dict(event) for event in expected])


def test_a_client_that_knows_no_protocol_gets_results() -> None:
    """It connects, sends frames as a microphone gives them, and reads."""
    data = pcm16(tone_speech(2.5), silence(0.8))
    with ser_serve() as server, server.connect() as connection:
        for start in range(0, len(data), 640):
            connection.send(data[start : start + 640])
        events = [json.loads(connection.recv(timeout=TIMEOUT_S))]
        while events[-1]["type"] != "turn":
            events.append(json.loads(connection.recv(timeout=TIMEOUT_S)))
    assert events[0]["type"] == "ready"
    assert len(of_type(events, "emotion")) >= 6


# As the README says


def test_the_readmes_asyncio_program_runs() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (example, *_) = [block for block in blocks if "converse" in block]
    assert len(example.strip().splitlines()) <= 12, "ten lines or so"
    program = f"""{example}
import asyncio, sys

async def chunks():
    while chunk := sys.stdin.buffer.read(1001):
        yield chunk

asyncio.run(listen(chunks()))
"""
    data = pcm16(tone_speech(2.5), silence(0.8))
    printed = run_python(program, stdin=data).decode()
    for name in ("Ready", "Speech", "Emotion", "Turn", "Summary"):
        assert f"{name}(" in printed


# Serving needs no training


def test_serving_runs_where_there_is_no_torch(tmp_path: Path) -> None:
    program = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "onnx", "train", "export_onnx", "librosa"):
            raise ModuleNotFoundError(f"the test took {{name}} away", name=name)

sys.meta_path.insert(0, Absent())
import streamer.server
{SER_STREAM}
"""
    path = tmp_path / "call.wav"
    samples = np.stack([tone_speech(2.5, 1, 8_000), tone_speech(2.5, 2, 8_000)], axis=1)
    soundfile.write(path, samples, 8_000)
    output = run_python(program, "--json", "--roles", "customer,agent", str(path))
    events = [json.loads(line) for line in output.splitlines()]
    assert {event["role"] for event in of_type(events, "turn")} == {"customer"}
    assert {event["role"] for event in of_type(events, "speech")} == {"customer", "agent"}
    assert {event["source"] for event in events} == {str(path)}
