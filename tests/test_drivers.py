from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.arrays import WindowFeatures
from streamer.audio import AudioFormat
from streamer.call import Call, CallConfig
from streamer.card import Card
from streamer.drivers import Chunk, Lost, converse, recognize
from streamer.errors import SourceError
from streamer.events import Emotion, Error, Event, Gap, Lag, Speech, Summary, Turn
from tests.golden.synthetic import silence
from tests.scorers import (
    FakeScorer,
    assert_same_events,
    encode_audio,
    fake_logits,
    hear,
    make_card,
    tone_speech,
)

CARD = make_card()
PCM16 = AudioFormat()
TWO_TURNS = np.concatenate([tone_speech(2.6, 1), silence(0.8), tone_speech(1.5, 2), silence(0.3)])
AUDIO = encode_audio([TWO_TURNS], PCM16)
ONE_TURN = AUDIO[: 2 * 16000 * 2]


def new_call(audio: AudioFormat = PCM16) -> Call:
    return Call(CARD, CallConfig(audio=audio))


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def of_type(events: Iterable[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


class OnDemand(Future[NDArray[np.float32]]):
    """An answer that comes when somebody waits for it, and no sooner."""

    def __init__(self, features: WindowFeatures) -> None:
        super().__init__()
        self.features = features

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if not self.done():
            self.set_result(fake_logits(self.features))
        return super().exception(timeout)


class OwnScorer:
    """A scorer that makes each window's future as the test says, and keeps them all."""

    def __init__(self, make: Callable[[WindowFeatures], Future[NDArray[np.float32]]]) -> None:
        self._make = make
        self.futures: list[Future[NDArray[np.float32]]] = []

    @property
    def card(self) -> Card:
        return CARD

    def submit(self, features: WindowFeatures) -> Future[NDArray[np.float32]]:
        self.futures.append(self._make(features))
        return self.futures[-1]


def answered(logits: Any) -> Future[NDArray[np.float32]]:
    future: Future[NDArray[np.float32]] = Future()
    future.set_result(logits)
    return future


def cancelled(_: WindowFeatures) -> Future[NDArray[np.float32]]:
    future: Future[NDArray[np.float32]] = Future()
    future.cancel()
    return future


def running(_: WindowFeatures) -> Future[NDArray[np.float32]]:
    future: Future[NDArray[np.float32]] = Future()
    future.set_running_or_notify_cancel()
    return future


# Blocking


@pytest.mark.parametrize("size", [640, 7777, len(AUDIO)])
def test_recognize_gives_the_events_of_the_call(size: int) -> None:
    expected = hear(new_call(), [AUDIO])
    assert len(of_type(expected, Turn)) == 2
    assert_same_events(recognize(new_call(), cut(AUDIO, size), FakeScorer(CARD)), expected)
    with FakeScorer(CARD, answer="thread") as scorer:
        assert_same_events(recognize(new_call(), cut(AUDIO, size), scorer), expected)
    with FakeScorer(CARD, answer="thread") as scorer:
        assert_same_events(recognize(new_call(), cut(AUDIO, size), scorer, live=True), expected)


def test_recognize_is_ready_before_audio_is_asked_for() -> None:
    def chunks() -> Iterator[bytes]:
        raise AssertionError("nobody has listened to `ready` yet")
        yield b""

    assert next(recognize(new_call(), chunks(), FakeScorer(CARD))).seq == 0


def test_recognize_stops_reading_while_too_much_is_out() -> None:
    call = new_call()

    def chunks() -> Iterator[bytes]:
        for chunk in cut(AUDIO, 6400):
            assert call.num_outstanding <= 3
            yield chunk

    scorer = OwnScorer(OnDemand)
    events = list(recognize(call, chunks(), scorer, max_outstanding=3))
    assert_same_events(events, hear(new_call(), [AUDIO]))


def test_an_empty_chunk_lets_out_what_has_settled() -> None:
    scorer = OwnScorer(OnDemand)
    call = new_call()
    seen: list[str] = []

    def chunks() -> Iterator[bytes]:
        yield AUDIO[: len(AUDIO) // 2]
        for window, future in enumerate(list(scorer.futures)):
            future.exception()  # on demand: it is answered now
            assert seen.count("Emotion") <= window
        yield b""
        assert seen.count("Emotion") == len(scorer.futures) > 0
        yield AUDIO[len(AUDIO) // 2 :]

    for event in recognize(call, chunks(), scorer):
        seen.append(type(event).__name__)
    assert seen[-1] == "Summary"


def test_live_audio_skips_the_oldest_windows_and_no_final() -> None:
    turns = [tone_speech(0.5, 2), tone_speech(2.6, 1), tone_speech(0.5, 2)]
    audio = encode_audio([np.concatenate([np.append(turn, silence(0.8)) for turn in turns])], PCM16)
    finals: list[bool] = []
    hear(new_call(), [audio], answer=lambda call, window: note(call, window, finals))
    assert finals == [True, *[False] * (len(finals) - 2), True] and len(finals) > 6
    scorer = OwnScorer(OnDemand)
    events = list(recognize(new_call(), cut(audio, 640), scorer, live=True, max_outstanding=3))
    kept = [not future.cancelled() for future in scorer.futures]
    assert kept == [True, *[False] * (len(finals) - 3), True, True], "the finals, the newest other"
    assert [turn.windows for turn in of_type(events, Turn)] == [1, 1, 1]
    (lag,) = of_type(events, Lag)
    assert lag.reason == "overload"
    assert events[-1].channels[0].dropped == of_type(events, Emotion)[-1].dropped == len(kept) - 3


def note(call: Call, window: Any, finals: list[bool]) -> None:
    finals.append(window.is_last)
    call.receive_scores(window, fake_logits(window.features))


@pytest.mark.parametrize(
    "make",
    [
        cancelled,
        lambda features: answered(np.full(4, np.nan, np.float32)),
        lambda features: answered(np.zeros(3, np.float32)),
    ],
    ids=["cancelled", "not finite", "wrong shape"],
)
def test_answers_that_are_no_scores_cost_their_windows_alone(
    make: Callable[[WindowFeatures], Future[NDArray[np.float32]]], caplog: pytest.LogCaptureFixture
) -> None:
    numbers = iter(range(1000))
    scorer = OwnScorer(
        lambda features: (
            make(features) if next(numbers) in (1, 2) else answered(fake_logits(features))
        )
    )
    events = list(recognize(new_call(), [AUDIO], scorer))
    (error,) = of_type(events, Error)
    assert (error.code, error.fatal) == ("scorer_failed", False)
    assert events[-1].channels[0].dropped == 2
    assert len(of_type(events, Turn)) == 2
    assert caplog.text.count("could not be scored") == 1, "of two in a row the first is logged"


def test_a_scorer_that_raises_costs_its_window_alone() -> None:
    numbers = iter(range(1000))
    scorer = FakeScorer(CARD, fails=lambda features: next(numbers) == 2)
    events = list(recognize(new_call(), [AUDIO], scorer))
    assert [error.code for error in of_type(events, Error)] == ["scorer_failed"]
    assert len(of_type(events, Turn)) == 2


def breaking_off(error: Exception) -> Iterator[bytes]:
    yield ONE_TURN
    raise error


def test_a_source_that_breaks_off_still_ends_with_what_there_was() -> None:
    chunks = breaking_off(SourceError("found half"))
    *events, error, summary = recognize(new_call(), chunks, FakeScorer(CARD))
    assert isinstance(error, Error) and (error.code, error.fatal) == ("bad_source", True)
    assert isinstance(summary, Summary) and summary.duration_s == 2.0
    assert len(of_type(events, Turn)) == 1


def test_what_is_no_error_of_ours_goes_through() -> None:
    scorer = FakeScorer(CARD, answer="held")
    with pytest.raises(ZeroDivisionError):
        list(recognize(new_call(), breaking_off(ZeroDivisionError()), scorer))
    assert scorer.num_held > 0
    scorer.release()
    assert scorer.num_scored == 0, "nobody waits for these: they are taken back"


def test_bytes_that_are_no_audio_end_the_reading() -> None:
    num_asked = 0

    def chunks() -> Iterator[bytes]:
        nonlocal num_asked
        for _ in range(5):
            num_asked += 1
            yield np.full(16000, np.nan, "<f4").tobytes()

    call = new_call(AudioFormat(encoding="pcm_f32le"))
    events = list(recognize(call, chunks(), FakeScorer(CARD)))
    assert [type(event).__name__ for event in events] == ["Ready", "Error", "Summary"]
    assert num_asked == 1


def test_lost_audio_is_a_gap_in_its_place() -> None:
    chunks: list[Chunk] = [ONE_TURN, Lost(8000, "not_fetched"), AUDIO[-32000:]]
    events = list(recognize(new_call(), chunks, FakeScorer(CARD)))
    (gap,) = of_type(events, Gap)
    assert (gap.start_s, gap.end_s, gap.reason) == (2.0, 2.5, "not_fetched")
    assert events[-1].duration_s == 3.5


def test_closing_recognize_closes_its_source() -> None:
    closed = []

    def chunks() -> Iterator[bytes]:
        try:
            yield from cut(AUDIO, 640)
        finally:
            closed.append(True)

    scorer = FakeScorer(CARD, answer="held")
    events = recognize(new_call(), chunks(), scorer)
    for event in events:
        if isinstance(event, Speech):
            break
    events.close()  # type: ignore[attr-defined]
    assert closed == [True]
    scorer.release()
    assert scorer.num_scored == 0


# asyncio


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
