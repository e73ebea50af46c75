"""Calls as they are shown: a list, one of them, its deletion, and whoever looks on."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from socket import SO_RCVBUF, SO_SNDBUF, SOL_SOCKET, create_server
from typing import Any

import msgspec
import numpy as np
import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from streamer.api import api_routes
from streamer.audio import AudioFormat
from streamer.call_views import turns_csv, view_of_kept
from streamer.events import Event, decode_event
from streamer.kept import KeptCall, KeptEvent
from streamer.records import public_name
from streamer.server import ServerConfig, Service
from streamer.store import Store, StoreConfig
from streamer.transport import BoundedConfig, BoundedServer
from tests.kept_calls import SUMMARY, begin, emotion, keep, turn
from tests.scorers import FakeScorer, encode_audio, make_card, tone_speech
from tests.serving import DEADLINE_S, Running, hear_all, stream, wait_until

CARD = make_card()
PCM = encode_audio([np.concatenate([tone_speech(3.0), np.zeros(16000, np.float32)])], AudioFormat())
"""A turn of three seconds, and its end."""


@dataclass
class Shown(Running):
    """A server whose calls are shown."""

    def ask(
        self, path: str, method: str = "GET", accept: str = "*/*"
    ) -> tuple[int, dict[str, str], str]:
        """Return status, headers, body."""
        with closing(HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)) as connection:
            connection.request(method, path, headers={"accept": accept})
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read().decode()

    def json(self, path: str) -> Any:
        status, headers, body = self.ask(path)
        assert status == 200, body
        assert headers["content-type"] == "application/json"
        assert headers["cache-control"] == "no-store"
        return json.loads(body)

    def sessions(self, query: str = "") -> list[str]:
        return [call["session"] for call in self.json(f"/v1/calls{query}")["calls"]]

    def watch(self, query: str = "", **arguments: Any) -> ClientConnection:
        return connect(
            f"ws://127.0.0.1:{self.port}/v1/watch{query}",
            compression=None,
            open_timeout=DEADLINE_S,
            ping_interval=None,
            proxy=None,
            **arguments,
        )


@contextmanager
def shown(
    store: Store | None = None, *, send_buffer_bytes: int | None = None, **config: Any
) -> Iterator[Shown]:
    """Run a server that shows its calls."""
    service = Service(ServerConfig(**config), FakeScorer(CARD), store=store)
    routes = api_routes(service.hub, store, send_timeout_s=1.0)
    app = Starlette(routes=[*routes, Mount("/", service.app())])
    bounds = BoundedConfig(
        app, max_connections=100, max_message_bytes=2**20, handshake_timeout_s=1.0
    )
    server = BoundedServer(bounds)
    with create_server(("127.0.0.1", 0)) as listener:
        if send_buffer_bytes is not None:
            listener.setsockopt(SOL_SOCKET, SO_SNDBUF, send_buffer_bytes)
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield Shown(listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(DEADLINE_S)
            assert not thread.is_alive()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(StoreConfig(path=tmp_path / "calls.db")) as store:
        yield store


def heard(connection: ClientConnection) -> Any:
    return json.loads(connection.recv(DEADLINE_S))


# A list


def test_calls_live_and_kept(store: Store) -> None:
    with shown(store) as server:
        stream(server, [PCM], "?call_id=first")
        with server.connect("?call_id=second") as connection:
            connection.send(PCM[:96000])
            connection.recv(DEADLINE_S)
            wait_until(lambda: server.json("/v1/calls")["calls"][0]["channels"][0]["label"], "told")
            live, ended = server.json("/v1/calls")["calls"]
            assert (live["call_id"], live["state"], live["ended_at"]) == ("second", "live", None)
            assert (ended["call_id"], ended["state"], ended["reason"]) == ("first", "ended", "end")
            assert (ended["dialect"], ended["model"]) == ("native", CARD.name)
            label = ended["channels"][0]["label"]
            assert ended["channels"] == [{"channel": 0, "role": "customer", "label": label}]
            assert label in CARD.labels and ended["duration_s"] == 4.0
            assert ended["started_at"] < ended["ended_at"] < live["started_at"]
            assert server.sessions("?state=live") == [live["session"]]
            assert server.sessions("?state=ended") == [ended["session"]]
            assert server.sessions("?state=parked") == []
            assert server.sessions("?call_id=first") == [ended["session"]]
            assert server.sessions(f"?since={live['started_at']}") == [live["session"]]
            assert server.sessions("?role=agent") == []
            assert server.sessions(f"?label={label}&state=ended") == [ended["session"]]
            assert server.sessions(f"?label={label}&role=agent") == []
            assert server.sessions("?label=uncertain") == []


def test_pages_hold_every_call_once(store: Store) -> None:
    async def fill() -> None:
        for number in range(7):
            await keep(store, f"s{number}", started_at=1000.0 + number // 2)

    asyncio.run(fill())
    with shown(store) as server, server.connect() as connection:
        connection.send(PCM[:3200])
        connection.recv(DEADLINE_S)
        pages, cursor = [], ""
        while cursor is not None:
            page = server.json(f"/v1/calls?limit=3{cursor and '&cursor='}{cursor}")
            pages.append([call["session"] for call in page["calls"]])
            cursor = page["next_cursor"]
        assert [len(page) for page in pages] == [3, 3, 2]
        assert [pages[0][1:], *pages[1:]] == [["s6", "s5"], ["s4", "s3", "s2"], ["s1", "s0"]]


def test_without_a_store_live_calls_are_shown() -> None:
    with shown() as server:
        stream(server, [PCM])
        assert server.sessions() == []
        with server.connect("?call_id=here") as connection:
            connection.send(PCM)
            wait_until(lambda: decode_event(connection.recv(DEADLINE_S)).seq > 3, "it is heard")
            (session,) = server.sessions("?call_id=here")
            wait_until(lambda: bool(server.json(f"/v1/calls/{session}")["turns"]), "a turn is over")
            call = server.json(f"/v1/calls/{session}?events=all")
            assert call["call"]["state"] == "live" and call["summary"] is None
            assert server.ask(f"/v1/calls/{session}.csv")[2].count("\r\n") == 2


# One call


def test_one_call_as_json(store: Store) -> None:
    with shown(store) as server:
        events = stream(server, [PCM])
        (session,) = server.sessions()
        call = server.json(f"/v1/calls/{session}")
        of = {kind: [as_json(e) for e in events if as_json(e)["type"] == kind] for kind in KINDS}
        assert call["call"] == server.json("/v1/calls")["calls"][0]
        assert call["turns"] == of["turn"] and len(call["turns"]) == 1
        assert call["summary"] == of["summary"][0]
        assert call["channels"] == call["summary"]["channels"]
        assert call["alerts"] == call["gaps"] == call["talk_overs"] == call["errors"] == []
        assert "events" not in call
        whole = server.json(f"/v1/calls/{session}?events=all")
        assert whole["events"] == [as_shown(event) for event in events]


KINDS = ("turn", "summary")


def as_json(event: Event) -> Any:
    return json.loads(msgspec.json.encode(event))


def as_shown(event: Event) -> Any:
    """Return an event as whoever may not resume its call is shown it."""
    told = as_json(event)
    return told | {name: public_name(told[name]) for name in told if name == "session"}


def test_a_long_calls_events_all_come(store: Store) -> None:
    asyncio.run(keep(store, "a", *map(emotion, range(2500))))
    with shown(store) as server:
        events = server.json("/v1/calls/a?events=all")["events"]
        assert [event["seq"] for event in events] == [*range(2500), SUMMARY.seq]


def test_one_call_as_csv(store: Store) -> None:
    asyncio.run(keep(store, "a", turn(0), emotion(1), turn(2, "angry")))
    with shown(store) as server:
        status, headers, body = server.ask("/v1/calls/a.csv")
        assert status == 200
        assert headers["content-type"] == "text/csv; charset=utf-8; header=present"
        assert headers["content-disposition"] == 'attachment; filename="call-a.csv"'
        assert body.startswith(
            "session,call_id,started_at,channel,role,start_s,end_s,label,windows,"
            "score_angry,score_happy,score_neutral,score_sad\r\n"
            "a,2024-17,1970-01-01T00:16:40.000Z,0,customer,0.9,5.5,neutral,3,0.128789,"
        )
        assert [row["label"] for row in csv.DictReader(io.StringIO(body))] == ["neutral", "angry"]
        assert server.ask("/v1/calls/a?format=csv")[2] == body
        assert server.ask("/v1/calls/a", accept="text/csv, */*;q=0.1")[2] == body
        assert server.ask("/v1/calls/a", accept="application/json, text/csv;q=0.9")[2][0] == "{"
        assert server.ask("/v1/calls/a?format=json", accept="text/csv")[2][0] == "{"


@pytest.mark.parametrize("call_id", ["=1+1", "+1", "-1", "@x", "\tx", '"a",\r\nb'])
def test_no_cell_is_a_formula_or_breaks_its_line(call_id: str) -> None:
    row = "a", call_id, "", "native", None, ("customer",), "{}", 0.0, 0.0, 0.0, "end", 0, 0, None
    call = KeptCall(**dict(zip(KeptCall.__struct_fields__, row, strict=True)))
    events = [KeptEvent(0, "turn", json.dumps(as_json(turn(0))))]
    text = turns_csv(view_of_kept(call, may_return=False), events)
    head, row = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert len(head) == len(row)
    assert row[1] == (call_id if call_id.startswith('"') else f"'{call_id}")


# Its end


def test_a_call_is_deleted_when_it_has_ended(store: Store) -> None:
    with shown(store) as server:
        with server.connect() as connection:
            connection.send(PCM[:3200])
            connection.recv(DEADLINE_S)
            (session,) = server.sessions()
            status, _, body = server.ask(f"/v1/calls/{session}", "DELETE")
            assert (status, json.loads(body)["code"]) == (409, "call_not_ended")
            connection.send('{"type":"end"}')
            hear_all(connection)
        assert server.ask(f"/v1/calls/{session}", "DELETE")[0] == 204
        assert server.sessions() == []
        for method in ("GET", "DELETE"):
            status, _, body = server.ask(f"/v1/calls/{session}", method)
            assert (status, json.loads(body)["code"]) == (404, "unknown_call")


def test_a_call_that_may_come_back_is_not_deleted(tmp_path: Path) -> None:
    path = tmp_path / "calls.db"
    with Store(StoreConfig(path=path)) as store:
        begin(store, "left")
    with Store(StoreConfig(path=path)) as store, shown(store) as server:
        assert server.json("/v1/calls?state=parked")["calls"][0]["session"] == "left"
        assert server.ask("/v1/calls/left", "DELETE")[0] == 409


# What is said to those who ask wrongly


@pytest.mark.parametrize(
    ("path", "found", "expected"),
    [
        ("/v1/calls?sate=live", "parameter 'sate'", "state or call_id or label"),
        ("/v1/calls?state=dead", "state 'dead'", "live or parked or ended"),
        ("/v1/calls?role=boss", "role 'boss'", "customer or agent"),
        ("/v1/calls?limit=0", "limit '0'", "1 to 500"),
        ("/v1/calls?limit=1&limit=2", "parameter 'limit' twice", "it once"),
        ("/v1/calls?limit=" + "9" * 5000, "limit '999", "1 to 500"),
        ("/v1/calls?since=yesterday", "since 'yesterday'", "a time with its offset"),
        ("/v1/calls?since=2026-01-31T08:00:00", "since '2026", "a time with its offset"),
        ("/v1/calls?cursor=x", "cursor 'x'", "next_cursor of the page before"),
        ("/v1/calls?cursor=e30=", "cursor 'e30='", "next_cursor of the page before"),
        ("/v1/calls/a?events=some", "events 'some'", "all"),
        ("/v1/calls/a?format=xml", "format 'xml'", "json or csv"),
    ],
)
def test_a_bad_parameter(store: Store, path: str, found: str, expected: str) -> None:
    with shown(store) as server:
        status, headers, body = server.ask(path)
    error = json.loads(body)
    assert (status, headers["content-type"]) == (400, "application/json")
    assert (error["type"], error["code"]) == ("error", "bad_parameter")
    assert error["found"].startswith(found) and len(error["found"]) <= 200
    assert error["expected"].startswith(expected)
    assert error["message"] == f"found {error['found']}: expected {error['expected']}"


def test_a_store_that_cannot_be_read(store: Store) -> None:
    with shown(store) as server:
        store.close()
        status, headers, body = server.ask("/v1/calls")
    assert (status, headers["retry-after"]) == (503, "10")
    assert json.loads(body)["code"] == "store_unavailable"


def test_a_plain_get_of_the_watch() -> None:
    with shown() as server:
        status, headers, body = server.ask("/v1/watch")
    assert (status, headers["upgrade"]) == (426, "websocket")
    assert json.loads(body)["code"] == "upgrade_required"


# Whoever looks on


def test_a_watcher_of_all_calls(store: Store) -> None:
    with shown(store) as server, server.watch() as watcher:
        assert heard(watcher) == {"type": "snapshot", "calls": []}
        events = stream(server, [PCM], "?call_id=theirs")
        session = server.sessions()[0]
        for event in events:
            whose = {"call": session, "call_id": "theirs"}
            assert heard(watcher) == whose | as_shown(event)


def test_a_watcher_of_one_call() -> None:
    with shown() as server, server.connect("?call_id=a") as first, server.connect() as other:
        for connection in (first, other):
            connection.send(PCM)
            connection.recv(DEADLINE_S)
        (session,) = server.sessions("?call_id=a")
        wait_until(lambda: bool(server.json(f"/v1/calls/{session}")["turns"]), "a turn is over")
        with server.watch(f"?call={session}") as watcher:
            (call,) = heard(watcher)["calls"]
            assert (call["call"]["session"], call["call"]["call_id"]) == (session, "a")
            assert call["emotions"][0]["label"] in CARD.labels and len(call["turns"]) == 1
            for connection in (first, other):
                connection.send('{"type":"end"}')
            messages = [json.loads(text) for text in watcher]
            assert {message["call"] for message in messages} == {session}
            assert messages[-1]["type"] == "summary"
            assert watcher.close_code == 1000


@pytest.mark.parametrize(
    ("query", "code"), [("?call=unknown", "unknown_call"), ("?cal=1", "bad_parameter")]
)
def test_a_watcher_of_what_there_is_not(query: str, code: str) -> None:
    with shown() as server, server.watch(query) as watcher:
        assert heard(watcher)["code"] == code
        with pytest.raises(ConnectionClosed):
            watcher.recv(DEADLINE_S)
        assert (watcher.close_code, watcher.close_reason) == (1008, code)


def test_a_watcher_has_nothing_to_say() -> None:
    with shown() as server, server.watch() as watcher:
        heard(watcher)
        watcher.send("hello")
        assert heard(watcher)["code"] == "bad_message"
        with pytest.raises(ConnectionClosed):
            watcher.recv(DEADLINE_S)
        assert watcher.close_code == 1008


def test_a_watcher_that_reads_nothing_holds_nobody_up_and_is_dropped() -> None:
    with shown(send_buffer_bytes=4096) as server:
        with create_unread_watcher(server) as watcher:
            events = stream(server, [PCM] * 20)
            assert as_json(events[-1])["type"] == "summary"
            wait_until(lambda: is_closed(watcher), "it is dropped")
        stream(server, [PCM])


@contextmanager
def create_unread_watcher(server: Shown) -> Iterator[Any]:
    """A watcher by hand, so that nothing reads for it."""
    with socket.socket() as peer:
        peer.setsockopt(SOL_SOCKET, SO_RCVBUF, 4096)
        peer.connect(("127.0.0.1", server.port))
        peer.sendall(
            b"GET /v1/watch HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        yield peer


def is_closed(peer: Any) -> bool:
    """Whether the other side is gone: only then can nothing more be sent."""
    try:
        peer.sendall(b"\x8a\x80\0\0\0\0")  # an empty pong
    except OSError:
        return True
    return False
