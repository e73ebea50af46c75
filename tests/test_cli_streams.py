"""Standard streams that are closed, full, pipes or terminals, and names of any bytes."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
from pathlib import Path

import pytest
import soundfile

from tests.commands import DEADLINE_S, ROOT, command, events, on_terminal, read_terminal, start
from tests.models import tiny_model
from tests.scorers import tone_speech


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_model(tmp_path_factory.mktemp("model")))


@pytest.fixture(scope="module")
def wav(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("audio") / "speech.wav"
    soundfile.write(path, tone_speech(3.0), 16_000, subtype="PCM_16")
    return str(path)


def shell(redirection: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ser-stream with a redirection in the shell's words."""
    line = f"{shlex.join(command(*arguments))} {redirection}"
    return subprocess.run(
        ["sh", "-c", line],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )


# Closed and full


def test_closed_standard_input_is_a_bad_source(model: str) -> None:
    done = shell("<&-", "--json", "--model", model, "-")
    assert (done.returncode, done.stderr) == (1, "")
    error, summary = events(done.stdout)
    assert (error["code"], error["message"]) == (
        "bad_source",
        "standard input is closed: expected audio",
    )
    assert (summary["type"], summary["channels"]) == ("summary", [])


def test_closed_standard_output_is_refused(model: str, wav: str) -> None:
    done = shell(">&-", "--json", "--model", model, wav)
    assert done.returncode == 2
    assert done.stderr.startswith("ser-stream: error: standard output is closed")
    assert done.stderr.count("\n") == 1


def test_closed_standard_error_sends_nothing_to_standard_output(model: str) -> None:
    done = shell("2>&-", "--model", model, "missing.wav")
    assert done.returncode == 1
    assert done.stdout == "summary of 0.00 s: nothing was heard; lag 0 ms\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("arguments", [["--schema"], ["--json"], []], ids=str)
def test_full_output_is_one_sentence(model: str, wav: str, arguments: list[str]) -> None:
    done = shell(">/dev/full", *arguments, "--model", model, wav)
    assert done.returncode == 1
    assert done.stderr == (
        "ser-stream: error: output cannot be written (No space left on device)\n"
    )


# Names


@pytest.mark.parametrize("name", [b"\xff\xfe bad.wav", "é.wav".encode()])
@pytest.mark.parametrize("environment", [{}, {"LC_ALL": "C", "PYTHONUTF8": "0"}], ids=str)
def test_files_of_any_name_are_heard(
    model: str, wav: str, tmp_path: Path, name: bytes, environment: dict[str, str]
) -> None:
    path = os.path.join(os.fsencode(tmp_path), name)
    try:
        Path(os.fsdecode(path)).write_bytes(Path(wav).read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    arguments = [*command("--json", "--model", model), path, wav]
    surroundings = {**os.environ, "PYTHONCOERCECLOCALE": "0", **environment}
    done = subprocess.run(arguments, check=False, cwd=ROOT, env=surroundings, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    summaries = [event for event in events(done.stdout.decode()) if event["type"] == "summary"]
    assert [event["duration_s"] for event in summaries] == [3.0, 3.0]


def test_two_dashes_protect_paths(model: str, wav: str, tmp_path: Path) -> None:
    (tmp_path / "-x.wav").write_bytes(Path(wav).read_bytes())
    arguments = [*command("--json", "--model", model), "--", "-x.wav"]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        arguments, check=False, cwd=tmp_path, env=surroundings, capture_output=True
    )
    assert done.returncode == 0
    assert {event["source"] for event in events(done.stdout.decode())} == {"-x.wav"}


# Terminals


def drawn_beside(output: int, model: str, wav: str) -> str:
    """Return what is drawn on a terminal that is standard error, not standard output."""
    leader, follower = pty.openpty()
    surroundings = {**os.environ, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}
    surroundings.pop("NO_COLOR", None)
    with start("--model", model, wav, stdout=output, stderr=follower, env=surroundings) as process:
        os.close(follower)
        drawn = read_terminal(leader)
        assert process.wait(DEADLINE_S) == 0
    os.close(leader)
    return drawn


def test_a_bar_is_drawn_beside_a_file_not_beside_a_pipe(
    model: str, wav: str, tmp_path: Path
) -> None:
    receiver, sender = os.pipe()
    assert drawn_beside(sender, model, wav) == "", "its reader may write to this terminal"
    os.close(receiver)
    os.close(sender)
    with (tmp_path / "lines").open("wb") as lines:
        assert "speech.wav" in drawn_beside(lines.fileno(), model, wav)
    assert "speech.wav" in drawn_beside(subprocess.DEVNULL, model, wav)


def test_one_end_of_input_at_a_terminal_is_enough(model: str) -> None:
    code, drawn = on_terminal(["--json", "--model", model, "-"], typed=b"\x04")
    assert code == 0
    assert events(drawn.removeprefix("^D\b\b"))[-1]["duration_s"] == 0.0


def test_the_end_counts_once_after_audio_too(model: str) -> None:
    code, drawn = on_terminal(["--json", "--model", model, "-"], typed=b"some\n\x04")
    assert code == 1, "five bytes are half a sample too many"
    assert '"type":"summary"' in drawn
