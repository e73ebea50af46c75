"""What is kept, what is found again, and what is not kept any longer."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from streamer.events import Speech, decode_event
from streamer.kept import CallFilter, StoreError
from streamer.store import Store, StoreConfig
from tests.kept_calls import (
    READY,
    SUMMARY,
    begin,
    emotion,
    keep,
    kept_events,
    opened,
    turn,
)
from tests.serving import DEADLINE_S


def test_a_call_comes_out_as_it_went_in(tmp_path: Path) -> None:
    events = [READY, Speech(seq=1, active=True, time_s=0.9), emotion(2), turn(3), SUMMARY]

    async def check() -> None:
        with opened(tmp_path / "calls.db") as store:
            begin(store, "a", roles=("customer", "agent"))
            store.add_events("a", events[:2], 16000)
            store.add_events("a", [], 32000)
            store.add_events("a", events[2:], 48000)
            await store.finish("a", "end")
            call = await store.call("a")
            assert call is not None and call.summary is not None
            assert (call.call_id, call.dialect, call.model) == ("2024-17", "native", "can")
            assert (call.roles, call.started_at) == (("customer", "agent"), 1000.0)
            assert (call.reason, call.num_samples, call.last_seq) == ("end", 48000, 9999)
            assert call.ended_at is not None and call.ended_at >= call.heard_at > 1000.0
            assert decode_event(bytes(call.summary)) == SUMMARY
            assert await kept_events(store, "a") == events
            but_emotions = await store.events("a", but_emotions=True)
            assert [event.type for event in but_emotions] == ["ready", "speech", "turn", "summary"]
            assert [item.seq for item in await store.events("a", after_seq=0, limit=2)] == [1, 2]

    asyncio.run(check())


def test_what_is_kept_is_private_and_holds_no_audio(tmp_path: Path) -> None:
    async def check() -> None:
        with opened(tmp_path / "calls.db") as store:
            await keep(store, "a", emotion(0))
            modes = {name: os.stat(tmp_path / name).st_mode for name in os.listdir(tmp_path)}
            assert len(modes) == 4
            assert all(mode & 0o077 == 0 for name, mode in modes.items() if "lock" not in name)

    asyncio.run(check())
    with closing(sqlite3.connect(tmp_path / "calls.db")) as connection:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        assert sorted(name for (name,) in tables) == ["calls", "events"]
        columns = connection.execute("SELECT type FROM pragma_table_info('events')").fetchall()
        assert ("BLOB",) not in columns


def test_an_event_that_comes_twice_is_kept_once(tmp_path: Path) -> None:
    async def check() -> None:
        with opened(tmp_path / "calls.db") as store:
            begin(store, "a")
            store.add_events("a", [emotion(0), emotion(1)], 0)
            begin(store, "a")
            store.add_events("a", [emotion(1), emotion(2)], 0)
            await store.finish("a", "end")
            assert await kept_events(store, "a") == [emotion(0), emotion(1), emotion(2)]

    asyncio.run(check())


def test_half_a_surrogate_pair_stops_nobody(tmp_path: Path) -> None:
    """JSON may hold one; SQLite's text may not."""

    async def check() -> None:
        with opened(tmp_path / "calls.db") as store:
            await keep(store, "a", call_id="\ud800")
            call = await store.call("a")
            assert call is not None and call.call_id == "?"

    asyncio.run(check())


def test_pages_of_calls_newest_first(tmp_path: Path) -> None:
    async def check() -> None:
        with opened(tmp_path / "calls.db") as store:
            for place in range(7):
                await keep(store, f"s{place}", started_at=1000.0 + place // 2)
            begin(store, "live", started_at=1001.0)
            await keep(store, "last", started_at=1.0)  # and so the live one is committed, too
            pages, before = [], None
            while page := await store.calls(CallFilter(before=before), 3):
                pages.append([call.session for call in page])
                before = page[-1].started_at, page[-1].session
            assert pages == [["s6", "s5", "s4"], ["s3", "s2", "live"], ["s1", "s0", "last"]]

            async def found(**wanted: Any) -> list[str]:
                return [call.session for call in await store.calls(CallFilter(**wanted), 100)]

            await keep(store, "named", started_at=0.5, call_id="their own")
            assert await found(call_id="their own") == ["named"]
            assert await found(is_ended=False) == ["live"]
            assert "live" not in await found(is_ended=True)
            assert await found(since_s=1002.0) == ["s6", "s5", "s4"]

    asyncio.run(check())


def test_calls_by_label_and_role(tmp_path: Path) -> None:
    async def check() -> None:
        with opened(tmp_path / "calls.db") as store:
            await keep(store, "a", turn(0), turn(1, "angry"), roles=("customer", "agent"))
            await keep(store, "b", turn(0), turn(1, "angry", role="agent"), roles=("agent",))
            await keep(store, "c", emotion(0))

            async def found(**wanted: Any) -> list[str]:
                return [call.session for call in await store.calls(CallFilter(**wanted), 100)]

            assert await found(label="angry") == ["b", "a"]
            assert await found(label="angry", role="customer") == ["a"]
            assert await found(role="agent") == ["b", "a"]
            assert await found(label="' OR 1 --") == []

    asyncio.run(check())


# What is not kept any longer


def test_a_deleted_call_leaves_no_trace(tmp_path: Path) -> None:
    """Its words are gone from the file and from the log of writes."""
    path = tmp_path / "calls.db"

    async def check() -> None:
        with opened(path) as store:
            await keep(store, "other", turn(0))
            await keep(store, "secret-session", *map(emotion, range(4500)), call_id="secret-id")
            size = sum(map(len, contents(tmp_path)))
            assert await store.delete("secret-session")
            assert await store.call("secret-session") is None
            assert await store.events("secret-session") == []
            assert not any(b"secret" in content for content in contents(tmp_path))
            assert sum(map(len, contents(tmp_path))) < size / 4
            assert not await store.delete("secret-session")
            assert not await store.delete("unknown")
            assert await kept_events(store, "other") == [turn(0), SUMMARY]

    asyncio.run(check())


def contents(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.iterdir()]


def test_a_call_that_goes_on_is_not_deleted(tmp_path: Path) -> None:
    async def check() -> None:
        with opened(tmp_path / "calls.db") as store:
            begin(store, "a")
            assert not await store.delete("a")
            await store.finish("a", "end")
            assert await store.delete("a")

    asyncio.run(check())


def test_finished_calls_are_kept_for_so_many_days(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    day_s = 86400.0

    async def check() -> None:
        with Store(StoreConfig(path=path, retention_days=30), clock=lambda: 0.0) as store:
            await keep(store, "old", *map(emotion, range(4500)))
            begin(store, "going on", started_at=-40 * day_s)
        with Store(StoreConfig(path=path, retention_days=30), clock=lambda: 20 * day_s) as store:
            await keep(store, "new", emotion(0))
        with Store(StoreConfig(path=path, retention_days=30), clock=lambda: 30.1 * day_s) as store:
            deadline_s = time.monotonic() + DEADLINE_S
            while await store.events("old"):
                assert time.monotonic() < deadline_s
            assert await store.call("old") is None
            assert await kept_events(store, "new") == [emotion(0), SUMMARY]
            assert store.is_left("going on")

    asyncio.run(check())


def test_reading_while_it_is_written(tmp_path: Path) -> None:
    """No reader waits for the writer, and each sees a call's events without a hole."""

    async def check() -> None:
        with opened(tmp_path / "calls.db", commit_every_s=0.01) as store:
            begin(store, "a")
            is_over = False

            async def read() -> int:
                num_read = num_seen = 0
                while not is_over or num_read == 0:
                    seqs = [event.seq for event in await store.events("a")]
                    assert seqs == list(range(len(seqs))) and len(seqs) >= num_seen
                    num_read, num_seen = num_read + 1, len(seqs)
                return num_read

            readers = [asyncio.create_task(read()) for _ in range(4)]
            for seq in range(0, 2000, 10):
                store.add_events("a", [*map(emotion, range(seq, seq + 10))], seq)
                await asyncio.sleep(0)
            await store.finish("a", "end")
            is_over = True
            assert all(await asyncio.gather(*readers))
            assert len(await store.events("a")) == 2000
            assert store.state.fault is None

    asyncio.run(check())


def test_a_question_that_takes_too_long_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path / "calls.db") as store:
        monkeypatch.setattr("streamer.kept._READING_TIMEOUT_S", -1.0)
        monkeypatch.setattr("streamer.kept._STEPS_BETWEEN_LOOKS", 1)
        with pytest.raises(StoreError, match="found interrupted"):
            asyncio.run(store.calls(CallFilter(label="angry"), 10))


def test_no_thread_and_no_file_is_left_open(tmp_path: Path) -> None:
    threads, files = threading.active_count(), len(os.listdir("/proc/self/fd"))
    with opened(tmp_path / "calls.db") as store:
        asyncio.run(keep(store, "a"))
        asyncio.run(store.call("a"))  # type: ignore[arg-type]
    store.close()
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == files
    asyncio.run(store.finish("b", "end"))  # too late, and no fault
