"""The live view on terminals that are narrow, or whose size changes."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from rich.console import ConsoleDimensions

from streamer.live_view import REFRESH_S, LiveView
from tests.test_terminal import SUMMARY, TURN, Clock, drawn, emotion, ready, terminal


@pytest.mark.parametrize("width", [40, 50, 60, 80])
def test_channels_are_named_however_narrow_the_terminal_is(width: int) -> None:
    view = LiveView(terminal(width), clock=Clock())
    view.begin("call.wav", 27.3)
    view.show(ready("customer", "customer"))
    view.show(emotion())
    view.show_audio(12.3, [-23.4, -61.0])
    lines = drawn(view, width)
    assert {len(line) for line in lines[:-1]} == {width}
    assert "customer/0" in "\n".join(lines) and "customer/1" in "\n".join(lines)
    assert ("dropped 0" in "\n".join(lines)) == (width > 40)


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_summary_breaks_no_word(width: int) -> None:
    console = terminal(width)
    view = LiveView(console, clock=Clock())
    view.begin("call.wav", 27.3)
    view.show(ready("customer", "agent"))
    view.show(SUMMARY)
    text = console.export_text().split("call.wav: 27.3 s")[-1]
    for word in ("customer", "neutral", "65%", "angry", "35%", "not", "analysed"):
        assert word in text.replace(",", "").split()
    assert ("turns' time by label" in text) == (width > 60)


def test_a_source_of_which_nothing_is_known_has_no_table() -> None:
    console = terminal()
    view = LiveView(console, clock=Clock())
    view.begin("missing.wav", None)
    view.show(type(SUMMARY)(duration_s=0.0, max_lag_ms=0.0, channels=()))
    assert console.export_text().splitlines()[1:] == ["nothing was heard"]


def test_a_terminal_whose_size_changes_is_drawn_anew() -> None:
    clock, console = Clock(), terminal(80)
    view = LiveView(console, clock=clock)
    view.begin("call.wav", 27.3)
    view.show(ready("customer", "agent"))
    view.show(TURN)
    for width in (60, 100):
        console.size = ConsoleDimensions(width, 24)
        console.export_text()
        before = len(console.file.getvalue())  # type: ignore[attr-defined]
        clock.now_s += REFRESH_S
        view.show_audio(1.0, [-20.0, -20.0])
        written = console.file.getvalue()[before:]  # type: ignore[attr-defined]
        _, cleared, after = written.partition("\x1b[2J\x1b[H")
        assert cleared, "what the terminal has moved cannot be erased line by line"
        assert "12.25-15.10 s customer turn angry" in console.export_text()
        assert "call.wav" in after
    view.close()


def test_an_uncertain_turn_looks_like_no_emotion() -> None:
    console = terminal()
    view = LiveView(console, clock=Clock())
    view.begin("call.wav", 27.3)
    view.show(ready("customer", "agent"))
    for label in ("uncertain", "angry"):
        view.show(replace(TURN, label=label))
    view.close()
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert "turn \x1b[1;90muncertain" in written, "grey"
    assert "turn \x1b[1;31mangry" in written, "red"
