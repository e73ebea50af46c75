"""The live view: what goes on in each channel of a call, now."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.bar import Bar
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from streamer.events import (
    Alert,
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
)
from streamer.terminal import (
    LEVEL_MIN_DBFS,
    channel_line,
    channel_names,
    event_line,
    printable,
    shares,
)

REFRESH_S = 0.1
"""Seconds between two drawings, at least."""

_STYLES = {
    "angry": "red",
    "happy": "green",
    "neutral": "cyan",
    "sad": "blue",
    "uncertain": "bright_black",
}
_BLOCK_WIDTH = 18
_METER_WIDTH = 10
_NUM_KEPT = 100


@dataclass
class _Channel:
    """What the view knows of a channel."""

    name: str
    analysed: bool
    is_speaking: bool = False
    emotion: Emotion | None = None
    level_dbfs: float = LEVEL_MIN_DBFS
    lag_ms: float = 0.0
    dropped: int = 0


class LiveView:
    """What goes on in each channel, now; turns scroll away above it, a summary takes its place.

    Drawn when something is shown, at most ten times a second: nothing changes in between. A
    terminal whose size has changed has moved what stands on it: it is cleared, and the newest lines
    are printed again.

    Args:
        console: the terminal.
        clock: seconds, for the rate of drawing.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._live: Live | None = None
        self._size = console.size
        self._kept: deque[RenderableType] = deque(maxlen=_NUM_KEPT)
        self._drawn_s = -REFRESH_S
        self._name = ""
        self._duration_s: float | None = None
        self._time_s = 0.0
        self._labels: tuple[str, ...] = ()
        self._names: dict[int, str] = {}
        self._channels: list[_Channel] = []

    def begin(self, name: str, duration_s: float | None) -> None:
        """Start the picture of a new source."""
        self.close()
        self._name, self._duration_s, self._time_s = printable(name), duration_s, 0.0
        self._labels, self._names, self._channels = (), {}, []

    def show(self, event: Event) -> None:
        """Take an event into the picture; print it above if it is worth keeping."""
        match event:
            case Ready():
                self._start(event)
            case Summary():
                self.close()
                self._keep(self._summary(event))
            case Error():
                self._keep(Text(event_line(event, self._names), "red"))
            case TalkOver():
                self._keep(Text(event_line(event, self._names), "yellow"))
            case _:
                self._take(event)
        self._draw()

    def show_audio(self, time_s: float, levels_dbfs: Sequence[float]) -> None:
        """Move the level meters and the time."""
        self._time_s = time_s
        for channel, level_dbfs in zip(self._channels, levels_dbfs, strict=True):
            channel.level_dbfs = level_dbfs
        self._draw()

    def close(self) -> None:
        """Remove the picture, show the cursor; what was printed above stays."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def picture(self) -> RenderableType:
        """Return the view of the moment."""
        parts: list[RenderableType] = []
        for channel in self._channels:
            parts += [Text()] if parts else []
            parts += [_header(channel, self._console.width - 4), _body(channel, self._labels)]
        time_text = f"{self._time_s:.1f} s"
        if self._duration_s is not None:
            time_text = f"{self._time_s:.1f} of {self._duration_s:.1f} s"
        panel = Panel(
            Group(*parts),
            title=Text(self._name, "bold", overflow="ellipsis"),
            title_align="left",
            subtitle=Text(time_text),
            subtitle_align="right",
            border_style="dim",
        )
        # The last line is short: a terminal writes ^C after it, and at the right edge that would
        # scroll, so that the picture could not be erased.
        return Group(panel, Text(" Ctrl-C ends with a summary", "dim"))

    def _start(self, ready: Ready) -> None:
        self._labels, self._names = ready.labels, channel_names(ready)
        self._channels = [
            _Channel(self._names[item.channel], item.analysed) for item in ready.channels
        ]
        self._open()

    def _open(self) -> None:
        self._size = self._console.size
        self._live = Live(
            get_renderable=self.picture,
            console=self._console,
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=sys.stderr.isatty(),
        )
        self._live.start()

    def _take(self, event: Speech | Emotion | Turn | Gap | Lag | Alert) -> None:
        assert event.channel is not None
        channel = self._channels[event.channel]
        channel.lag_ms, channel.dropped = event.lag_ms, event.dropped
        match event:
            case Speech():
                channel.is_speaking, channel.emotion = event.active, None
            case Emotion():
                channel.emotion = event
            case Turn():
                line = Text(event_line(event, self._names), no_wrap=True, overflow="ellipsis")
                line.highlight_words([event.label], f"bold {_style(event.label)}")
                self._keep(line)
            case Gap() | Lag():
                self._keep(Text(event_line(event, self._names), "yellow"))
            case Alert():
                self._keep(Text(event_line(event, self._names), "bold red"))

    def _keep(self, line: RenderableType) -> None:
        self._kept.append(line)
        self._console.print(line)

    def _summary(self, event: Summary) -> RenderableType:
        table = summary_table(event, self._name, self._names)
        unbounded = self._console.options.update(max_width=sys.maxsize)
        width = self._console.measure(table, options=unbounded).maximum
        if event.channels and width <= self._console.width:
            return table
        lines = [channel_line(item, self._names) for item in event.channels]
        return Text("\n".join([str(table.title), *(lines or ["nothing was heard"])]))

    def _draw(self) -> None:
        now_s = self._clock()
        if self._live is None or now_s - self._drawn_s < REFRESH_S:
            return
        self._drawn_s = now_s
        if self._console.size != self._size:
            self.close()
            self._console.clear()
            for line in list(self._kept)[-self._console.height :]:
                self._console.print(line)
            self._open()
        self._live.refresh()


def summary_table(summary: Summary, name: str, names: dict[int, str]) -> Table:
    """Return a call's summary as a table, one row a channel."""
    table = Table(
        title=Text(f"{name}: {summary.duration_s:.1f} s, lag at most {summary.max_lag_ms:.0f} ms"),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("channel")
    for column in ("speech", "turns", "emotions", "dropped"):
        table.add_column(column, justify="right")
    table.add_column("turns' time by label")
    for item in summary.channels:
        table.add_row(
            Text(names.get(item.channel, item.role)),
            f"{item.speech_s:.1f} s",
            str(item.turns),
            str(item.emotions) if item.analysed else "-",
            str(item.dropped) if item.analysed else "-",
            shares(item) or "-",
        )
    return table


def _header(channel: _Channel, width: int) -> RenderableType:
    level = channel.level_dbfs - LEVEL_MIN_DBFS
    style = "yellow" if channel.level_dbfs > -3 else "green"
    figures = Text(f"{channel.level_dbfs:3.0f} dBFS   lag {channel.lag_ms:3.0f} ms   ")
    figures.append(f"dropped {channel.dropped}", "bold yellow" if channel.dropped else "")
    name = Text(channel.name, "bold")
    header = Table.grid(expand=True, padding=(0, 1, 0, 0))
    header.add_column(min_width=name.cell_len, ratio=1, no_wrap=True)
    if name.cell_len + 1 + _METER_WIDTH + 1 + figures.cell_len > width:  # the name comes first
        figures.truncate(max(1, width - name.cell_len - 1), overflow="ellipsis")
        header.add_column(no_wrap=True)
        header.add_row(name, figures)
        return header
    header.add_column(width=_METER_WIDTH)
    header.add_column(no_wrap=True)
    meter = Bar(
        -LEVEL_MIN_DBFS, 0.0, level, width=_METER_WIDTH, color=style, bgcolor="bright_black"
    )
    header.add_row(name, meter, figures)
    return header


def _body(channel: _Channel, labels: Sequence[str]) -> RenderableType:
    body = Table.grid(expand=True, padding=(0, 2, 0, 0))
    body.add_column(width=_BLOCK_WIDTH, no_wrap=True)
    body.add_column(ratio=1)
    emotion = channel.emotion
    state = "speaking" if channel.is_speaking else "silence"
    if not channel.analysed:
        note = Text("not analysed: speech only, no emotion inferred", "dim")
        body.add_row(_block(state, "bold reverse" if channel.is_speaking else "dim", 1), note)
    elif emotion is None:
        body.add_row(_block(state, "bold" if channel.is_speaking else "dim", 3), _bars(labels))
    else:
        block = _block(emotion.label, f"bold reverse {_style(emotion.label)}", 3)
        status = Text("warming up" if emotion.warming_up else "", "yellow", justify="center")
        body.add_row(Group(block, status), _bars(labels, emotion))
    return body


def _block(word: str, style: str, height: int) -> Text:
    """Return a word in a box of colour, its letters spaced if they fit so."""
    spaced = " ".join(word.upper())
    lines = [" " * _BLOCK_WIDTH] * height
    lines[height // 2] = (spaced if len(spaced) <= _BLOCK_WIDTH else word).center(_BLOCK_WIDTH)
    return Text("\n".join(lines), style)


def _bars(labels: Sequence[str], emotion: Emotion | None = None) -> RenderableType:
    bars = Table.grid(expand=True, padding=(0, 1, 0, 0))
    bars.add_column(min_width=8, no_wrap=True)
    bars.add_column(ratio=1)
    bars.add_column(width=4, no_wrap=True)
    for label in labels:
        if emotion is None:
            bars.add_row(Text(label, "dim"), Text(), Text("   -", "dim"))
            continue
        score = emotion.scores[label]
        bars.add_row(
            Text(label, "bold" if label == emotion.label else ""),
            Bar(1.0, 0.0, score, color=_style(label)),
            Text(f"{score:.2f}"),
        )
    return bars


def _style(label: str) -> str:
    return _STYLES.get(label, "magenta")
