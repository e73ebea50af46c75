"""The Python client against a real server, and against servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from ser_stream_client import (
    AsyncClient,
    Client,
    ClientError,
    ConnectError,
    ConnectionLostError,
    ServerError,
)
from ser_stream_client import Event as Told
from websockets.sync.server import ServerConnection

from streamer.audio import AudioFormat
from streamer.dialects import CloseCode, Handshake
from streamer.dialects.native import NativeDialect
from streamer.events import EventType, decode_event, encode_event
from tests.golden.synthetic import silence
from tests.peers import CARD, STEREO, decoded, free_url, local, peer, stereo_call
from tests.scorers import FakeScorer, assert_same_events, encode_audio, tone_speech
from tests.serving import DEADLINE_S, Running, serving, wait_until

READY = {"type": "ready", "seq": 0, "channel": None, "role": None}
SUMMARY = {"type": "summary", "seq": 1, "channel": None, "role": None}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with FakeScorer(CARD, answer="thread") as scorer, serving(scorer, max_calls=4) as running:
        yield running


# What it is for


def test_the_async_twin_gives_the_same(server: Running) -> None:
    async def run() -> list[Told]:
        told = []
        async with AsyncClient(server.url, sample_rate=8000, channels=2) as client:

            async def send() -> None:
                pcm = stereo_call()
                for start in range(0, len(pcm), 1001):
                    await client.send(pcm[start : start + 1001])
                await client.end()

            sending = asyncio.create_task(send())
            async for event in client:
                told.append(event)
            await sending
            assert client.ready == told[0]
        return told

    assert_same_events(decoded(asyncio.run(run())), local(STEREO, stereo_call()))


def test_one_thread_sends_while_another_reads(server: Running) -> None:
    with Client(server.url, sample_rate=8000, channels=2) as client:

        def send() -> None:
            pcm = memoryview(stereo_call())
            for start in range(0, len(pcm), 641):
                client.send(pcm[start : start + 641])
            client.end()

        sender = threading.Thread(target=send)
        sender.start()
        told = list(client.events())
        sender.join(DEADLINE_S)
    assert_same_events(decoded(told), local(STEREO, stereo_call()))


def test_events_end_with_their_time_and_lose_none(server: Running) -> None:
    with Client(server.url) as client:
        first = list(client.events(timeout_s=0.01))
        assert first == [client.ready]
        client.send(encode_audio([tone_speech(1.0)], AudioFormat()))
        client.end()
        second = next(iter(client.events()))
        rest = list(client.events())
    assert [event["seq"] for event in (*first, second, *rest)] == list(range(len(rest) + 2))


# Faster than real time


def test_two_minutes_at_once_before_the_first_look_lose_nothing(server: Running) -> None:
    block = np.concatenate([tone_speech(4.0, 3), silence(1.0)])
    pcm = encode_audio([np.tile(block, 24)], AudioFormat())
    with Client(server.url) as client:
        client.send(pcm)
        client.end()
        told = list(client.events())
    summary = told[-1]
    assert summary["type"] == "summary" and summary["duration_s"] == 120.0
    assert summary["channels"][0]["dropped"] == 0
    assert [event["seq"] for event in told] == list(range(len(told)))
    assert sum(event["type"] == "turn" for event in told) == 24


BLOCK, NUM_BLOCKS = bytes(65_536), 400
"""26 MB each way: more than the system keeps for two sockets (10 MB and a bit on Linux)."""


def echo(connection: ServerConnection) -> None:
    """Answer each message at as much length, and read nothing while the answer is not sent."""
    connection.recv()
    connection.send(json.dumps(READY))
    while isinstance(connection.recv(), bytes):
        connection.send(json.dumps({"type": "speech", "padding": "x" * len(BLOCK)}))
    connection.send(json.dumps(SUMMARY))


def test_a_server_that_answers_before_it_reads_on_cannot_lock_a_sender_up() -> None:
    with peer(echo) as url, Client(url) as client:
        for _ in range(NUM_BLOCKS):
            client.send(BLOCK)
        client.end()
        assert sum(1 for _ in client.events()) == NUM_BLOCKS + 2


def test_nor_the_async_twin() -> None:
    async def run(url: str) -> int:
        async with AsyncClient(url) as client:
            await client.send(BLOCK * NUM_BLOCKS)
            await client.end()
            return len([event async for event in client])

    with peer(echo) as url:
        assert asyncio.run(run(url)) == NUM_BLOCKS + 2


def test_what_nobody_reads_is_bounded() -> None:
    with peer(echo) as url, Client(url, max_unread=10) as client:
        with pytest.raises(ClientError, match="unread events"):
            for _ in range(NUM_BLOCKS):
                client.send(BLOCK)
        client.end()
        assert list(client.events())[-1] == SUMMARY
        with pytest.raises(ClientError, match="after end"):
            client.send(BLOCK)


# What goes wrong


def test_no_server() -> None:
    with pytest.raises(ConnectError, match="cannot be reached, is ser-serve running"):
        Client(free_url()).__enter__()


@pytest.mark.parametrize(
    ("url", "message"),
    [("call.wav", "isn't a valid URI"), ("http://127.0.0.1", "isn't a valid URI")],
)
def test_no_address(url: str, message: str) -> None:
    with pytest.raises(ConnectError, match=message):
        Client(url).__enter__()


def test_a_path_that_is_not_served(server: Running) -> None:
    with pytest.raises(ConnectError, match="HTTP 404"):
        Client(server.url + "s").__enter__()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ({"sample_rate": 96_000}, "bad_audio", "96000, expected a whole number of Hz"),
        ({"encoding": "opus"}, "bad_audio", "'opus', expected one of"),
        ({"roles": ["boss"]}, "bad_config", "role 'boss'"),
        ({"step_ms": 1}, "bad_config", "step of 1 ms: expected 100 to 10000 ms"),
    ],
)
def test_what_the_server_refuses(server: Running, options: dict, code: str, message: str) -> None:
    with pytest.raises(ServerError, match=message) as caught:
        Client(server.url, **options).__enter__()
    assert caught.value.code == code


def test_what_the_url_says_need_not_be_said_again(server: Running) -> None:
    with Client(server.url + "?encoding=alaw&rate=8000", roles=["agent"]) as client:
        assert (client.ready["encoding"], client.ready["sample_rate"]) == ("alaw", 8000)
        assert client.ready["channels"] == [{"channel": 0, "role": "agent", "analysed": False}]


def test_a_full_server_says_so(server: Running) -> None:
    wait_until(lambda: server.state()["calls"] == 0, "earlier calls are over")
    calls = [Client(server.url) for _ in range(4)]
    for call in calls:
        call.__enter__()
    try:
        with pytest.raises(ServerError, match="try again") as caught:
            Client(server.url).__enter__()
        assert caught.value.code == "busy"
    finally:
        for call in calls:
            call.__exit__()
    wait_until(lambda: server.state()["calls"] == 0, "a call that was left is over")


def test_a_server_that_takes_no_connection() -> None:
    def refuse(connection: ServerConnection, request: object) -> object:
        return connection.respond(503, "too many connections\n")

    with (
        peer(echo, process_request=refuse) as url,
        pytest.raises(ConnectError, match=r"full or not ready, try again later: .* HTTP 503"),
    ):
        Client(url).__enter__()


def test_bad_audio_ends_the_call_after_all_that_came_before(server: Running) -> None:
    audio = AudioFormat(encoding="pcm_f32le")
    pcm = encode_audio([tone_speech(2.0)], audio) + np.full(100, np.nan, "<f4").tobytes()
    with Client(server.url, encoding="pcm_f32le") as client:
        with pytest.raises(ServerError, match="nan, expected a number") as caught:
            while True:  # the refusal comes some time after the bytes
                client.send(pcm)
        told = []
        with pytest.raises(ServerError):
            for event in client.events():
                told.append(event)
    assert caught.value.code == "bad_audio"
    assert [event["type"] for event in told[-3:]] == ["turn", "error", "summary"]


def test_the_last_events_come_before_the_error(server: Running) -> None:
    async def run() -> list[Told]:
        told: list[Told] = []
        async with AsyncClient(server.url) as client:
            await client.send(encode_audio([tone_speech(2.0)], AudioFormat()) + b"x")
            await client.end()
            with pytest.raises(ServerError, match="1 bytes left over"):
                async for event in client:
                    told.append(event)
        return told

    told = asyncio.run(run())
    assert [event["type"] for event in told[-3:]] == ["turn", "error", "summary"]


def abrupt(connection: ServerConnection) -> None:
    connection.recv()
    connection.send(json.dumps(READY))
    connection.recv()
    connection.socket.close()


def hang_up(connection: ServerConnection) -> None:
    connection.recv()
    connection.send(json.dumps(READY))
    connection.recv()
    connection.send(json.dumps(SUMMARY))
    connection.close(1001, "stopping")


@pytest.mark.parametrize(("handler", "why"), [(abrupt, "1006"), (hang_up, "1001, stopping")])
def test_a_call_that_is_cut_off_is_no_call_that_ended(
    handler: Callable[[ServerConnection], None], why: str
) -> None:
    with peer(handler) as url, Client(url) as client:
        client.send(b"\0\0")
        with pytest.raises(ConnectionLostError, match=f"ended the call early .*{why}"):
            list(client.events())
        with pytest.raises(ConnectionLostError):
            client.send(b"\0\0")
        with pytest.raises(ConnectionLostError):
            client.end()


@pytest.mark.parametrize(
    "said", ["hello", "[1]", '{"partial": ""}', b"\xff\0", '"type"', "[" * 99_999]
)
def test_a_server_of_another_kind(said: str | bytes) -> None:
    def greet(connection: ServerConnection) -> None:
        connection.send(said)
        connection.recv()

    with peer(greet) as url, pytest.raises(ConnectError, match="expected events of ser-stream"):
        Client(url).__enter__()


def test_a_server_that_says_nothing() -> None:
    with (
        peer(lambda connection: list(connection) and None) as url,
        pytest.raises(ConnectError, match=r"not ready within 0\.2 s"),
    ):
        Client(url, open_timeout_s=0.2).__enter__()


def test_leaving_does_not_wait_for_a_server_that_reads_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("ser_stream_async._CLOSE_TIMEOUT_S", 0.2)
    may_go = threading.Event()

    def stall(connection: ServerConnection) -> None:
        connection.recv()
        connection.send(json.dumps(READY))
        may_go.wait(DEADLINE_S)

    with peer(stall) as url:
        caught: list[BaseException] = []
        try:
            with Client(url) as client:

                def send() -> None:
                    try:
                        while True:
                            client.send(BLOCK * 16)
                    except ClientError as error:
                        caught.append(error)

                sender = threading.Thread(target=send)
                sender.start()
                list(client.events(timeout_s=0.3))
            sender.join(DEADLINE_S)
        finally:
            may_go.set()
    assert not sender.is_alive() and len(caught) == 1


def test_outside_its_block(server: Running) -> None:
    client = Client(server.url)
    for use in (lambda: client.send(b""), client.end, lambda: list(client.events())):
        with pytest.raises(ClientError, match="inside the with block"):
            use()


def test_clients_leave_no_thread_behind(server: Running) -> None:
    before = threading.active_count()
    for _ in range(3):
        with Client(server.url):
            pass
    assert threading.active_count() <= before


# The page that describes it


def test_every_message_on_the_protocols_page_is_one() -> None:
    page = (Path(__file__).resolve().parents[1] / "docs" / "protocol.md").read_text()
    blocks = re.findall(r"^```json\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    messages = [line for block in blocks for line in block.splitlines()]
    dialect, events = NativeDialect(Handshake(path="/v1/stream")), []
    for message in messages:
        fields = json.loads(message)
        if fields["type"] in ("start", "end") or set(fields) == {"type", "seq"}:
            assert dialect.receive_text(message)
        elif fields["type"] == "resume":
            assert NativeDialect(Handshake(path="/v1/stream")).receive_text(message)
        elif fields["type"] == "ack":
            dialect.receive_progress(fields["session"], fields["samples"], fields["seq"])
            assert list(map(json.loads, dialect.messages_to_send())) == [fields]
        else:
            events.append(json.loads(message))
            assert json.loads(encode_event(decode_event(message))) == events[-1]
    assert {event["type"] for event in events} == set(get_args(EventType))


_TELLING = ("hub.py", "live.py", "live_call.py", "session.py")


def test_the_protocols_page_names_every_code() -> None:
    root = Path(__file__).resolve().parents[1]
    page = (root / "docs" / "protocol.md").read_text()
    assert all(f"{code.value} |" in page for code in CloseCode if code != CloseCode.NORMAL)
    sources = [root / "streamer" / name for name in _TELLING]
    sources += (root / "streamer" / "dialects").glob("*.py")
    codes = {code for path in sources for code in re.findall(r'code="(\w+)"', path.read_text())}
    assert {"idle", "internal", "bad_json"} <= codes
    assert all(f"`{code}`" in page for code in codes)
