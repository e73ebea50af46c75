"""A native client that was cut off comes back: nothing twice, nothing missing, state kept."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from streamer.audio import AudioFormat
from streamer.dialects import Start
from streamer.drivers import recognize
from streamer.events import Error, Event, Gap, Ready, Summary, Turn, decode_event
from streamer.records import CallRecord, StoredCall, public_name
from tests.peers import local
from tests.scorers import (
    FakeScorer,
    assert_same_events,
    cut,
    encode_audio,
    make_card,
    new_call,
    one_turn,
)
from tests.serving import DEADLINE_S, Running, hear_all, is_ack, serving, wait_until

CARD = make_card()
PCM16 = AudioFormat()
PCM = encode_audio([np.concatenate([one_turn(2.0, 1), one_turn(1.2, 2)])], PCM16)
MULAW = AudioFormat(encoding="mulaw", sample_rate=8000, channels=2)
EXPECTED = local(PCM16, PCM)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with FakeScorer(CARD, answer="thread") as scorer, serving(scorer) as running:
        yield running


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "streamer.server")
    return caplog


@dataclass
class Caller:
    """A client that keeps its audio, and counts on nothing but what it was told."""

    running: Running
    audio: bytes
    block: int = 2
    session: str = ""
    seq: int = -1
    place: int = 0
    heard: list[Event] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What everybody else calls the call."""
        return public_name(self.session)

    def hear(self, connection: ClientConnection, timeout_s: float) -> bool:
        """Take one message; False where none comes in time."""
        try:
            text = connection.recv(timeout_s)
        except TimeoutError:
            return False
        if not is_ack(text):
            event = decode_event(text)
            self.session = event.session if isinstance(event, Ready) else self.session
            self.seq = event.seq
            self.heard.append(event)
        return True

    def begin(self, query: str = "") -> ClientConnection:
        connection = self.running.connect(query).__enter__()
        connection.send('{"type":"start"}')
        assert self.hear(connection, DEADLINE_S)
        return connection

    def resume(self, **more: Any) -> ClientConnection:
        """Come back; go on from where the server says."""
        connection = self.running.connect().__enter__()
        message = {"type": "resume", "session": self.session, "seq": self.seq, **more}
        connection.send(json.dumps(message))
        ack = json.loads(connection.recv(DEADLINE_S))
        assert (ack["type"], ack["session"], ack["seq"]) == ("ack", self.session, self.seq)
        assert ack["samples"] * self.block <= max(self.place, more.get("samples", 0) * self.block)
        self.place = ack["samples"] * self.block
        return connection

    def send(self, connection: ClientConnection, size: int) -> None:
        connection.send(self.audio[self.place : self.place + size])
        self.place += size

    def finish(self, connection: ClientConnection) -> None:
        """Send the rest and the end; hear it all."""
        with suppress(ConnectionClosed):  # the call may have been over before
            for chunk in cut(self.audio[self.place :], 6400):
                connection.send(chunk)
            connection.send('{"type":"end"}')
        self.heard += hear_all(connection)
        assert connection.close_code == 1000


def drop(connection: ClientConnection) -> None:
    """Break the connection; what was on its way is lost."""
    with suppress(OSError):
        connection.socket.shutdown(socket.SHUT_RDWR)
    with suppress(ConnectionClosed, EOFError):
        while True:  # this side's own buffer: nobody reads that
            connection.recv(DEADLINE_S)


def is_parked(caller: Caller) -> bool:
    assert caller.running.process is not None
    calls = caller.running.process.service.hub.calls()
    return any(call.is_parked for call in calls if call.record.session == caller.name)


DROPS = st.lists(
    st.tuples(st.lists(st.integers(1, 40_000), max_size=4), st.integers(0, 12), st.booleans()),
    min_size=1,
    max_size=4,
)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(DROPS)
@example([([], 0, True), ([], 0, True)])
@example([([1], 0, False), ([3], 2, False), ([40_001], 12, False)])
@example([([len(PCM)], 1, True), ([], 3, True), ([], 30, True)])
def test_dropped_anywhere_it_is_as_if_nothing_had_been(
    server: Running, drops: list[tuple[list[int], int, bool]]
) -> None:
    caller = Caller(server, PCM)
    connection = caller.begin()
    for sizes, num_events, is_ended in drops:
        for size in sizes:
            caller.send(connection, size)
        with suppress(ConnectionClosed):  # the call may have been over before
            if is_ended and caller.place >= len(PCM):
                connection.send('{"type":"end"}')
            while num_events and caller.hear(connection, 0.01):
                num_events -= 1
        drop(connection)
        connection = caller.resume()
    caller.finish(connection)
    assert [event.seq for event in caller.heard] == list(range(len(caller.heard)))
    assert_same_events(caller.heard, EXPECTED)


@pytest.mark.parametrize("size", [1, 3, 8001])
def test_a_sample_that_was_cut_is_not_taken_twice(server: Running, size: int) -> None:
    """Two channels of one byte each: a drop after an odd number of bytes splits a sample."""
    voices = [one_turn(1.2, seed)[::2] for seed in (1, 2)]
    audio = encode_audio(voices, MULAW)
    caller = Caller(server, audio, block=2)
    query = "?encoding=mulaw&rate=8000&channels=2"
    connection = caller.begin(query)
    for _ in range(3):
        caller.send(connection, size)
        drop(connection)
        connection = caller.resume()
    caller.finish(connection)
    assert_same_events(caller.heard, local(MULAW, audio))


def test_who_comes_back_takes_over_from_itself(server: Running) -> None:
    caller = Caller(server, PCM)
    before = caller.begin()
    caller.send(before, 40_000)
    connection = caller.resume()
    with suppress(ConnectionClosed):
        while True:
            before.recv(DEADLINE_S)
    assert (before.close_code, before.close_reason) == (1008, "replaced")
    caller.finish(connection)
    assert_same_events(caller.heard, EXPECTED)


def test_the_peer_is_told_what_has_arrived(server: Running) -> None:
    caller = Caller(server, PCM)
    connection = caller.begin()
    caller.send(connection, 20_001)
    while True:  # once a second, while audio comes
        with suppress(TimeoutError):
            if is_ack(text := connection.recv(0.05)):
                break
        connection.send(b"\0\0")
    assert json.loads(text)["samples"] >= 10_000
    assert json.loads(text)["session"] == caller.session
    connection.close()


def test_hanging_up_is_the_end(server: Running, log: pytest.LogCaptureFixture) -> None:
    caller = Caller(server, PCM)
    connection = caller.begin()
    caller.send(connection, len(PCM))
    connection.close()
    over = f"call end session={caller.name}"
    wait_until(lambda: over in log.text, "the call is over")
    (line,) = [line for line in log.messages if over in line]
    assert 'reason="disconnected 1000"' in line
    assert "turns=2" in line, "what was heard counts"


def test_who_hangs_up_before_it_is_told_is_heard_out(
    log: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.live._REST_S", 2.0)  # its close is read last, after an event
    scorer, once = FakeScorer(CARD, answer="held"), FakeScorer(CARD)
    audio = PCM + bytes(2 * 16_000)
    list(recognize(new_call(PCM16), [audio], once))
    with serving(scorer) as running:
        caller = Caller(running, audio)
        connection = caller.begin()
        caller.send(connection, len(audio) - 2)
        wait_until(lambda: scorer.num_held == once.num_scored, "it all waits to be scored")
        caller.send(connection, 2)
        connection.close()
        over = f"call end session={caller.name}"
        wait_until(lambda: scorer.release() >= 0 and over in log.text, "the call is over")
    (line,) = [line for line in log.messages if over in line]
    assert 'reason="disconnected 1000"' in line
    assert "turns=2" in line, "what was heard counts"


def refused(running: Running, **message: Any) -> tuple[Error, int | None]:
    with running.connect() as connection:
        connection.send(json.dumps({"type": "resume", **message}))
        (error,) = hear_all(connection)
    assert isinstance(error, Error)
    return error, connection.close_code


def test_who_does_not_come_back_is_lost(log: pytest.LogCaptureFixture) -> None:
    with serving(FakeScorer(CARD), resume_timeout_s=0.2) as running:
        caller = Caller(running, PCM)
        connection = caller.begin()
        caller.send(connection, len(PCM))
        drop(connection)
        wait_until(lambda: "reason=lost" in log.text, "the call is given up")
        assert "turns=2" in log.text, "what was heard counts"
        wait_until(lambda: running.state()["calls"] == 0, "it is over")
        error, close_code = refused(running, session=caller.session, seq=caller.seq)
    assert (error.code, close_code) == ("unknown_session", 1008)


def test_where_nobody_may_come_back_nobody_takes_over_either() -> None:
    with serving(FakeScorer(CARD), resume_timeout_s=0.0) as running:
        caller = Caller(running, PCM)
        connection = caller.begin()
        error, close_code = refused(running, session=caller.session, seq=0)
        assert (error.code, close_code) == ("unknown_session", 1008)
        caller.finish(connection)
    assert_same_events(caller.heard, EXPECTED)


def test_what_has_arrived_is_not_told_again(server: Running) -> None:
    caller = Caller(server, PCM)
    connection = caller.begin()
    caller.send(connection, len(PCM))
    while caller.seq < 6:
        caller.hear(connection, DEADLINE_S)
    connection.send('{"type":"ack","seq":5}')
    connection.send('{"type":"ack","seq":99}')
    error = next(event for event in hear_all(connection) if isinstance(event, Error))
    assert error.code == "bad_message" and "an ack of event 99: expected at most" in error.message
    error, close_code = refused(server, session=caller.session, seq=3)
    assert (error.code, close_code) == ("forgotten", 1008)
    error, _ = refused(server, session=caller.session, seq=1000)
    assert "events up to 1000 are said to have come" in error.message


def test_audio_that_is_not_kept_is_a_gap(server: Running) -> None:
    caller = Caller(server, PCM)
    connection = caller.begin()
    caller.send(connection, 32_001)
    drop(connection)
    wait_until(lambda: is_parked(caller), "the drop is noticed")
    connection = caller.resume(samples=20_000)
    assert caller.place == 40_000
    caller.finish(connection)
    (gap,) = [event for event in caller.heard if isinstance(event, Gap)]
    assert (gap.start_s, gap.reason) == (pytest.approx(1.0, abs=1e-3), "connection_lost")
    assert gap.end_s == 1.25
    assert caller.heard[-1].duration_s == EXPECTED[-1].duration_s  # type: ignore[union-attr]


def test_a_call_whose_peer_is_away_makes_room_for_one_that_is_there(
    log: pytest.LogCaptureFixture,
) -> None:
    with serving(FakeScorer(CARD), max_calls=1) as running:
        away = Caller(running, PCM)
        connection = away.begin()
        away.send(connection, 32_000)
        drop(connection)
        wait_until(
            lambda: (
                running.process is not None and running.process.service.hub.calls()[0].is_parked
            ),
            "the drop is noticed",
        )
        there = Caller(running, PCM)
        there.finish(there.begin())
    assert_same_events(there.heard, EXPECTED)
    assert "reason=lost" in log.text


# After a restart


class MadeUpStore:
    """A store that remembers what it is told, and one call that a dead process had begun."""

    def __init__(self, stored: StoredCall | None = None) -> None:
        self.stored = stored
        self.events: list[Event] = []
        self.positions: list[int] = []
        self.finished: list[tuple[str, str]] = []

    def add_call(self, record: CallRecord) -> None:
        assert self.stored is None, "only a new call is added"

    def add_events(self, session: str, events: Any, num_samples: int) -> None:
        assert not self.finished
        self.events += events
        self.positions.append(num_samples)

    async def finish(self, session: str, reason: str) -> None:
        self.finished.append((session, reason))

    async def unfinished(self, session: str) -> StoredCall | None:
        is_it = self.stored is not None and self.stored.record.session == session
        return self.stored if is_it else None


def test_a_store_has_everything_before_the_peer_has_the_summary() -> None:
    store = MadeUpStore()
    with serving(FakeScorer(CARD)) as running:
        assert running.process is not None
        running.process.service.hub.store = store
        caller = Caller(running, PCM)
        connection = caller.begin()
        caller.finish(connection)
    assert_same_events(store.events, EXPECTED)
    assert isinstance(store.events[-1], Summary)
    assert store.finished == [(caller.name, "end")]
    assert store.positions == sorted(store.positions)


@pytest.mark.parametrize("samples", [None, 0, 70_000])
@pytest.mark.parametrize("seq", [5, 20])
def test_a_call_of_a_dead_process_goes_on_after_a_gap(samples: int | None, seq: int) -> None:
    secret = "0" * 32
    record = CallRecord(
        session=public_name(secret),
        call_id="",
        dialect="native",
        roles=("customer",),
        started_at=0.0,
        start=Start(),
    )
    store = MadeUpStore(StoredCall(record=record, num_samples=60_000, events=tuple(EXPECTED[:9])))
    with serving(FakeScorer(CARD)) as running:
        assert running.process is not None
        running.process.service.hub.store = store
        caller = Caller(running, PCM, session=secret, seq=seq, place=len(PCM))
        connection = caller.resume(**({} if samples is None else {"samples": samples}))
        place = max(60_000, samples or 0)
        assert caller.place == 2 * place
        caller.finish(connection)
    first = min(seq + 1, 9)
    told = caller.heard[max(0, 9 - first) :]
    assert caller.heard[: max(0, 9 - first)] == EXPECTED[first:9], "what the disk knew"
    assert [event.seq for event in caller.heard] == list(
        range(seq + 1, seq + 1 + len(caller.heard))
    )
    ready, gap = told[:2]
    assert isinstance(ready, Ready) and ready.session == secret
    assert isinstance(gap, Gap) and gap.reason == "server_restart"
    assert (gap.start_s, gap.end_s) == (3.75, place / 16000)
    assert isinstance(told[-1], Summary) and any(isinstance(event, Turn) for event in told)
    assert told[-1].duration_s == EXPECTED[-1].duration_s  # type: ignore[union-attr]
    assert store.finished == [(record.session, "end")]
