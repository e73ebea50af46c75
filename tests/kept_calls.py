"""Calls to be kept, and what is kept of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streamer.audio import AudioFormat
from streamer.dialects import Start
from streamer.events import Emotion, Event, Ready, ReadyChannel, Summary, Turn, decode_event
from streamer.records import CallRecord
from streamer.store import Store, StoreConfig

SCORES = {"angry": 0.128789, "happy": 0.289002, "neutral": 0.56958, "sad": 0.012629}
SUMMARY = Summary(seq=9999, duration_s=3.0, max_lag_ms=1.0, channels=())


READY = Ready(
    session="a",
    model="can",
    labels=tuple(SCORES),
    encoding="pcm_s16le",
    sample_rate=16000,
    channels=(ReadyChannel(channel=0, role="customer", analysed=True),),
    step_ms=250,
    first_score_s=1.07,
    hang_over_s=0.5,
    notice="",
)


def emotion(seq: int) -> Emotion:
    return Emotion(
        seq=seq,
        channel=0,
        role="customer",
        start_s=seq / 4,
        end_s=seq / 4 + 2,
        label="neutral",
        scores=SCORES,
        raw=SCORES,
        speech=0.667,
        warming_up=False,
    )


def turn(seq: int, label: str = "neutral", role: str = "customer") -> Turn:
    return Turn(
        seq=seq, role=role, channel=0, start_s=0.9, end_s=5.5, label=label, scores=SCORES, windows=3
    )


def begin(
    store: Store,
    session: str,
    *,
    started_at: float = 1000.0,
    roles: tuple[str, ...] = ("customer",),
    call_id: str = "2024-17",
) -> CallRecord:
    record = CallRecord(
        session=session,
        call_id=call_id,
        dialect="native",
        roles=roles,
        started_at=started_at,
        start=Start(audio=AudioFormat(channels=len(roles)), roles=roles, call_id=call_id),
    )
    store.add_call(record)
    return record


async def is_finished(store: Store, session: str) -> bool:
    call = await store.call(session)
    return call is not None and call.ended_at is not None and call.summary is not None


async def keep(store: Store, session: str, *events: Event, **fields: Any) -> None:
    """Keep a whole call; its summary has `seq` 9999."""
    begin(store, session, **fields)
    store.add_events(session, [*events, SUMMARY], 48000)
    await store.finish(session, "end")
    assert await is_finished(store, session)


async def kept_events(store: Store, session: str) -> list[Event]:
    return [decode_event(event.json) for event in await store.events(session)]


@contextmanager
def opened(path: Path, **config: Any) -> Iterator[Store]:
    with Store(StoreConfig(path=path, **config)) as store:
        yield store
