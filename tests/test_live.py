"""One call on a WebSocket: every peer gets its events or a reason, and costs no other anything."""

from __future__ import annotations

import gc
import json
import logging
import random
import socket
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed

from streamer.audio import AudioFormat
from streamer.call import Call, CallConfig
from streamer.drivers import recognize
from streamer.events import Emotion, Error, Event, Ready, Summary, Turn, decode_event
from streamer.live import Connection
from streamer.live_call import LiveCall
from tests.scorers import FakeScorer, assert_same_events, encode_audio, make_card, tone_speech
from tests.serving import DEADLINE_S, Running, hear_all, serving, stream, wait_until

CARD = make_card()
PCM = encode_audio([np.concatenate([tone_speech(3.0), np.zeros(16000, np.float32)])], AudioFormat())
"""A turn of three seconds, and its end."""


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """A server shared by the tests that leave nothing behind: nobody may come back."""
    with (
        FakeScorer(CARD, answer="thread") as scorer,
        serving(scorer, resume_timeout_s=0.0) as running,
    ):
        yield running


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, "streamer.server")
    return caplog


def local_events(pcm: bytes, config: CallConfig | None = None) -> list[Event]:
    return list(recognize(Call(CARD, config or CallConfig()), [pcm], FakeScorer(CARD)))


def cut(data: bytes, seed: int, longest: int) -> list[bytes]:
    """Return the bytes in pieces of any size up to the longest, half of them tiny."""
    chooser, chunks, start = random.Random(seed), [], 0
    while start < len(data):
        size = chooser.choice([1, 3, 320, 641, chooser.randrange(1, longest + 1)])
        chunks.append(data[start : start + size])
        start += size
    return chunks


# What a peer gets


@pytest.mark.parametrize("seed", range(3))
def test_cuts_do_not_show(server: Running, seed: int) -> None:
    assert_same_events(stream(server, cut(PCM, seed, 32000)), local_events(PCM))


def test_a_file_at_full_speed_loses_nothing(server: Running) -> None:
    events = stream(server, [PCM] * 20)
    assert_same_events(events, local_events(PCM * 20))
    assert isinstance(events[-1], Summary) and events[-1].channels[0].dropped == 0


def test_ready_comes_before_any_audio(server: Running) -> None:
    with server.connect() as connection:
        connection.send('{"type":"start","step_ms":500,"roles":["agent"]}')
        ready = decode_event(connection.recv(DEADLINE_S))
    assert isinstance(ready, Ready)
    assert (ready.step_ms, ready.channels[0].analysed) == (500, False)


@pytest.mark.parametrize("by_url", [True, False])
def test_two_telephone_channels(server: Running, by_url: bool) -> None:
    audio = AudioFormat(encoding="mulaw", sample_rate=8000, channels=2)
    voices = [tone_speech(2.0, seed, rate=8000) for seed in (1, 2)]
    data = encode_audio([voice[: min(map(len, voices))] for voice in voices], audio)
    expected = local_events(data, CallConfig(audio=audio, roles=("customer", "agent")))
    if by_url:
        query = "?encoding=mulaw&rate=8000&channels=2&roles=customer,agent"
        events = stream(server, [data], query)
    else:
        start = {
            "type": "start",
            "audio": {"encoding": "mulaw", "sample_rate": 8000, "channels": 2},
            "roles": ["customer", "agent"],
        }
        with server.connect() as connection:
            connection.send(json.dumps(start))
            connection.send(data)
            connection.send('{"type":"end"}')
            events = hear_all(connection)
    assert_same_events(events, expected)
    emotions = {event.role for event in events if isinstance(event, Emotion)}
    assert emotions == {"customer"}, "agents are not analysed"


def test_only_the_operator_has_agents_analysed() -> None:
    with serving(FakeScorer(CARD), analyse_agents=True) as running:
        events = stream(running, [PCM], "?roles=agent")
    assert any(isinstance(event, Turn) and event.role == "agent" for event in events)


def test_many_at_once_each_as_if_alone(server: Running) -> None:
    heard: list[list[Event]] = []
    threads = [
        threading.Thread(
            target=lambda seed=seed: heard.append(stream(server, cut(PCM, seed, 9000)))
        )
        for seed in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    expected = local_events(PCM)
    assert len(heard) == len(threads)
    for events in heard:
        assert_same_events(events, expected)


# What a peer may not do


@pytest.mark.parametrize(
    ("message", "code", "close_code"),
    [
        ("{", "bad_json", 1007),
        ("[1]", "bad_message", 1008),
        ('{"type":"start","audio":{"sample_rate":96000}}', "bad_audio", 1008),
        ('{"type":"start","roles":["boss"]}', "bad_config", 1008),
        ('{"type":"start","roles":["agent","customer"]}', "bad_config", 1008),
        ('{"type":"start","step_ms":20}', "bad_config", 1008),
        ('{"type":"start","step_ms":251}', "bad_config", 1008),
        ('{"type":"resume","session":"a","seq":1}', "unknown_session", 1008),
        ("x" * 5000, "too_big", 1009),
    ],
)
def test_a_bad_first_message(server: Running, message: str, code: str, close_code: int) -> None:
    with server.connect() as connection:
        connection.send(message)
        (error,) = hear_all(connection)
    assert isinstance(error, Error)
    assert (error.code, error.fatal, error.seq) == (code, True, 0)
    assert "expected" in error.message
    assert (connection.close_code, connection.close_reason) == (close_code, code)


def test_a_bad_query(server: Running) -> None:
    with server.connect("?rate=96000") as connection:
        connection.send(PCM)
        (error,) = hear_all(connection)
    assert isinstance(error, Error) and "96000" in error.message


@pytest.mark.parametrize(
    ("last", "code", "close_code"),
    [
        ("{", "bad_json", 1007),
        ('{"type":"start"}', "bad_message", 1008),
        (b"\x00", "bad_audio", 1007),  # and then the end: half a sample
    ],
)
def test_what_came_before_a_fault_is_answered(
    server: Running, last: str | bytes, code: str, close_code: int
) -> None:
    with server.connect() as connection:
        connection.send(PCM)
        connection.send(last)
        if isinstance(last, bytes):
            connection.send('{"type":"end"}')
        *before, error, summary = hear_all(connection)
    assert isinstance(error, Error) and (error.code, error.fatal) == (code, True)
    assert isinstance(summary, Summary)
    assert connection.close_code == close_code
    assert_same_events(before, local_events(PCM)[:-1])


def test_a_frame_over_the_limit(server: Running, log: pytest.LogCaptureFixture) -> None:
    with server.connect() as connection:
        connection.send(PCM)
        connection.send(bytes(2**20 + 1))
        hear_all(connection)
    assert connection.close_code == 1009
    wait_until(lambda: "disconnected" in log.text, "the end of the call in the log")


def test_text_that_is_not_utf8(server: Running, log: pytest.LogCaptureFixture) -> None:
    with server.connect() as connection:
        connection.send(b"\xff\xfe", text=True)
        assert hear_all(connection) == []
    assert connection.close_code == 1007
    assert "Traceback" not in log.text


def test_endless_fragments(server: Running) -> None:
    with server.connect() as connection:
        with pytest.raises(ConnectionClosed):
            connection.send(b"" for _ in range(100_000))
        assert connection.close_code == 1009


def test_silence_of_the_peer_ends_a_call() -> None:
    with serving(FakeScorer(CARD), idle_timeout_s=0.3) as running, running.connect() as connection:
        connection.send(PCM[:60000])
        *_, turn, error, summary = hear_all(connection)
    assert isinstance(turn, Turn), "what was heard counts"
    assert isinstance(error, Error) and error.code == "idle"
    assert isinstance(summary, Summary)
    assert (connection.close_code, connection.close_reason) == (1008, "idle")


def test_empty_messages_are_silence() -> None:
    with serving(FakeScorer(CARD), idle_timeout_s=0.3) as running, running.connect() as connection:
        with pytest.raises(ConnectionClosed):
            while True:
                connection.send(b"")
        assert connection.close_reason == "idle"


def test_a_peer_that_vanishes(server: Running, log: pytest.LogCaptureFixture) -> None:
    with server.connect() as connection:
        connection.send(PCM)
        connection.recv(DEADLINE_S)
        connection.socket.shutdown(socket.SHUT_RDWR)
    wait_until(lambda: "call end" in log.text, "the end of the call in the log")
    assert server.state()["calls"] == 0
    assert sum("call end" in line for line in log.messages) == 1
    assert "Traceback" not in log.text


# One call's fault is that call's alone


class PoisonedScorer(FakeScorer):
    """Raises what it never should, for every window of the calls after the first."""

    def submit(self, features: Any) -> Any:
        if self.num_submitted > 3:
            raise ZeroDivisionError("a fault of ours, in /secret/path")
        return super().submit(features)


def test_a_fault_of_ours_is_told_and_logged(log: pytest.LogCaptureFixture) -> None:
    with serving(PoisonedScorer(CARD)) as running:
        with running.connect() as connection:
            connection.send(PCM)
            events = hear_all(connection)
        assert connection.close_code == 1011
        assert isinstance(events[-1], Error)
        assert (events[-1].code, events[-1].seq) == ("internal", len(events) - 1)
        assert "secret" not in events[-1].message
        assert log.text.count("Traceback") == 1
        assert running.state()["calls"] == 0


def test_a_window_that_cannot_be_scored_is_told(server: Running) -> None:
    with serving(FakeScorer(CARD, fails=lambda features: True)) as running:
        events = stream(running, [PCM])
    errors = [event.code for event in events if isinstance(event, Error)]
    assert errors == ["scorer_failed", "turn_not_scored"]


def test_nothing_is_left_of_a_call(server: Running) -> None:
    with server.connect() as connection:
        connection.send(PCM)
        connection.recv(DEADLINE_S)
        connection.socket.shutdown(socket.SHUT_RDWR)
    stream(server, [PCM])
    with server.connect() as connection:
        connection.send("{")
        hear_all(connection)

    def num_left() -> int:
        gc.collect()
        return sum(type(found) in (LiveCall, Connection) for found in gc.get_objects())

    # Also of calls before this test. The socket's task ends a little after its close.
    wait_until(lambda: num_left() == 0, "all that belonged to calls is freed")
