"""The loops around a :class:`Call`: blocking and asyncio.

Both cut the audio into slices, feed them, have the windows scored elsewhere, and yield the events
as they settle. Nothing is read while too many windows are out; only live audio skips windows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from streamer.call import Call, CallConfig, CallInput, Lost, TrackChunk
from streamer.errors import ScoreError, SerStreamError
from streamer.events import Event
from streamer.pressure import NEWEST, WIDENED
from streamer.session import Window

if TYPE_CHECKING:
    from streamer.batching import Scorer
    from streamer.pressure import Pressure

MAX_OUTSTANDING = 32
"""Windows of one call that may be out for scoring: 8 s of one channel at the default step."""

_MAX_OUT_OF_FILES = 2
"""The same for a call that can wait, while others do."""
_BUSY_S = 0.1
"""Waits for a score from which on files leave the scorer to live calls."""
SLICE_S = 0.25
"""Audio that is fed at once, at most."""
_log = logging.getLogger(__name__)


_Piece: TypeAlias = tuple[int, memoryview] | Lost
_Answer: TypeAlias = Future[NDArray[np.float32]]


def recognize(
    call: Call,
    chunks: Iterable[CallInput],
    scorer: Scorer,
    *,
    live: bool = False,
    max_outstanding: int = MAX_OUTSTANDING,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Event]:
    """Run a call to its end, blocking; yield its events, the last one being the ``summary``.

    Events that settle while the next chunk is awaited come out with that chunk, so a source that
    may pause yields an empty one now and then. A :class:`SerStreamError` that ``chunks`` raises
    becomes an ``error`` event; a window that cannot be scored, or not in time, is told by one too.
    Closing the generator closes ``chunks`` if that is a generator.

    Args:
        call: a call to which nothing has been fed.
        chunks: bytes of the call's format, cut anywhere, and what was lost between them.
        scorer: where windows go.
        live: skip the oldest windows instead of reading more slowly, when scoring falls behind.
            A turn's newest window is never skipped, so no turn goes without its answer.
        max_outstanding: windows that may be out for scoring before that happens.
        clock: seconds, for ``lag_ms`` alone.
    """
    scoring = _Scoring(call, scorer, live=live, max_outstanding=max_outstanding)
    try:
        yield from call.events_to_send(clock())
        try:
            for piece in _pieces(chunks, call):
                scoring.feed(piece, clock())
                yield from call.events_to_send(clock())
                while not scoring.has_room:
                    scoring.wait()
                    yield from call.events_to_send(clock())
        except SerStreamError as fault:
            call.fail(fault, clock())
        scoring.end(clock())
        yield from call.events_to_send(clock())
        while not call.is_finished:
            scoring.wait()
            yield from call.events_to_send(clock())
    finally:
        scoring.cancel()
        if isinstance(chunks, Generator):
            chunks.close()


async def converse(
    call: Call,
    chunks: AsyncIterable[CallInput],
    scorer: Scorer,
    *,
    live: bool = False,
    max_outstanding: int = MAX_OUTSTANDING,
    clock: Callable[[], float] = time.monotonic,
    pressure: Pressure | None = None,
    is_paced: Callable[[], bool] = lambda: True,
) -> AsyncIterator[Event]:
    """Run a call to its end in an event loop; yield its events, the last one the ``summary``.

    As :func:`recognize`, but events come out as soon as they settle, whether or not audio goes on.
    At most one slice is read ahead of the consumer. Closing the generator (``aclose``), or
    cancelling the task that runs it, ends the reading, closes ``chunks`` if it can be closed, and
    takes back the windows that are not being scored yet.

    ``pressure`` is of all calls of the process: it is told of this one's windows, and says how many
    are left out. Where the audio is not ``is_paced``, as it is spoken, none are: it is read slowly.
    """
    loop = asyncio.get_running_loop()
    news, room = asyncio.Event(), asyncio.Event()

    def tell(_: _Answer) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits for this answer any more
            loop.call_soon_threadsafe(news.set)

    scoring = _Scoring(call, scorer, live=live, max_outstanding=max_outstanding, on_answer=tell)
    scoring.go_by(pressure, is_paced, clock)
    reader = asyncio.create_task(_read(call, chunks, scoring, news, room, clock))
    try:
        await asyncio.sleep(0)  # the reader has begun: from here on it will close `chunks`
        while True:
            news.clear()
            scoring.settle()
            for event in call.events_to_send(clock()):
                yield event
            if reader.done():
                reader.result()
            if call.is_finished:
                return
            if scoring.has_room:
                room.set()
            await news.wait()
    finally:
        scoring.cancel()
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


async def _read(
    call: Call,
    chunks: AsyncIterable[CallInput],
    scoring: _Scoring,
    news: asyncio.Event,
    room: asyncio.Event,
    clock: Callable[[], float],
) -> None:
    """Feed a call, a slice each time that ``room`` is set, and set ``news`` after each."""
    iterator = aiter(chunks)
    try:
        async for chunk in iterator:
            for piece in _slices(chunk, call.config):
                await room.wait()
                room.clear()
                scoring.feed(piece, clock())
                news.set()
                if call.has_ended:
                    return
    except SerStreamError as fault:
        call.fail(fault, clock())
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()
        news.set()
    scoring.end(clock())


class _Scoring:
    """A call's windows that are out for scoring, oldest first."""

    def __init__(
        self,
        call: Call,
        scorer: Scorer,
        *,
        live: bool,
        max_outstanding: int,
        on_answer: Callable[[_Answer], Any] | None = None,
    ) -> None:
        self._call = call
        self._scorer = scorer
        self._live = live
        self._max_outstanding = max_outstanding
        self._on_answer = on_answer
        self._answers: dict[Window, _Answer] = {}
        self._is_failing = False
        self._pressure: Pressure | None = None
        self._is_paced: Callable[[], bool] = lambda: True
        self._clock: Callable[[], float] = time.monotonic
        self._held: dict[tuple[int, int], Window] = {}
        self._newest_out: dict[int, Window] = {}

    def go_by(
        self, pressure: Pressure | None, is_paced: Callable[[], bool], clock: Callable[[], float]
    ) -> None:
        """Share the scorer with the other calls of a process."""
        self._pressure, self._is_paced, self._clock = pressure, is_paced, clock

    @property
    def has_room(self) -> bool:
        """Whether more audio may be fed."""
        limit = self._max_outstanding
        if self._pressure and self._pressure.wait_s > _BUSY_S and not self._is_paced():
            limit = min(limit, _MAX_OUT_OF_FILES)
        return self._call.num_outstanding <= limit

    def feed(self, piece: _Piece, now_s: float) -> None:
        """Feed one slice and have its windows scored."""
        if isinstance(piece, Lost):
            self._call.receive_gap(*piece)
        else:
            channel, data = piece
            self._call.receive(data, now_s, channel)
        self._submit()

    def end(self, now_s: float) -> None:
        """End the audio and have the last windows scored."""
        self._call.receive_end(now_s)
        self._submit()

    def settle(self) -> None:
        """Hand the call every answer that has come."""
        for window in [window for window, answer in self._answers.items() if answer.done()]:
            self._settle(window, self._answers.pop(window))
        if self._held:
            self._send_held(self._level())

    def wait(self) -> None:
        """Wait for the oldest window's answer, then settle. There must be one."""
        with suppress(CancelledError):
            next(iter(self._answers.values())).exception()
        self.settle()

    def cancel(self) -> None:
        """Take back what is not being scored yet."""
        for window, answer in self._answers.items():
            answer.cancel()
            if self._pressure is not None:
                self._pressure.withdrawn(window)

    def _submit(self) -> None:
        level = self._level()
        for window in self._call.windows_to_score():
            place = window.channel, window.turn
            older = self._held.pop(place, None)
            if older is not None:
                self._call.skip(older, "overload" if level >= NEWEST else "widened")
            if self._may_go(window, level):
                self._send(window)
            else:
                self._held[place] = window
        self.settle()
        if self._live and not self.has_room:
            self._shed()

    def _level(self) -> int:
        """How much is to be left out of this call: of one that can wait, nothing."""
        return self._pressure.level if self._pressure is not None and self._is_paced() else 0

    def _may_go(self, window: Window, level: int) -> bool:
        """Whether a window that is due goes out at once, or waits to be needed or replaced."""
        if level >= NEWEST:
            return len(self._answers) < len(self._call.sessions)
        before = self._newest_out.get(window.channel)
        is_next = before is not None and before.turn == window.turn
        return (
            level < WIDENED
            or window.is_last
            or not (is_next and before is not None and before.number == window.number - 1)
        )

    def _send_held(self, level: int) -> None:
        """Send the windows that may go now; of a turn that is over, the newest has to."""
        for place, window in list(self._held.items()):
            session = self._call.sessions[window.channel]
            is_over = self._call.has_ended or not session.is_speaking
            if (level < NEWEST and is_over) or self._may_go(window, level):
                del self._held[place]
                self._send(window)

    def _send(self, window: Window) -> None:
        if self._pressure is not None:
            self._pressure.submitted(window, self._clock())
        self._newest_out[window.channel] = window
        answer = self._answers[window] = self._scorer.submit(window.features)
        if self._on_answer is not None:
            answer.add_done_callback(self._on_answer)

    def _shed(self) -> None:
        """Skip the oldest windows that nobody works on yet: the newest of each turn stays."""
        newest = {(window.channel, window.turn): window for window in self._answers}
        for window, answer in list(self._answers.items()):
            if newest[window.channel, window.turn] is not window and answer.cancel():
                del self._answers[window]
                if self._pressure is not None:
                    self._pressure.withdrawn(window)
                self._call.skip(window, "overload")
            if self.has_room:
                return

    def _settle(self, window: Window, answer: _Answer) -> None:
        if self._pressure is not None:
            self._pressure.answered(window, self._clock())
        error = CancelledError() if answer.cancelled() else answer.exception()
        if error is None:
            try:
                self._call.receive_scores(window, answer.result())
            except ScoreError as refusal:
                error = refusal
        if error is not None:
            self._call.skip(window, "scorer_failed")
            if not self._is_failing:  # of several in a row the log gets the first
                _log.warning("a window could not be scored: %r", error)
        self._is_failing = error is not None


def _pieces(chunks: Iterable[CallInput], call: Call) -> Iterator[_Piece]:
    """Yield the slices of all chunks, as long as the call takes any."""
    for chunk in chunks:
        for piece in _slices(chunk, call.config):
            yield piece
            if call.has_ended:
                return


def _slices(chunk: CallInput, config: CallConfig) -> Iterator[_Piece]:
    """Yield what arrived in pieces of at most 0.25 s, so that no chunk is too large to feed."""
    if isinstance(chunk, Lost):
        yield chunk
        return
    channel, data = chunk if isinstance(chunk, TrackChunk) else (0, chunk)
    audio = config.audio
    width = audio.bytes_per_block // (audio.channels if config.as_tracks else 1)
    length = round(SLICE_S * audio.sample_rate) * width
    view = memoryview(data)
    for start in range(0, len(view) or 1, length):  # an empty one too: it lets events out
        yield channel, view[start : start + length]
