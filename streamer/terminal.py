"""How events look, but for the live view: JSON lines, lines to read, a progress bar."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import BinaryIO, Protocol, TextIO

from msgspec import UNSET
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn

from streamer.events import (
    Alert,
    ChannelSummary,
    Emotion,
    Error,
    Event,
    Gap,
    Lag,
    Ready,
    Speech,
    Summary,
    TalkOver,
    Turn,
    encode_event,
)

LEVEL_MIN_DBFS = -70.0
"""Levels below this are shown as this: nothing that a microphone hears is more silent."""

REFRESH_S = 0.1
"""Seconds between two drawings of the live view, at least."""

_STYLES = {"angry": "red", "happy": "green", "neutral": "cyan", "sad": "blue"}


class View(Protocol):
    """Where events are shown, source after source."""

    def begin(self, name: str, duration_s: float | None) -> None:
        """A source begins; its duration is None where nobody knows it."""
        ...

    def show(self, event: Event) -> None:
        """Show an event."""
        ...

    def show_audio(self, time_s: float, levels_dbfs: Sequence[float]) -> None:
        """Show how much of the source's audio was taken, and the newest level of each channel."""
        ...

    def close(self) -> None:
        """Leave the terminal as it was found. A second call does nothing."""
        ...


class JsonLines:
    """One event a line, in the JSON of the wire, flushed line by line."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def begin(self, name: str, duration_s: float | None) -> None:
        """Nothing: every event names its source."""

    def show(self, event: Event) -> None:
        """Write the event's line."""
        self._stream.write(encode_event(event) + b"\n")
        self._stream.flush()

    def show_audio(self, time_s: float, levels_dbfs: Sequence[float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing: all lines are flushed."""


class TextLines:
    """One event a line, for people and for grep; errors go to standard error.

    Args:
        stream: where the lines go.
        names_source: whether lines begin with their source, for there are several.
    """

    def __init__(self, stream: TextIO, *, names_source: bool = False) -> None:
        self._stream = stream
        self._names_source = names_source
        self._names: dict[int, str] = {}

    def begin(self, name: str, duration_s: float | None) -> None:
        """Forget the channels of the source before."""
        self._names = {}

    def show(self, event: Event) -> None:
        """Print the event's line."""
        if isinstance(event, Ready):
            self._names = channel_names(event)
        line = event_line(event, self._names)
        if self._names_source and event.source is not UNSET:
            line = f"{printable(event.source)}: {line}"
        # Standard error is looked up at every line: a progress bar puts itself in its place.
        print(line, file=sys.stderr if isinstance(event, Error) else self._stream, flush=True)

    def show_audio(self, time_s: float, levels_dbfs: Sequence[float]) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing: all lines are flushed."""


class ProgressBar:
    """How much of each file was heard, on standard error; it leaves nothing behind."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.completed:.0f} of {task.total:.0f} s"),
            console=console,
            transient=True,
            redirect_stdout=False,
        )
        self._task: TaskID | None = None

    def begin(self, name: str, duration_s: float | None) -> None:
        """Show an empty bar, where the duration is known."""
        self._end()
        if duration_s is not None:
            self._progress.start()
            self._task = self._progress.add_task(printable(name), total=duration_s)

    def show(self, event: Event) -> None:
        """Remove the bar at the end of its file."""
        if isinstance(event, Summary):
            self._end()

    def show_audio(self, time_s: float, levels_dbfs: Sequence[float]) -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.update(self._task, completed=time_s)

    def close(self) -> None:
        """Remove the bar."""
        self._end()
        self._progress.stop()

    def _end(self) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


def printable(text: str) -> str:
    """Return text on one line, escaped where it would play tricks on a terminal."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def channel_names(ready: Ready) -> dict[int, str]:
    """Return what to call each channel: its role, and its number where others have that role."""
    roles = [item.role for item in ready.channels]
    return {
        item.channel: item.role if roles.count(item.role) == 1 else f"{item.role}/{item.channel}"
        for item in ready.channels
    }


def event_line(event: Event, names: dict[int, str]) -> str:
    """Return an event as a line to read; ``names`` tells what to call its channel."""
    name = "" if event.channel is None else f"{names.get(event.channel, event.role)} "
    match event:
        case Ready():
            channels = ", ".join(
                names[item.channel] + ("" if item.analysed else " (not analysed)")
                for item in event.channels
            )
            return (
                f"ready {channels}; {event.encoding} at {event.sample_rate} Hz; model {event.model}"
            )
        case Speech():
            return f"{event.time_s:.2f} s {name}speech {'begins' if event.active else 'ends'}"
        case Emotion():
            note = " (warming up)" if event.warming_up else ""
            return f"{event.end_s:.2f} s {name}{event.label} {_score(event):.2f}{note}"
        case Turn():
            windows = f"{event.windows} window{'' if event.windows == 1 else 's'}"
            return f"{_span(event)} {name}turn {event.label} {_score(event):.2f} ({windows})"
        case Gap():
            return f"{_span(event)} {name}gap: audio is missing ({event.reason})"
        case Lag():
            return f"{_span(event)} {name}lag: not scored from here on ({event.reason})"
        case TalkOver():
            return f"{_span(event)} talk-over"
        case Alert():
            heard = f"{event.label} {event.probability:.2f}"
            return f"{_span(event)} {name}alert {event.rule}: {heard}"
        case Error():
            return f"{name}error {event.code}: {printable(event.message)}"
        case Summary():
            lines = [channel_line(item, names) for item in event.channels]
            lines += [f"talk-over {event.talk_over_s:.2f} s"] if event.talk_over_s else []
            parts = "; ".join(lines) or "nothing was heard"
            return f"summary of {event.duration_s:.2f} s: {parts}; lag {event.max_lag_ms:.0f} ms"


def channel_line(item: ChannelSummary, names: dict[int, str]) -> str:
    """Return a channel's part of the summary as a line to read."""
    turns = f"{item.turns} turn{'' if item.turns == 1 else 's'}"
    parts = [f"{names.get(item.channel, item.role)} {turns} in {item.speech_s:.2f} s of speech"]
    parts += [labels] if (labels := shares(item)) else []
    parts += [f"{item.dropped} dropped"] if item.analysed else []
    return ", ".join(parts)


def shares(item: ChannelSummary) -> str:
    """Return what share of its turns' time a channel had each label; empty without any."""
    if not item.analysed:
        return "not analysed"
    ordered = sorted(item.labels.items(), key=lambda pair: -pair[1])
    return ", ".join(f"{label} {share:.0%}" for label, share in ordered if share > 0)


def _span(event: Turn | Gap | Lag | TalkOver | Alert) -> str:
    return f"{event.start_s:.2f}-{event.end_s:.2f} s"


def _score(event: Emotion | Turn) -> float:
    """The score of the label; the highest one where that is "uncertain", which has none."""
    return event.scores.get(event.label, max(event.scores.values()))
