from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from streamer.cli import main_serve, main_stream
from tests.commands import DEADLINE_S, ROOT, events, on_terminal, start, types
from tests.models import tiny_model
from tests.scorers import tone_speech


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture
def wav(tmp_path: Path) -> str:
    """One channel of 16 kHz, three seconds of speech and a pause."""
    path = tmp_path / "speech.wav"
    audio = np.concatenate([tone_speech(3.0), np.zeros(16_000, np.float32)])
    soundfile.write(path, audio, 16_000, subtype="PCM_16")
    return str(path)


@pytest.fixture
def stereo(tmp_path: Path) -> str:
    """Two channels of 8 kHz that both speak."""
    path = tmp_path / "call.wav"
    left, right = tone_speech(3.0, rate=8000), tone_speech(3.0, seed=1, rate=8000)
    soundfile.write(path, np.stack([left, right], axis=1), 8000, subtype="PCM_16")
    return str(path)


class Stdin:
    """Standard input that holds these bytes."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


def pcm(samples: np.ndarray) -> bytes:
    return (samples * 32767).astype("<i2").tobytes()


# Events, out


def test_json_lines_are_events(model: str, wav: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_stream(["--json", "--model", model, wav]) == 0
    output = capsys.readouterr()
    found = events(output.out)
    assert output.err == ""
    assert [event["seq"] for event in found] == list(range(len(found)))
    assert {event["source"] for event in found} == {wav}
    assert found[0]["type"] == "ready" and found[-1]["type"] == "summary"
    assert {"speech", "emotion", "turn"} <= {event["type"] for event in found}


def test_text_lines(model: str, wav: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_stream(["--model", model, wav]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ready customer; pcm_f32le at 16000 Hz; model tiny")
    assert any(" s customer speech begins" in line for line in lines)
    assert any(" customer turn " in line for line in lines)
    assert lines[-1].startswith("summary of 4.00 s: customer 1 turn")


def test_agents_tell_speech_only(
    model: str, stereo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_stream(["--json", "--model", model, stereo, "--roles", "customer,agent"]) == 0
    found = events(capsys.readouterr().out)
    agent = {event["type"] for event in found if event["role"] == "agent"}
    customer = {event["type"] for event in found if event["role"] == "customer"}
    assert agent == {"speech"}
    assert customer == {"speech", "emotion", "turn"}


def test_agents_are_analysed_when_told(
    model: str, stereo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = ["--roles", "customer,agent", "--analyse-agents"]
    assert main_stream(["--json", "--model", model, *told, stereo]) == 0
    found = events(capsys.readouterr().out)
    assert any(event["type"] == "turn" and event["role"] == "agent" for event in found)


def test_channels_without_a_role_are_customers(
    model: str, stereo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_stream(["--json", "--model", model, stereo]) == 0
    channels = events(capsys.readouterr().out)[0]["channels"]
    assert [channel["role"] for channel in channels] == ["customer", "customer"]


def test_step(model: str, wav: str, capsys: pytest.CaptureFixture[str]) -> None:
    counts = []
    for step_ms in ("100", "500"):
        assert main_stream(["--json", "--model", model, "--step-ms", step_ms, wav]) == 0
        counts.append(types(capsys.readouterr().out).count("emotion"))
    assert counts[0] > 3 * counts[1]


def test_one_summary_a_path_and_a_bad_file_among_good_ones(
    model: str, wav: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.wav"
    text.write_text("no audio at all")
    cut = tmp_path / "cut.wav"
    cut.write_bytes(Path(wav).read_bytes()[:70_000])
    paths = [wav, "missing.wav", str(text), str(tmp_path), str(cut), wav]
    assert main_stream(["--json", "--model", model, *paths]) == 1
    found = events(capsys.readouterr().out)
    endings = [event["source"] for event in found if event["type"] == "summary"]
    assert endings == paths, "in the order given, each once"
    errors = [event for event in found if event["type"] == "error"]
    assert [event["source"] for event in errors] == paths[1:5]
    assert {event["code"] for event in errors} == {"bad_source"}
    # The one that breaks off was heard as far as it goes.
    assert any(event["type"] == "turn" and event["source"] == str(cut) for event in found)


def test_roles_that_do_not_fit_are_that_files_error(
    model: str, wav: str, stereo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--json", "--model", model, wav, "--roles", "customer,agent", stereo]
    assert main_stream(arguments) == 1
    found = events(capsys.readouterr().out)
    errors = [event for event in found if event["type"] == "error"]
    assert [(event["code"], event["source"]) for event in errors] == [("bad_config", wav)]
    summaries = [event for event in found if event["type"] == "summary"]
    assert [event["source"] for event in summaries] == [wav, stereo]
    assert [len(event["channels"]) for event in summaries] == [0, 2]


def test_several_sources_are_named_and_errors_go_to_standard_error(
    model: str, wav: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_stream(["--model", model, "missing.wav", wav]) == 1
    output = capsys.readouterr()
    assert output.err.startswith("missing.wav: error bad_source: missing.wav cannot be opened")
    starts = [line.split(": ")[0] for line in output.out.splitlines()]
    assert set(starts) == {"missing.wav", wav}


def test_name_that_is_not_utf8(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_stream(["--json", "--model", model, "caf\udce9.wav"]) == 1
    assert {event["source"] for event in events(capsys.readouterr().out)} == {"caf?.wav"}


# Standard input


def test_raw_pcm_on_standard_input(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(pcm(tone_speech(3.0, rate=8000))))
    assert main_stream(["--json", "--model", model, "--rate", "8000", "-"]) == 0
    found = events(capsys.readouterr().out)
    assert (found[0]["encoding"], found[0]["sample_rate"]) == ("pcm_s16le", 8000)
    assert "turn" in {event["type"] for event in found}
    assert not any("source" in event for event in found)
    assert found[-1]["duration_s"] == 3.0


def test_half_a_sample_at_the_end_is_an_error(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(pcm(tone_speech(3.0)) + b"\x01"))
    assert main_stream(["--json", "--model", model, "-"]) == 1
    output = capsys.readouterr().out
    assert types(output)[-2:] == ["error", "summary"]
    assert "turn" in types(output), "what came before it counts"
    assert events(output)[-2]["code"] == "bad_audio"


def test_a_wav_on_standard_input_is_refused(
    model: str, wav: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", Stdin(Path(wav).read_bytes()))
    assert main_stream(["--json", "--model", model, "-"]) == 1
    assert types(capsys.readouterr().out) == ["ready", "error", "summary"]


def test_what_cannot_be_opened_never_was_ready(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_stream(["--json", "--model", model, "missing.wav"]) == 1
    found = events(capsys.readouterr().out)
    assert [(event["seq"], event["type"]) for event in found] == [(0, "error"), (1, "summary")]


# What is refused at the start


@pytest.mark.parametrize("name", ["no-such-model", str(ROOT / "pyproject.toml")])
def test_bad_model(name: str, wav: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main_stream(["--json", "--model", name, wav]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("ser-stream: error: ")
    assert len(output.err.splitlines()) == 1


def test_server_stays_on_loopback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_serve(["--host", "0.0.0.0"]) == 2
    assert "expected tokens" in capsys.readouterr().err


# Signals and pipes


def feed(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Write speech to the process and leave its input open, as a live source would."""
    assert process.stdin is not None
    process.stdin.write(pcm(tone_speech(seconds)))
    process.stdin.flush()


def lines_until(process: subprocess.Popen[bytes], kind: str) -> list[dict[str, Any]]:
    assert process.stdout is not None
    found: list[dict[str, Any]] = []
    while not found or found[-1]["type"] != kind:
        line = process.stdout.readline()
        assert line, f"the output ended before the first {kind}: {found}"
        found.append(json.loads(line))
    return found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_the_call_with_its_tail_and_summary(
    model: str, number: signal.Signals, code: int
) -> None:
    arguments = ["--json", "--model", model, "-"]
    with start(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        feed(process, 3.0)
        lines_until(process, "emotion")
        process.send_signal(number)  # while it waits for more audio, or while it scores
        rest, _ = process.communicate(timeout=DEADLINE_S)
    found = types(rest.decode())
    assert process.returncode == code
    assert found.count("turn") == 1, "the turn that was open"
    assert found[-1] == "summary"
    assert "error" not in found


def test_second_signal_quits_at_once(model: str, stereo: str) -> None:
    arguments = ["--json", "--model", model, "--realtime", stereo]
    with start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        lines_until(process, "speech")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode in (130, 143)
    assert b"Traceback" not in errors


def test_paths_not_yet_begun_are_left_out_after_a_signal(model: str, stereo: str) -> None:
    arguments = ["--json", "--model", model, "--realtime", stereo, stereo]
    with start(*arguments, stdout=subprocess.PIPE) as process:
        lines_until(process, "emotion")
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 130
    assert types(rest.decode()).count("summary") == 1


def test_reader_that_leaves_is_no_traceback(model: str, wav: str) -> None:
    arguments = ["--json", "--model", model, *[wav] * 20]
    with start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(DEADLINE_S) == 141
    assert errors == b""


# Terminals


def test_live_view_on_a_terminal(model: str, stereo: str) -> None:
    arguments = ["--model", model, "--roles", "customer,agent", stereo]
    code, drawn = on_terminal(arguments)
    assert code == 0
    assert "not analysed" in drawn and "dBFS" in drawn
    assert " customer turn " in drawn
    assert "turns' time by label" in drawn
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h") == 1, "the cursor is back"


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_lines_where_the_terminal_cannot_draw(
    model: str, wav: str, environment: dict[str, str]
) -> None:
    code, drawn = on_terminal(["--model", model, wav], **environment)
    assert code == 0
    assert " s customer speech begins" in drawn
    assert "\x1b" not in drawn
