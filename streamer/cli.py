"""The commands: ``ser-stream`` hears files, standard input, a microphone; ``ser-serve`` serves."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import math
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, TextIO, cast

import numpy as np
from msgspec import structs
from rich.console import Console

from streamer.audio import SAMPLE_RATE, AudioFormat, Decoder
from streamer.batching import Batcher, Scorer
from streamer.call import Call, CallConfig, Chunk, Lost
from streamer.drivers import recognize
from streamer.errors import SerStreamError, SourceError
from streamer.events import Error, Event, Ready, Summary, event_schema
from streamer.live_view import LiveView
from streamer.microphone import Microphone, list_devices
from streamer.model import Model
from streamer.options import stream_options
from streamer.session import Session, SessionConfig
from streamer.sources import file_chunks, paced, stdin_chunks
from streamer.terminal import (
    LEVEL_MIN_DBFS,
    JsonLines,
    ProgressBar,
    TextLines,
    View,
    printable,
)

EXIT_FINE, EXIT_FAILED, EXIT_USAGE = 0, 1, 2
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell says it of any command before `| head`


@dataclass(frozen=True, kw_only=True)
class _Source:
    """Where audio comes from: its chunks, their format, and whether windows may be skipped."""

    chunks: Iterable[Chunk]
    audio: AudioFormat
    duration_s: float | None = None
    is_live: bool = False


class _Interruption:
    """Ctrl-C and SIGTERM end the audio, not the program: its tail is scored, its summary given.

    The second signal ends the process at once. To be used in a ``with``, on the main thread.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._is_reading = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> _Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def until(self, chunks: Iterable[Chunk]) -> Generator[Chunk]:
        """Yield chunks until a signal comes, which also ends the wait for the next one."""
        iterator = iter(chunks)
        while (chunk := self._next(iterator)) is not None:
            yield chunk

    def _next(self, iterator: Iterator[Chunk]) -> Chunk | None:
        try:
            try:
                # In this order: a signal before the first line is seen, one after it is raised.
                self._is_reading = True
                return None if self.signal is not None else next(iterator, None)
            finally:
                self._is_reading = False
        except _Stop:
            return None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            # Not by an exception: one that is raised while a generator closes is only printed.
            if os.isatty(1):
                os.write(1, b"\x1b[?25h\n")  # the cursor that a live view has hidden
            os._exit(128 + self.signal)
        self.signal = number
        if self._is_reading:
            self._is_reading = False
            raise _Stop


class _Stop(BaseException):
    """A signal came while audio was awaited."""


class _Tap:
    """Tells views how much audio passed, and its level: each channel's RMS over 0.1 s or more."""

    def __init__(self, audio: AudioFormat, views: Sequence[View]) -> None:
        self._views = views
        self._rate = audio.sample_rate
        self._decoder = Decoder(audio, audio.sample_rate)
        self._num_samples = 0
        self._squares = np.zeros(audio.channels)
        self._num_squares = 0

    def through(self, chunks: Iterable[Chunk]) -> Generator[Chunk]:
        """Yield the chunks as they are."""
        for chunk in chunks:
            if isinstance(chunk, Lost):
                self._num_samples += chunk.num_samples * self._rate // SAMPLE_RATE
            elif self._decoder.fault is None:
                self._measure(chunk)
            yield chunk

    def _measure(self, chunk: bytes) -> None:
        num_samples = 0
        for channel, samples in self._decoder.receive(chunk):
            num_samples = len(samples)
            self._squares[channel] += float(np.square(samples, dtype=np.float64).sum())
        self._num_samples += num_samples
        self._num_squares += num_samples
        if self._num_squares * 10 >= self._rate:
            levels = [_dbfs(float(total) / self._num_squares) for total in self._squares]
            self._squares[:], self._num_squares = 0.0, 0
            for view in self._views:
                view.show_audio(self._num_samples / self._rate, levels)


class _Listener:
    """Hears one source after another through one scorer."""

    def __init__(self, options: argparse.Namespace, scorer: Scorer, views: Sequence[View]) -> None:
        self._options = options
        self._scorer = scorer
        self._views = views
        self._session = SessionConfig(step_s=options.step_ms / 1000)
        Session(self._session, scorer.card)  # refuses a step that no source could have
        self.has_failed = False
        """Whether any source gave an ``error``."""

    def hear(self, path: str | None, interruption: _Interruption) -> None:
        """Hear one source to its end; what is wrong with it becomes its events.

        Args:
            path: a file, ``-`` for standard input, None for the microphone.
            interruption: what ends it early.
        """
        with contextlib.ExitStack() as stack:
            try:
                source = stack.enter_context(_open(path, self._options))
                call = self._call(path, source.audio, self._options.roles)
            except SerStreamError as fault:
                self._fail(path, fault)
                return
            self._begin(path, source.duration_s)
            chunks = _Tap(source.audio, self._views).through(interruption.until(source.chunks))
            for event in recognize(call, chunks, self._scorer, live=source.is_live):
                self._show(event)

    def _call(self, path: str | None, audio: AudioFormat, roles: tuple[str, ...]) -> Call:
        source = None if path in (None, "-") else _as_utf8(str(path))
        config = CallConfig(
            audio=audio,
            roles=roles,
            analyse_agents=self._options.analyse_agents,
            session=self._session,
            source=source,
        )
        return Call(self._scorer.card, config)

    def _fail(self, path: str | None, fault: SerStreamError) -> None:
        """Show the events of a source of which nothing was heard, and which never was ready."""
        call = self._call(path, AudioFormat(), ())
        call.fail(fault, time.monotonic())
        self._begin(path, None)
        events = [
            event for event in call.events_to_send(time.monotonic()) if not isinstance(event, Ready)
        ]
        for seq, event in enumerate(events):
            if isinstance(event, Summary):
                event = structs.replace(event, channels=())  # nobody knows which it has
            self._show(structs.replace(event, seq=seq))

    def _begin(self, path: str | None, duration_s: float | None) -> None:
        name = {None: "microphone", "-": "standard input"}.get(path, path)
        for view in self._views:
            view.begin(str(name), duration_s)

    def _show(self, event: Event) -> None:
        if isinstance(event, Error):
            self.has_failed = True
            event = structs.replace(event, message=_as_utf8(event.message))
        for view in self._views:
            view.show(event)


def main_stream(arguments: Sequence[str] | None = None) -> int:
    """Run ``ser-stream``; return its exit code.

    Raises:
        SystemExit: from argparse, with 2 for usage and 0 for ``--help`` and ``--version``.
    """
    options = stream_options(arguments)
    logging.basicConfig(format="ser-stream: %(levelname)s: %(message)s", level=logging.WARNING)
    has_failed = False
    if sys.stderr is None:  # closed: what is said there must not go to standard output instead
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # it stays open, as the other was
    if sys.stdout is None:
        return _refuse("ser-stream", "standard output is closed: expected it open, for events")
    with _Interruption() as interruption:
        try:
            if options.schema:
                print(json.dumps(event_schema(), indent=2), flush=True)
                return EXIT_FINE
            if options.list_devices:
                print("\n".join(list_devices()) or "no device that records", flush=True)
                return EXIT_FINE
            has_failed = _stream(options, interruption)
        except SerStreamError as error:
            return _refuse("ser-stream", str(error))
        except OSError as error:  # of the output: those of sources and models are errors of ours
            return _give_up_output(error)
    if interruption.signal is not None:
        return 128 + interruption.signal
    return EXIT_FAILED if has_failed else EXIT_FINE


def main_serve(arguments: Sequence[str] | None = None) -> int:
    """Run ``ser-serve``; return its exit code.

    Raises:
        SystemExit: from argparse, with 2 for usage and 0 for ``--help`` and ``--version``.
    """
    # Here, so that ser-stream does not wait for the import of a web server.
    from streamer.server_command import main

    return main(arguments)


def _stream(options: argparse.Namespace, interruption: _Interruption) -> bool:
    """Hear all sources; return whether any of them failed."""
    with contextlib.ExitStack() as stack:
        model = Model.load(options.model, provider=options.provider)
        scorer = stack.enter_context(Batcher(model))
        views = _views(options)
        for view in views:
            stack.callback(view.close)
        listener = _Listener(options, scorer, views)
        for path in [None] if options.mic else options.paths:
            if interruption.signal is None:
                listener.hear(path, interruption)
        return listener.has_failed


def _views(options: argparse.Namespace) -> list[View]:
    """Choose how to show: a live view on a terminal that can, else lines; a bar where it fits."""
    console, errors = Console(), Console(stderr=True)
    if options.json:
        views: list[View] = [JsonLines(sys.stdout.buffer)]
    elif _can_draw(console) and not console.no_color:
        return [LiveView(console)]
    else:
        views = [TextLines(sys.stdout, names_source=len(options.paths) > 1)]
    if _can_draw(errors) and _is_kept(sys.stdout) and not options.realtime:
        views.append(ProgressBar(errors))
    return views


def _can_draw(console: Console) -> bool:
    is_utf8 = console.encoding.lower().startswith("utf")
    return console.is_terminal and not console.is_dumb_terminal and is_utf8


def _is_kept(stream: TextIO) -> bool:
    """Whether output goes to a file or nowhere: a pipe's reader may write to this terminal."""
    try:
        mode = os.fstat(stream.fileno()).st_mode
    except OSError:  # no file behind it
        return False
    return stat.S_ISREG(mode) or (stat.S_ISCHR(mode) and not stream.isatty())


def _refuse(command: str, reason: str) -> int:
    print(f"{command}: error: {printable(reason)}", file=sys.stderr)
    return EXIT_USAGE


def _give_up_output(error: OSError) -> int:
    """Say that output cannot be written, unless its reader left; return the exit code."""
    # What is still in the buffer has nowhere to go, and Python would say so at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return EXIT_BROKEN_PIPE
    with contextlib.suppress(OSError):
        _refuse("ser-stream", f"output cannot be written ({error.strerror})")
    return EXIT_FAILED


def _as_utf8(text: str) -> str:
    """Return text that JSON can hold: a file's name may be any bytes."""
    return text.encode(errors="replace").decode()


def _dbfs(power: float) -> float:
    """Return the level of a mean square, a sine of full scale being at -3 dB."""
    return max(LEVEL_MIN_DBFS, 10 * math.log10(power)) if power > 0 else LEVEL_MIN_DBFS


@contextlib.contextmanager
def _open(path: str | None, options: argparse.Namespace) -> Iterator[_Source]:
    """Open a source, None being the microphone.

    Raises:
        SourceError: it cannot be opened.
    """
    if path is None:
        with Microphone(options.device) as microphone:
            yield _Source(chunks=microphone, audio=microphone.format, is_live=True)
        return
    if path == "-":
        if sys.stdin is None:
            raise SourceError("standard input is closed: expected audio")
        stdin = cast(io.BufferedReader, sys.stdin.buffer)
        chunks: Iterable[Chunk] = stdin_chunks(stdin, is_declared=options.is_declared)
        source = _Source(chunks=chunks, audio=options.audio)
    else:
        file = file_chunks(path)
        source = _Source(chunks=file, audio=file.format, duration_s=file.duration_s)
    if options.realtime:
        source = replace(source, chunks=paced(source.chunks, source.audio))
    yield source
