"""The calls of a process: who watches them, who is told of them, who is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from streamer.audio import AudioFormat
from streamer.dialects import PeerError, Start
from streamer.events import Emotion, Event, Ready, Speech, Summary, Turn
from streamer.hub import Hub, HubConfig
from streamer.live_call import LiveCall
from streamer.pressure import FULL
from streamer.records import CallEvent, CallRecord, Snapshot, Watched
from streamer.watch import MAX_WAITING, Watch
from tests.peers import local
from tests.scorers import FakeScorer, assert_same_events, encode_audio, make_card, one_turn

CARD = make_card()
PCM = encode_audio([one_turn(2.0, 1)], AudioFormat())
DEADLINE_S = 30.0


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0)


def begin(hub: Hub, **start: Any) -> LiveCall:
    return hub.begin(Start(**start), dialect="native", peer="here", may_return=False)


def told(items: list[Watched]) -> list[Event]:
    return [item.event for item in items if isinstance(item, CallEvent)]


def test_a_watcher_sees_the_calls_as_they_are_and_then_what_happens() -> None:
    async def test() -> None:
        hub = Hub(scorer=FakeScorer(CARD), clock=lambda: 1e9)
        first = begin(hub, call_id="one")
        first.feed(PCM)
        await until(lambda: bool(first.snapshot().turns))
        seen: list[Watched] = []

        async def watch() -> None:
            async for item in hub.watch():
                seen.append(item)

        watching = asyncio.create_task(watch())
        await until(lambda: bool(seen))
        second = begin(hub, roles=("agent",))
        second.end("end")
        first.end("end")
        await until(lambda: sum(isinstance(event, Summary) for event in told(seen)) == 2)
        watching.cancel()
        snapshot, *_ = seen
        assert isinstance(snapshot, Snapshot)
        (call,) = snapshot.calls
        assert (call.record.call_id, call.record.dialect) == ("one", "native")
        assert call.record.started_at == 1e9 and call.record.roles == ("customer",)
        assert isinstance(call.turns[0], Turn) and isinstance(call.emotions[0], Emotion)
        new = [
            item.event
            for item in seen
            if isinstance(item, CallEvent) and item.record is second.record
        ]
        assert isinstance(new[0], Ready) and isinstance(new[-1], Summary)
        await until(lambda: hub.num_calls == 0)
        assert hub.calls() == []

    run(test())


def test_a_watcher_of_one_call_sees_no_other() -> None:
    async def test() -> None:
        hub = Hub(scorer=FakeScorer(CARD))
        one, other = begin(hub), begin(hub)
        watching = hub.watch(one.record.session)
        snapshot = await anext(watching)
        assert isinstance(snapshot, Snapshot)
        assert [call.record for call in snapshot.calls] == [one.record]
        other.end("end")
        await until(lambda: other.is_over)
        one.end("end")
        seen = [await anext(watching)]
        while not isinstance(told(seen)[-1], Summary):
            seen.append(await anext(watching))
        assert {item.record for item in seen if isinstance(item, CallEvent)} == {one.record}
        await watching.aclose()  # type: ignore[attr-defined]

    run(test())


def test_a_watcher_of_a_call_that_is_abandoned_is_told_no_more() -> None:
    async def test() -> None:
        hub = Hub(scorer=FakeScorer(CARD))
        one, other = begin(hub), begin(hub)
        seen: list[Watched] = []

        async def watch() -> None:
            async for item in hub.watch(one.record.session):
                seen.append(item)

        watching = asyncio.create_task(watch())
        await until(lambda: bool(seen))
        one.abandon()
        async with asyncio.timeout(DEADLINE_S):
            await watching
            async for item in hub.watch(one.record.session):  # nor one that comes too late
                assert item == Snapshot(calls=())
        assert not any(isinstance(event, Summary) for event in told(seen))
        other.abandon()
        await until(lambda: hub.num_calls == 0)

    run(test())


def emotion(seq: int, session: str) -> CallEvent:
    event = Emotion(
        seq=seq,
        channel=0,
        start_s=0.0,
        end_s=1.0,
        label="sad",
        scores={},
        raw={},
        speech=1.0,
        warming_up=False,
    )
    return CallEvent(record(session), event)


def record(session: str) -> CallRecord:
    return CallRecord(
        session=session,
        call_id="",
        dialect="native",
        roles=("customer",),
        started_at=0.0,
        start=Start(),
    )


def final(seq: int) -> CallEvent:
    return CallEvent(record("a"), Speech(seq=seq, channel=0, active=True, time_s=0.0))


def test_a_slow_watcher_loses_stale_emotions_first() -> None:
    async def test() -> None:
        watch = Watch()
        assert watch.take_is_behind(), "a snapshot comes first"
        for seq in range(MAX_WAITING + 10):
            watch.receive(final(seq) if seq % 10 == 0 else emotion(seq, "ab"[seq % 2]))
        assert not watch.take_is_behind()
        seen = [await watch.next() for _ in range(100)]
        finals = [item.event.seq for item in seen if item and isinstance(item.event, Speech)]
        assert finals == list(range(0, 10 * len(finals), 10)) and len(finals) > 90

    run(test())


def test_a_watcher_that_is_slower_still_starts_again() -> None:
    async def test() -> None:
        watch = Watch()
        watch.take_is_behind()
        for seq in range(3 * MAX_WAITING):
            watch.receive(final(seq))
        assert await watch.next() is None
        assert watch.take_is_behind()
        watch.receive(final(1))
        assert await watch.next() == final(1)

    run(test())


class Observer:
    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.said: list[str] = []
        self.events: list[Event] = []

    def call_started(self, record: CallRecord) -> None:
        self.said.append("started")
        if self.fails:
            raise ZeroDivisionError("an observer's own fault")

    def event(self, record: CallRecord, event: Event) -> None:
        self.events.append(event)

    def call_ended(self, record: CallRecord, reason: str) -> None:
        self.said.append(reason)


def test_observers_are_told_of_everything_and_cost_no_call_anything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def test() -> None:
        bad, good = Observer(fails=True), Observer()
        hub = Hub(scorer=FakeScorer(CARD), observers=(bad, good))
        live = begin(hub)
        live.feed(PCM)
        live.end("end")
        await until(lambda: live.is_over and hub.num_calls == 0)
        assert good.said == bad.said == ["started", "end"]
        assert_same_events(good.events, local(AudioFormat(), PCM))

    run(test())
    assert caplog.text.count("an observer of calls failed") == 1


def test_under_pressure_new_calls_are_refused_in_words() -> None:
    async def test() -> None:
        hub = Hub(scorer=FakeScorer(CARD))
        live = begin(hub)
        hub.pressure.level = FULL
        with pytest.raises(PeerError, match=r"scoring is behind by .* try again in 10 s") as caught:
            begin(hub)
        assert (caught.value.code, caught.value.close_code) == ("overloaded", 1013)
        live.feed(PCM)
        live.end("end")
        await until(lambda: live.is_over)
        assert live.reason == "end"
        await until(lambda: hub.num_calls == 0)
        begin(hub).abandon()  # the door that the last call shut does not stay so for ever

    run(test())


def test_a_store_that_does_not_answer_keeps_no_summary_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streamer.hub._FINISH_TIMEOUT_S", 0.05)

    class Stuck:
        def add_call(self, record: CallRecord) -> None: ...

        def add_events(self, session: str, events: Any, num_samples: int) -> None: ...

        async def finish(self, session: str, reason: str) -> None:
            await asyncio.Event().wait()

        async def unfinished(self, session: str) -> None:
            return None

    async def test() -> None:
        hub = Hub(scorer=FakeScorer(CARD), store=Stuck())
        live = begin(hub)
        live.end("end")
        await until(lambda: live.is_over)
        assert isinstance(live.log.get(live.log.next_seq - 1), Summary)

    run(test())
    assert "call not kept" in caplog.text


def test_a_call_that_cannot_be_is_refused() -> None:
    async def test() -> None:
        hub = Hub(HubConfig(), scorer=FakeScorer(CARD))
        with pytest.raises(PeerError, match="role 'boss'"):
            begin(hub, roles=("boss",))
        assert hub.num_calls == 0

    run(test())
