from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from streamer.events import (
    ChannelSummary,
    Emotion,
    Error,
    Event,
    Gap,
    Lag,
    Ready,
    ReadyChannel,
    Speech,
    Summary,
    Turn,
)
from streamer.live_view import REFRESH_S, LiveView
from streamer.terminal import JsonLines, ProgressBar, TextLines, channel_names

SCORES = {"angry": 0.71, "happy": 0.09, "neutral": 0.15, "sad": 0.05}


def ready(*roles: str, source: str = "call.wav") -> Ready:
    return Ready(
        source=source,
        session="local",
        model="can",
        labels=tuple(SCORES),
        encoding="pcm_f32le",
        sample_rate=8000,
        channels=tuple(
            ReadyChannel(channel=channel, role=role, analysed=role != "agent")
            for channel, role in enumerate(roles)
        ),
        step_ms=250,
        first_score_s=1.065,
        hang_over_s=0.4,
        notice="",
    )


def emotion(*, warming_up: bool = False, dropped: int = 0, lag_ms: float = 0.0) -> Emotion:
    return Emotion(
        channel=0,
        role="customer",
        lag_ms=lag_ms,
        dropped=dropped,
        start_s=10.25,
        end_s=12.25,
        label="angry",
        scores=SCORES,
        raw=SCORES,
        speech=0.9,
        warming_up=warming_up,
    )


def speech(active: bool, channel: int = 0) -> Speech:
    return Speech(channel=channel, role=("customer", "agent")[channel], active=active, time_s=1.02)


TURN = Turn(
    channel=0, role="customer", start_s=12.25, end_s=15.1, label="angry", scores=SCORES, windows=5
)
SUMMARY = Summary(
    source="call.wav",
    duration_s=27.26,
    max_lag_ms=12.4,
    channels=tuple(
        ChannelSummary(
            channel=channel,
            role=role,
            analysed=role == "customer",
            speech_s=14.3,
            turns=4 - 3 * channel,
            emotions=46,
            windows_scored=46,
            frames_computed=2722,
            dropped=2,
            labels={"angry": 0.35, "happy": 0.0, "neutral": 0.65, "sad": 0.0},
        )
        for channel, role in enumerate(("customer", "agent"))
    ),
)


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def terminal(width: int = 80) -> Console:
    return Console(
        file=io.StringIO(),
        force_terminal=True,
        width=width,
        height=24,
        record=True,
        color_system="truecolor",
        legacy_windows=False,
    )


def drawn(view: LiveView, width: int = 80) -> list[str]:
    """Return the lines of the view's picture of the moment."""
    console = terminal(width)
    console.print(view.picture())
    return console.export_text().splitlines()


@pytest.fixture
def view() -> LiveView:
    """A view of a call of two channels that has just begun."""
    view = LiveView(terminal(), clock=Clock())
    view.begin("call.wav", 27.3)
    view.show(ready("customer", "agent"))
    return view


# Lines


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (
            ready("customer", "agent"),
            "ready customer, agent (not analysed); pcm_f32le at 8000 Hz; model can",
        ),
        (speech(True), "1.02 s customer speech begins"),
        (speech(False), "1.02 s customer speech ends"),
        (emotion(), "12.25 s customer angry 0.71"),
        (emotion(warming_up=True), "12.25 s customer angry 0.71 (warming up)"),
        (TURN, "12.25-15.10 s customer turn angry 0.71 (5 windows)"),
        (
            Gap(channel=0, role="customer", start_s=3.0, end_s=4.0, reason="not_fetched"),
            "3.00-4.00 s customer gap: audio is missing (not_fetched)",
        ),
        (
            Lag(channel=0, role="customer", start_s=3.0, end_s=5.0, reason="overload"),
            "3.00-5.00 s customer lag: not scored from here on (overload)",
        ),
        (
            SUMMARY,
            "summary of 27.26 s: customer 4 turns in 14.30 s of speech, neutral 65%, angry 35%, "
            "2 dropped; agent 1 turn in 14.30 s of speech, not analysed; lag 12 ms",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_text_line(event: Event, line: str) -> None:
    stream = io.StringIO()
    TextLines(stream).show(event)
    assert stream.getvalue() == line + "\n"


def test_errors_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    lines = TextLines(stream, names_source=True)
    lines.show(Error(source="a.wav", code="bad_source", message="no such file", fatal=True))
    assert stream.getvalue() == ""
    assert capsys.readouterr().err == "a.wav: error bad_source: no such file\n"


def test_several_sources_are_named_on_one_line_each() -> None:
    stream = io.StringIO()
    lines = TextLines(stream, names_source=True)
    lines.show(ready("customer", source="two\nlines\x1b[2J.wav"))
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().startswith("two\\nlines\\x1b[2J.wav: ready")


def test_channels_of_one_role_are_told_apart() -> None:
    assert channel_names(ready("customer", "agent")) == {0: "customer", 1: "agent"}
    assert channel_names(ready("customer", "customer")) == {0: "customer/0", 1: "customer/1"}


def test_json_lines_are_flushed_one_by_one() -> None:
    raw = io.BytesIO()
    view = JsonLines(io.BufferedWriter(raw))  # type: ignore[arg-type]  # BytesIO is raw enough
    for number, event in enumerate([ready("customer"), emotion(), TURN], 1):
        view.show(event)
        lines = raw.getvalue().splitlines()
        assert len(lines) == number
        assert json.loads(lines[-1])["type"] == type(event).__name__.lower()


def test_progress_bar_leaves_nothing_behind() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=80, legacy_windows=False)
    bar = ProgressBar(console)
    bar.begin("[bold]call.wav", 27.3)
    bar.show_audio(13.65, [-30.0])
    bar.show(SUMMARY)
    bar.begin("standard input", None)
    bar.show_audio(1.0, [-30.0])
    bar.close()
    bar.close()
    drawn = console.file.getvalue()  # type: ignore[attr-defined]
    assert "[bold]call.wav" in drawn
    assert drawn.endswith("\r\x1b[2K\x1b[?25h\r"), "the line is erased, the cursor back"


# The live view


def test_live_view_fits_and_tells(view: LiveView) -> None:
    view.show(speech(True))
    view.show(emotion(dropped=3, lag_ms=41.7))
    view.show(speech(True, channel=1))
    view.show_audio(12.3, [-23.4, -61.0])
    lines = drawn(view)
    assert len(lines) <= 13  # half of a small terminal: the rest is for turns
    assert {len(line) for line in lines[:-1]} == {80}
    assert len(lines[-1]) < 70, "room for the terminal's own ^C"
    text = "\n".join(lines)
    for words in (
        "12.3 of 27.3 s",
        "A N G R Y",
        "-23 dBFS",
        "-61 dBFS",
        "lag  42 ms",
        "dropped 3",
        "S P E A K I N G",
        "not analysed",
    ):
        assert words in text
    for label, score in SCORES.items():
        assert any(label in line and f"{score:.2f}" in line for line in lines)


def test_bars_are_as_long_as_their_scores(view: LiveView) -> None:
    view.show(emotion())
    bars = {
        label: line.count("█")
        for label in SCORES
        for line in drawn(view)
        if f" {label} " in line and "█" in line
    }
    space = next(line for line in drawn(view) if " angry " in line).index("0.71") - 31
    assert bars["angry"] == pytest.approx(0.71 * space, abs=2)  # the bar's ends are part blocks
    assert bars["angry"] > bars["neutral"] > bars["sad"]


def test_live_view_says_what_it_does_not_know(view: LiveView) -> None:
    assert "S I L E N C E" in "\n".join(drawn(view))
    view.show(speech(True))
    text = "\n".join(drawn(view))
    assert "S P E A K I N G" in text
    assert "0.00" not in text, "no score has been given yet, so none is shown"
    view.show(emotion(warming_up=True))
    assert "warming up" in "\n".join(drawn(view))
    view.show(speech(False))
    text = "\n".join(drawn(view))
    assert "A N G R Y" not in text and "0.71" not in text, "that was before the silence"


@pytest.mark.parametrize("width", [60, 72, 80, 200])
@pytest.mark.parametrize("name", ["call.wav", "folder/" * 30 + "call.wav", "[red]\x1b[2J.wav"])
def test_live_view_never_overflows(width: int, name: str) -> None:
    view = LiveView(terminal(width), clock=Clock())
    view.begin(name, 36_000.0)
    view.show(ready("customer", "customer"))
    view.show(emotion(dropped=9999, lag_ms=99_999.0))
    view.show_audio(35_999.9, [0.0, -70.0])
    lines = drawn(view, width)
    assert {len(line) for line in lines[:-1]} == {width}
    assert "lag 99999 ms   dropped 9999" in "\n".join(lines)
    assert "35999.9 of 36000.0 s" in "\n".join(lines)
    assert "\x1b" not in "\n".join(lines)


def test_live_view_draws_ten_times_a_second_at_most() -> None:
    clock, console = Clock(), terminal()
    view = LiveView(console, clock=clock)
    view.begin("call.wav", 27.3)
    view.show(ready("customer"))
    before = len(console.file.getvalue())  # type: ignore[attr-defined]
    for _ in range(100):
        view.show_audio(1.0, [-20.0])
    assert len(console.file.getvalue()) == before  # type: ignore[attr-defined]
    clock.now_s = REFRESH_S
    view.show_audio(1.0, [-20.0])
    assert len(console.file.getvalue()) > before  # type: ignore[attr-defined]


def test_live_view_keeps_turns_and_ends_with_the_summary() -> None:
    console = terminal()
    view = LiveView(console, clock=Clock())
    view.begin("call.wav", 27.3)
    view.show(ready("customer", "agent"))
    view.show(emotion())
    view.show(TURN)
    view.show(Error(code="bad_source", message="it breaks off", fatal=True))
    view.show(SUMMARY)
    text = console.export_text()
    assert "12.25-15.10 s customer turn angry 0.71 (5 windows)\n" in text
    assert "error bad_source: it breaks off" in text
    assert "neutral 65%, angry 35%" in text
    assert "\x1b[?25h" in console.file.getvalue()  # type: ignore[attr-defined]  # the cursor is back
    view.close()


def test_messages_play_no_tricks_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    fault = Error(code="bad_source", message="a\x1b[31m\nb.wav cannot be opened", fatal=True)
    TextLines(io.StringIO()).show(fault)
    assert capsys.readouterr().err == "error bad_source: a\\x1b[31m\\nb.wav cannot be opened\n"
    console = terminal()
    LiveView(console, clock=Clock()).show(fault)
    assert console.export_text() == "error bad_source: a\\x1b[31m\\nb.wav cannot be opened\n"
