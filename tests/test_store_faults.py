"""What is kept through a kill, a full disk, a lock, a broken file."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from streamer.audio import AudioFormat
from streamer.dialects import Resume, Start
from streamer.errors import ConfigError
from streamer.events import Emotion, Summary, Turn
from streamer.hub import Hub
from streamer.kept import SCHEMA_VERSION, CallFilter, StoreError
from streamer.records import StoredCall, public_name
from streamer.store import Store, StoreConfig
from tests.kept_calls import (
    SUMMARY,
    begin,
    emotion,
    is_finished,
    keep,
    kept_events,
    opened,
    turn,
)
from tests.scorers import FakeScorer, encode_audio, make_card, tone_speech
from tests.serving import DEADLINE_S, wait_until

ROOT = Path(__file__).resolve().parent.parent


# A process that dies

_WRITER = textwrap.dedent(
    """
    import asyncio, sys, time
    from pathlib import Path
    from streamer.store import Store, StoreConfig
    from tests.kept_calls import begin, emotion, turn, SUMMARY

    async def write():
        store = Store(StoreConfig(path=Path(sys.argv[1])))
        seq = num_finished = 0
        begin(store, "live")
        while True:
            store.add_events("live", [emotion(seq)], seq * 4000)
            print("event", seq, time.monotonic(), flush=True)
            seq += 1
            if seq % 20 == 0:
                session = f"finished-{num_finished}"
                begin(store, session)
                store.add_events(session, [turn(0), turn(1), SUMMARY], 9)
                await store.finish(session, "end")
                print("finished", num_finished, time.monotonic(), flush=True)
                num_finished += 1
            await asyncio.sleep(0.005)

    asyncio.run(write())
    """
)


def test_kill_9_loses_a_second_at_most_and_no_finished_call(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    command = [sys.executable, "-c", _WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        told: list[tuple[str, int, float]] = []
        for line in process.stdout:
            what, number, at_s = line.split()
            told.append((what, int(number), float(at_s)))
            if len(told) == 500:
                process.send_signal(signal.SIGKILL)
                killed_s = time.monotonic()
    assert process.returncode == -signal.SIGKILL
    finished = [number for what, number, _ in told if what == "finished"]
    a_second_before = [
        number for what, number, at_s in told if what == "event" and at_s < killed_s - 1.0
    ]
    assert len(finished) > 5 and len(a_second_before) > 50

    async def check() -> None:
        with opened(path) as store:
            left = await store.unfinished("live")
            assert left is not None and left.record.session == "live"
            events = await kept_events(store, "live")
            assert [event.seq for event in events] == list(range(len(events)))
            assert len(events) > a_second_before[-1]
            assert left.num_samples == events[-1].seq * 4000
            assert list(left.events) == events[-2048:]
            for number in finished:
                session = f"finished-{number}"
                assert await kept_events(store, session) == [turn(0), turn(1), SUMMARY]
                assert await is_finished(store, session)

    asyncio.run(check())


def test_calls_that_were_left_may_be_resumed_for_a_while(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    with opened(path) as store:
        records = [begin(store, session, roles=("customer", "agent")) for session in ("a", "b")]
        for session in ("a", "b"):
            store.add_events(session, [emotion(0), emotion(1)], 4000)

    async def check() -> None:
        with opened(path, resume_timeout_s=0.3) as store:
            assert store.is_left("a") and store.is_left("b")
            stored = await store.unfinished("a")
            assert stored == StoredCall(
                record=records[0], num_samples=4000, events=(emotion(0), emotion(1))
            )
            assert await store.unfinished("unknown") is None
            store.add_events("a", [emotion(2)], 8000)
            assert not store.is_left("a") and await store.unfinished("a") is None
            b = await until_ended(store, "b")
            assert b.reason == "server_restart" and b.ended_at == b.heard_at
            assert await store.unfinished("b") is None
            a = await store.call("a")
            assert a is not None and a.ended_at is None
            store.add_events("a", [SUMMARY], 8000)
            await store.finish("a", "end")
            assert await kept_events(store, "a") == [emotion(0), emotion(1), emotion(2), SUMMARY]

    asyncio.run(check())


def test_a_call_with_a_hole_is_resumed_from_there(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    with opened(path) as store:
        begin(store, "a")
        store.add_events("a", [emotion(0), emotion(1), emotion(3), emotion(4)], 4000)
    with opened(path) as store:
        stored = asyncio.run(store.unfinished("a"))
    assert stored is not None and stored.events == (emotion(3), emotion(4))


async def until_ended(store: Store, session: str) -> Any:
    deadline_s = time.monotonic() + DEADLINE_S
    while (call := await store.call(session)) is None or call.ended_at is None:
        assert time.monotonic() < deadline_s, call
    return call


# A disk that is full, a file that is held, a file that is none

_FULL_DISK = textwrap.dedent(
    """
    import asyncio, json, logging, resource, sys
    from pathlib import Path
    from streamer.store import Store, StoreConfig
    from tests.serving import wait_until
    from tests.kept_calls import SUMMARY, begin, emotion, is_finished, keep, turn

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    NO_LIMIT = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def write():
        with Store(StoreConfig(path=Path(sys.argv[1]), max_pending_bytes=2**17)) as store:
            await keep(store, "before")
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, NO_LIMIT[1]))
            begin(store, "during")
            for seq in range(0, 2000, 2):
                store.add_events("during", [emotion(seq), turn(seq + 1) if seq < 20 else
                                            emotion(seq + 1)], seq * 1000)
            store.add_events("during", [SUMMARY], 9)
            await store.finish("during", "end")
            is_kept = await is_finished(store, "during")
            state = store.state
            try:
                await store.delete("before")
            except Exception as error:
                refusal = str(error)
            resource.setrlimit(resource.RLIMIT_FSIZE, NO_LIMIT)
            wait_until(lambda: store.state.fault is None, "there is room again")
            await keep(store, "after")
        print(json.dumps([is_kept, state._asdict(), refusal]))

    asyncio.run(write())
    """
)


def test_a_full_disk_stops_nobody_and_the_finals_are_kept(tmp_path: Path) -> None:
    """A limit on the size of files stands for it, in a process of its own."""
    path = tmp_path / "calls.db"
    command = [sys.executable, "-c", _FULL_DISK, str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    is_kept, state, refusal = json.loads(done.stdout)
    assert is_kept is False and state["fault"] is not None and state["num_faults"] > 0
    assert state["num_pending_bytes"] <= 2**17 and state["num_given_up"] > 1000
    assert "cannot be written" in refusal
    assert done.stderr.count("ERROR store cannot be written") == 1
    assert done.stderr.count(f"INFO store writes again path={path} rows_given_up=") == 1
    assert "Traceback" not in done.stderr

    async def check() -> None:
        with opened(path) as store:
            for session in ("before", "during", "after"):
                assert await is_finished(store, session)
            events = await kept_events(store, "during")
            assert [event for event in events if isinstance(event, Turn)] == [
                turn(seq) for seq in range(1, 20, 2)
            ]
            emotions = [event.seq for event in events if isinstance(event, Emotion)]
            assert emotions == list(range(2000 - len(emotions), 2000))  # the newest ones

    asyncio.run(check())


def test_a_file_that_another_holds_is_written_when_it_lets_go(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "streamer.store")
    path = tmp_path / "calls.db"

    async def check() -> None:
        with opened(path, finish_timeout_s=0.1) as store:
            await keep(store, "before")
            with closing(sqlite3.connect(path, isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                begin(store, "a")
                store.add_events("a", [SUMMARY], 9)
                since_s = time.monotonic()
                await store.finish("a", "end")
                assert time.monotonic() - since_s < 5.0  # 0.1 on an idle machine
                wait_until(lambda: store.state.fault is not None, "the store knows")
                await store.finish("a", "end")
                assert not await is_finished(store, "a")
                assert await store.call("before") is not None  # reading goes on
            wait_until(lambda: store.state.fault is None, "it is written")
            assert await is_finished(store, "a")
            assert store.state.num_given_up == 0

    asyncio.run(check())
    assert caplog.text.count("cannot be written") == caplog.text.count("writes again") == 1


def test_a_file_that_breaks_meanwhile_stops_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "calls.db"

    async def check() -> None:
        with opened(path) as store:
            await keep(store, "a", *map(emotion, range(500)))
            with closing(sqlite3.connect(path)) as other:
                other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            with path.open("r+b") as file:
                file.write(b"broken" * 10000)
            begin(store, "b")
            await store.finish("b", "end")
            with pytest.raises(StoreError, match=r"cannot be read: found .*: expected"):
                await store.calls(CallFilter(), 10)
            with pytest.raises(StoreError, match="cannot be written: found"):
                await store.delete("a")

    asyncio.run(check())
    assert "rows_lost=" in caplog.text


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"no database at all" * 100, "file is not a database"),
        (b"SQLite format 3\0" + b"\xff" * 4096, "file is not a database"),
    ],
)
def test_a_file_that_is_no_store(tmp_path: Path, content: bytes, found: str) -> None:
    path = tmp_path / "calls.db"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"calls.db: found {found}: expected a sound"):
        Store(StoreConfig(path=path))
    assert path.read_bytes() == content


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(ConfigError, match="found another program's database"):
        Store(StoreConfig(path=path))


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    with opened(path):
        pass
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(ConfigError, match=f"found schema version {SCHEMA_VERSION + 1}.*expected"):
        Store(StoreConfig(path=path))


def test_a_store_has_one_server(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    with opened(path), pytest.raises(ConfigError, match="no other server has open"):
        Store(StoreConfig(path=path))
    with opened(path):
        pass


@pytest.mark.parametrize("path", ["missing/calls.db", "."])
def test_a_path_that_cannot_be(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        Store(StoreConfig(path=tmp_path / path))


@pytest.mark.parametrize(
    "settings",
    [
        {"retention_days": 0.0},
        {"retention_days": float("nan")},
        {"resume_timeout_s": -1.0},
        {"commit_every_s": 2.0},
        {"finish_timeout_s": 0.0},
        {"max_pending_bytes": 100},
    ],
)
def test_settings_out_of_range(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        StoreConfig(path=tmp_path / "calls.db", **settings)


async def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0)


def test_the_hub_goes_on_with_a_call_whose_process_died(tmp_path: Path) -> None:
    """All that was kept is told again, then what is missing, then the rest."""
    path = tmp_path / "calls.db"
    card = make_card()
    pcm = encode_audio([tone_speech(4.0)], AudioFormat())

    async def begin_call() -> str:
        with opened(path) as store:
            hub = Hub(scorer=FakeScorer(card), store=store)
            live = hub.begin(Start(call_id="x"), dialect="native", peer="", may_return=True)
            live.feed(pcm[:96000])
            await until(lambda: live.log.next_seq >= 5)
        live.abandon()  # what it says now, the store does not hear any more
        await until(lambda: hub.num_calls == 0)
        return live.secret

    async def go_on(secret: str) -> None:
        session = public_name(secret)
        with opened(path) as store:
            stored = await store.unfinished(session)
            assert stored is not None and len(stored.events) >= 5
            hub = Hub(scorer=FakeScorer(card), store=store)
            last_seq = stored.events[-1].seq
            live = await hub.resume(Resume(session=secret, seq=last_seq), peer="")
            live.feed(pcm[96000:])
            live.end("end")
            await until(lambda: live.is_over)
            events = await kept_events(store, session)
            assert [event.seq for event in events] == list(range(len(events)))
            assert events[: last_seq + 1] == list(stored.events)
            assert isinstance(events[-1], Summary) and await is_finished(store, session)
            hub.close()

    asyncio.run(go_on(asyncio.run(begin_call())))
