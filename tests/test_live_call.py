"""A call by itself: it waits for a reader that can make it wait, and is bounded in every way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from streamer.audio import AudioFormat
from streamer.call import Call, CallConfig, TrackChunk
from streamer.dialects import CloseCode, Start
from streamer.event_log import EventLog
from streamer.events import Emotion, Error, Event, Summary
from streamer.live_call import MAX_UNTOLD, LiveCall
from streamer.pressure import Pressure
from streamer.records import CallRecord
from streamer.session import SessionConfig
from tests.peers import local
from tests.scorers import FakeScorer, assert_same_events, cut, encode_audio, make_card, one_turn

CARD = make_card()
PCM = encode_audio([one_turn(3.0, 1)], AudioFormat())
LONG = encode_audio([one_turn(40.0, 1)], AudioFormat())
DEADLINE_S = 30.0
RECORD = CallRecord(
    session="s", call_id="", dialect="native", roles=("customer",), started_at=0.0, start=Start()
)


class Reader:
    """Whoever is connected, and takes nothing by itself."""

    def __init__(self) -> None:
        self.num_woken, self.is_replaced = 0, False

    def wake(self) -> None:
        self.num_woken += 1

    def replace(self) -> None:
        self.is_replaced = True


class Made:
    """A call, and what became of it."""

    def __init__(
        self, *, step_s: float = 0.25, resume_timeout_s: float = 60.0, num_tracks: int = 0
    ) -> None:
        self.over: list[bool] = []
        self.pressure = Pressure()
        config = CallConfig(session=SessionConfig(step_s=step_s))
        if num_tracks:
            audio = AudioFormat(channels=num_tracks)
            roles = ("customer", "agent")[:num_tracks]
            config = replace(config, audio=audio, roles=roles, as_tracks=True)
        self.live = LiveCall(
            Call(CARD, config),
            RECORD,
            scorer=FakeScorer(CARD),
            pressure=self.pressure,
            on_event=lambda live, event: None,
            on_over=lambda live, is_released: self.over.append(is_released),
            resume_timeout_s=resume_timeout_s,
        )
        self.live.begin()

    @property
    def events(self) -> list[Event]:
        log: EventLog = self.live.log
        return [event for seq in range(log.next_seq) if (event := log.get(seq)) is not None]

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not condition():  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_it_hears_what_it_is_fed_with_nobody_connected() -> None:
    async def test() -> None:
        made = Made()
        for chunk in cut(PCM, 3200):
            made.live.feed(chunk)
            await made.live.room()
        made.live.end("end")
        await made.until(lambda: made.live.is_over)
        assert_same_events(made.events, local(AudioFormat(), PCM))
        assert made.over == [True], "there is nobody to come back"

    run(test())


def test_audio_that_waits_is_bounded() -> None:
    async def test() -> None:
        made, num_fed = Made(), 0
        while made.live.has_room:
            made.live.feed(bytes(32_000))
            num_fed += 32_000
        assert num_fed <= 2**18 + 32_000
        await made.live.room()
        assert made.live.has_room
        made.live.abandon()
        await made.until(lambda: made.live.is_over)
        assert made.live.reason == "abandoned"

    run(test())


def test_a_file_waits_for_its_reader_and_loses_nothing() -> None:
    async def test() -> None:
        made, reader = Made(step_s=0.1), Reader()
        made.live.attach(reader, -1)

        async def send() -> None:
            for chunk in cut(LONG, 6400):
                await made.live.room()
                made.live.feed(chunk)
            made.live.end("end")

        sending = asyncio.create_task(send())
        await made.until(lambda: made.live.log.num_untold > MAX_UNTOLD)
        for _ in range(1000):
            await asyncio.sleep(0)
        assert made.live.log.num_untold <= MAX_UNTOLD + 8, "a slice or so later it stands still"
        assert not made.live.is_paced
        heard: list[Event] = []
        while not heard or not isinstance(heard[-1], Summary):
            await made.until(lambda: made.live.log.get(len(heard)) is not None)
            event = made.live.log.get(len(heard))
            assert event is not None
            heard.append(event)
            made.live.told(event.seq)
        await sending
        assert sum(isinstance(event, Emotion) for event in heard) > MAX_UNTOLD
        assert heard[-1].channels[0].dropped == 0

    run(test())


def test_a_file_goes_on_when_its_reader_is_gone() -> None:
    async def test() -> None:
        made, reader = Made(step_s=0.1), Reader()
        made.live.attach(reader, -1)
        made.live.feed(LONG)
        await made.until(lambda: made.live.log.num_untold > MAX_UNTOLD)
        made.live.detach(reader, "slow_reader", may_return=True)
        made.live.end("end")
        await made.until(lambda: made.live.is_over)
        assert made.over == [False] and made.live.is_parked, "its reader may come back"
        made.live.give_up()
        assert made.over == [False, True]

    run(test())


def test_who_cannot_come_back_ends_its_call() -> None:
    async def test() -> None:
        made, reader = Made(resume_timeout_s=0.0), Reader()
        made.live.attach(reader, -1)
        made.live.feed(PCM)
        made.live.detach(reader, "disconnected 1006", may_return=True)
        await made.until(lambda: made.live.is_over)
        assert made.live.reason == "disconnected 1006"
        assert isinstance(made.events[-1], Summary)
        assert made.over == [True]

    run(test())


def test_the_second_takes_over_and_the_first_says_no_more() -> None:
    async def test() -> None:
        made, first, second = Made(), Reader(), Reader()
        made.live.attach(first, -1)
        made.live.attach(second, -1)
        assert first.is_replaced and not second.is_replaced
        made.live.detach(first, "disconnected 1006", may_return=False)
        assert made.live.is_heard_by(second) and not made.live.is_parked
        made.live.end("end")
        await made.until(lambda: made.live.is_over)
        assert second.num_woken > 0 and made.over == [False]

    run(test())


def test_what_ended_it_first_is_its_reason() -> None:
    async def test() -> None:
        made = Made()
        made.live.feed(b"\0")  # half a sample
        made.live.end("stopping", CloseCode.GOING_AWAY)
        made.live.end("end")
        await made.until(lambda: made.live.is_over)
        *_, error, summary = made.events
        assert isinstance(error, Error) and isinstance(summary, Summary)
        assert (made.live.reason, made.live.close_code) == ("bad_audio", CloseCode.INVALID_DATA)

    run(test())


@pytest.mark.parametrize(("audio_s", "is_paced"), [(0.4, True), (2.0, False)])
def test_what_is_ahead_of_the_clock_is_a_file(audio_s: float, is_paced: bool) -> None:
    async def test() -> None:
        made = Made()
        made.live.feed(bytes(2 * round(16000 * audio_s)))
        assert made.live.is_paced is is_paced
        made.live.abandon()
        await made.until(lambda: made.live.is_over)

    run(test())


def test_a_snapshot_has_the_newest_of_each_channel() -> None:
    async def test() -> None:
        made = Made()
        made.live.feed(PCM)
        made.live.end("end")
        await made.until(lambda: made.live.is_over)
        snapshot = made.live.snapshot()
        emotions = [event for event in made.events if isinstance(event, Emotion)]
        assert snapshot.emotions == {0: emotions[-1]} and set(snapshot.turns) == {0}
        assert snapshot.duration_s == pytest.approx(4.3)

    run(test())


class Clock:
    """The loop's time, as far as a call asks for it: it goes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = asyncio.get_running_loop().time()
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now_s)


def second(count: float = 1.0) -> bytes:
    return bytes(round(count * 16_000) * 2)


def test_live_audio_that_is_heard_late_may_catch_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        clock, made = Clock(monkeypatch), Made()
        for _ in range(3):
            clock.now_s += 1.0
            made.live.feed(second())
        clock.now_s += 4.0  # the server had no time for it
        made.live.feed(second(4.0))
        assert made.live.is_paced, "it is no file"
        made.live.feed(second(1.0))
        assert not made.live.is_paced, "this was not said yet"
        made.live.abandon()
        await asyncio.sleep(0)

    run(test())


def test_audio_that_waits_is_told_and_a_pause_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        clock, made = Clock(monkeypatch), Made()
        live = made.live

        async def hear(audio: bytes, passed_s: float) -> float | None:
            clock.now_s += passed_s
            live.feed(audio)
            for _ in range(20):
                await asyncio.sleep(0)
            return live.behind_s

        assert await hear(second(0.2), 0.2) is None, "nobody is connected"
        live.attach(Reader(), -1)
        assert await hear(second(0.2), 0.2) == pytest.approx(0.0, abs=0.01)
        assert await hear(second(0.2), 0.6) == pytest.approx(0.4, abs=0.01), "late"
        assert await hear(second(0.6), 0.2) == pytest.approx(0.0, abs=0.01), "and not any more"
        clock.now_s += 30.0
        assert live.behind_s is None, "it sends nothing"
        assert await hear(second(0.2), 0.2) == pytest.approx(0.0, abs=0.01)
        live.abandon()
        await asyncio.sleep(0)

    run(test())


def test_what_waits_is_heard_in_larger_pieces_and_as_the_same() -> None:
    async def test() -> None:
        made, sizes = Made(), []
        receive = made.live.call.receive

        def count(data: memoryview, now_s: float, channel: int = 0) -> None:
            sizes.append(len(data))
            receive(data, now_s, channel)

        made.live.call.receive = count  # type: ignore[method-assign, assignment]
        for chunk in cut(PCM, 640):  # all of it is there before the first is heard
            made.live.feed(chunk)
        made.live.end("end")
        await made.until(lambda: made.live.is_over)
        assert_same_events(made.events, local(AudioFormat(), PCM))
        assert max(sizes) <= 8_000 and len(sizes) <= len(PCM) / 7_000 + 2

    run(test())


def test_a_track_that_does_not_come_is_not_late(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        clock, made = Clock(monkeypatch), Made(num_tracks=2)
        live = made.live
        live.attach(Reader(), -1)

        async def hear(tracks: tuple[int, ...], audio_s: float, passed_s: float) -> float | None:
            clock.now_s += passed_s
            for channel in tracks:
                live.feed(TrackChunk(channel, second(audio_s)))
            for _ in range(20):
                await asyncio.sleep(0)
            return live.behind_s

        for tracks in 20 * [(0,)] + 20 * [(0, 1)] + 20 * [(1,)] + [(0, 1)]:
            behind_s = await hear(tracks, 0.1, 0.1)
            assert behind_s == pytest.approx(0.0, abs=0.01)
        assert await hear((0, 1), 0.1, 0.6) == pytest.approx(0.5, abs=0.02), "both are"
        live.abandon()
        await asyncio.sleep(0)

    run(test())
