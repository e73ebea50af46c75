"""The asyncio driver, `converse`; `recognize` is in test_drivers.py."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Coroutine
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.arrays import WindowFeatures
from streamer.audio import AudioFormat
from streamer.call import Chunk
from streamer.drivers import converse
from streamer.errors import SourceError
from streamer.events import Emotion, Error, Lag, Speech, Summary, Turn
from tests.scorers import (
    FakeScorer,
    OwnScorer,
    assert_same_events,
    cut,
    hear,
    make_card,
    new_call,
    of_type,
    two_turns,
)

CARD = make_card()
AUDIO = two_turns()
ONE_TURN = AUDIO[: 2 * 16000 * 2]


def run(test: Coroutine[Any, Any, None]) -> None:
    """Run a test in a loop of its own; nothing may be left in it, or be said to be."""
    complaints: list[dict[str, Any]] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, complaint: complaints.append(complaint)
        )
        await test
        gc.collect()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(watched())
    gc.collect()
    assert complaints == []


async def let_others_run(passes: int = 200) -> None:
    for _ in range(passes):
        await asyncio.sleep(0)


class Line:
    """An audio source that a test can look into."""

    def __init__(
        self, chunks: list[Chunk], *, error: Exception | None = None, pause: bool = False
    ) -> None:
        self._chunks, self._error, self._pause = chunks, error, pause
        self.num_taken = 0
        self.is_closed = False

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        try:
            for chunk in self._chunks:
                self.num_taken += 1
                yield chunk
            if self._pause:
                await asyncio.Event().wait()
            if self._error is not None:
                raise self._error
        finally:
            self.is_closed = True


def running(_: WindowFeatures) -> Future[NDArray[np.float32]]:
    future: Future[NDArray[np.float32]] = Future()
    future.set_running_or_notify_cancel()
    return future


@pytest.mark.parametrize("size", [640, 7777, len(AUDIO)])
def test_converse_gives_the_events_of_the_call(size: int) -> None:
    async def test() -> None:
        line = Line(list(cut(AUDIO, size)))
        with FakeScorer(CARD, answer="thread") as scorer:
            events = [event async for event in converse(new_call(), line, scorer)]
        assert_same_events(events, hear(new_call(), [AUDIO]))
        assert line.is_closed

    run(test())


def test_scores_come_out_though_the_audio_pauses() -> None:
    async def test() -> None:
        line, scorer = Line([ONE_TURN], pause=True), FakeScorer(CARD, answer="held")
        events = converse(new_call(), line, scorer)
        seen = [await anext(events), await anext(events)]
        assert isinstance(seen[1], Speech)
        waiting = asyncio.ensure_future(anext(events))
        await let_others_run()
        assert not waiting.done() and scorer.num_held > 1
        scorer.release(1)
        assert isinstance(await waiting, Emotion)
        scorer.release()
        assert isinstance(await anext(events), Emotion)
        await events.aclose()  # type: ignore[attr-defined]
        assert line.is_closed

    run(test())


def test_cancelling_the_listener_leaves_nothing_behind() -> None:
    async def test() -> None:
        line, scorer = Line([AUDIO], pause=True), FakeScorer(CARD, answer="held")

        async def listen() -> None:
            async for _ in converse(new_call(), line, scorer):
                pass

        listener = asyncio.create_task(listen())
        await let_others_run()
        assert scorer.num_held > 3
        listener.cancel()
        with pytest.raises(asyncio.CancelledError):
            await listener
        await let_others_run(3)  # asyncio closes a generator that its listener left
        assert line.is_closed
        scorer.release()
        assert scorer.num_scored == 0

    run(test())


@pytest.mark.parametrize("passes", [0, 200], ids=["at once", "later"])
@pytest.mark.parametrize("error", [None, SourceError("broken"), ZeroDivisionError()])
def test_closing_after_the_first_event_leaves_nothing_behind(
    error: Exception | None, passes: int
) -> None:
    async def test() -> None:
        line = Line([b"\0\0"], error=error)
        events = converse(new_call(), line, FakeScorer(CARD))
        await anext(events)
        await let_others_run(passes)
        await events.aclose()  # type: ignore[attr-defined]
        assert line.is_closed or line.num_taken == 0

    run(test())


def test_converse_stops_reading_while_too_much_is_out() -> None:
    async def test() -> None:
        call, line = new_call(), Line(list(cut(AUDIO, 640)))
        scorer, events = FakeScorer(CARD, answer="held"), []

        async def listen() -> None:
            async for event in converse(call, line, scorer, max_outstanding=3):
                events.append(event)

        listener = asyncio.create_task(listen())
        while not listener.done():
            await let_others_run(2000)
            assert call.num_outstanding <= 4
            assert scorer.release(1, newest=True) or listener.done()
        await listener
        assert_same_events(events, hear(new_call(), [AUDIO]))

    run(test())


def test_converse_reads_one_slice_ahead_of_a_slow_listener() -> None:
    async def test() -> None:
        line, call = Line(list(cut(AUDIO, 640))), new_call()
        events = converse(call, line, FakeScorer(CARD))
        await anext(events)
        await let_others_run()
        assert line.num_taken <= 2
        async for event in events:
            num_before = line.num_taken
            await let_others_run(10)
            assert line.num_taken - num_before <= 2, event
        assert call.is_finished

    run(test())


def test_live_conversation_skips_and_reads_on() -> None:
    async def test() -> None:
        line, scorer = Line(list(cut(AUDIO, 640)), pause=True), FakeScorer(CARD, answer="held")
        events = converse(new_call(), line, scorer, live=True, max_outstanding=4)
        async for event in events:
            if isinstance(event, Lag):
                break
        await events.aclose()  # type: ignore[attr-defined]
        assert 640 * line.num_taken > 2 * 16000

    run(test())


def test_converse_tells_of_a_source_that_breaks_off() -> None:
    async def test() -> None:
        line = Line([ONE_TURN], error=SourceError("found half"))
        *events, error, summary = [
            event async for event in converse(new_call(), line, FakeScorer(CARD))
        ]
        assert isinstance(error, Error) and (error.code, error.fatal) == ("bad_source", True)
        assert isinstance(summary, Summary) and summary.duration_s == 2.0
        assert len(of_type(events, Turn)) == 1

    run(test())


def test_converse_lets_through_what_is_no_error_of_ours() -> None:
    async def test() -> None:
        line, scorer = Line([ONE_TURN], error=ZeroDivisionError()), FakeScorer(CARD, answer="held")
        with pytest.raises(ZeroDivisionError):
            async for _ in converse(new_call(), line, scorer):
                pass
        assert line.is_closed
        scorer.release()
        assert scorer.num_scored == 0

    run(test())


def test_converse_ends_the_reading_at_bytes_that_are_no_audio() -> None:
    async def test() -> None:
        line = Line([np.full(16000, np.nan, "<f4").tobytes()] * 5)
        call = new_call(AudioFormat(encoding="pcm_f32le"))
        events = [event async for event in converse(call, line, FakeScorer(CARD))]
        assert [type(event).__name__ for event in events] == ["Ready", "Error", "Summary"]
        assert (line.num_taken, line.is_closed) == (1, True)

    run(test())


def test_a_minute_at_once_does_not_hold_up_the_loop() -> None:
    async def test() -> None:
        num_passes = 0

        async def others() -> None:
            nonlocal num_passes
            while True:
                num_passes += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(others())
        line = Line([bytes(60 * 32000)])
        events = [event async for event in converse(new_call(), line, FakeScorer(CARD))]
        task.cancel()
        assert isinstance(events[-1], Summary) and events[-1].duration_s == 60.0
        assert num_passes >= 60 / 0.25, "one pass of the loop a slice of 0.25 s"
        await asyncio.gather(task, return_exceptions=True)

    run(test())


def test_an_answer_after_the_loop_was_closed_is_nobodys(caplog: pytest.LogCaptureFixture) -> None:
    scorer = OwnScorer(running)

    async def test() -> None:
        events = converse(new_call(), Line([ONE_TURN], pause=True), scorer)
        while True:
            waiting = asyncio.ensure_future(anext(events))
            await let_others_run()
            if not waiting.done():
                break
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    run(test())
    with caplog.at_level(logging.DEBUG):
        for future in scorer.futures:
            future.set_result(np.zeros(4, np.float32))
    assert scorer.futures and not caplog.records
