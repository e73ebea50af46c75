from __future__ import annotations

import json

import pytest

from streamer import __version__
from streamer.cli import main_stream
from streamer.events import event_schema
from streamer.options import stream_options


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--mic", "call.wav"],
        ["-", "call.wav"],
        ["--device", "1", "call.wav"],
        ["--roles", "boss", "call.wav"],
        ["--roles", "customer,agent,agent", "call.wav"],
        ["--rate", "4000", "-"],
        ["--encoding", "mp3", "-"],
        ["--step-ms", "255", "call.wav"],
        ["--step-ms", "0", "call.wav"],
        ["--step-ms", "٣٠٠", "call.wav"],
        ["--provider", "tpu", "call.wav"],
        ["--rate", "8000", "call.wav"],
        ["--channels", "2", "--mic"],
        ["--encoding", "mulaw", "--", "call.wav"],
    ],
    ids=" ".join,
)
def test_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main_stream(arguments)
    assert exit.value.code == 2
    assert "ser-stream: error: " in capsys.readouterr().err


def test_schema_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main_stream(["--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == event_schema()
    with pytest.raises(SystemExit) as exit:
        main_stream(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"ser-stream {__version__}\n"


def test_help_fits_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main_stream(["--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert "examples:" in text and "--analyse-agents" in text
    assert max(len(line) for line in text.splitlines()) <= 82


def test_options_between_paths_are_options() -> None:
    options = stream_options(["a.wav", "--roles", "customer,agent", "b.wav", "--json"])
    assert options.paths == ["a.wav", "b.wav"]
    assert options.roles == ("customer", "agent")


def test_what_follows_two_dashes_is_a_path() -> None:
    options = stream_options(["--json", "a.wav", "--", "-x.wav", "--mic"])
    assert options.paths == ["a.wav", "-x.wav", "--mic"]
    assert options.json and not options.mic
