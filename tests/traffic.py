"""Calls of all sorts over a real socket, and all that was said there, by AsyncAPI's document."""

from __future__ import annotations

import copy
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import jsonschema
import numpy as np
from msgspec.structs import replace
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from docs import generate
from streamer.alerts import AlertRule
from streamer.audio import AudioFormat
from streamer.card import Rejection
from streamer.pressure import WIDENED, PressureConfig
from streamer.store import Store, StoreConfig
from tests.golden.synthetic import silence
from tests.scorers import FakeScorer, encode_audio, make_card, tone_speech
from tests.serving import DEADLINE_S, Running, serving, wait_until

Json: TypeAlias = dict[str, Any]

DOCUMENT: Json = json.loads((generate.DOCS / "asyncapi.json").read_text("utf-8"))
SCHEMAS: Json = DOCUMENT["components"]["schemas"]
STEREO = AudioFormat(channels=2)
PCM = encode_audio(
    [
        np.concatenate([silence(0.5), tone_speech(2.6, 1), silence(0.9)]),
        np.concatenate([silence(1.0), tone_speech(2.0, 2), silence(1.0)]),
    ],
    STEREO,
)
"""4 s of two people, who talk at once for more than a second."""
VOICE = encode_audio([tone_speech(16.0, 1)], AudioFormat())
CARD = replace(make_card(), rejection=Rejection(turn=0.99))
"""Of a model that is not sure of any turn."""


# Schemas of what was said


def at(ref: str) -> Any:
    """Return what a reference of the document refers to."""
    assert ref.startswith("#/")
    item: Any = DOCUMENT
    for key in ref[2:].split("/"):
        item = item[key]
    return item


def strict(name: str) -> jsonschema.Draft202012Validator:
    """Return a validator that takes no field of which the document does not know."""
    schemas = copy.deepcopy(SCHEMAS)
    for schema in schemas.values():
        if "properties" in schema:
            schema["unevaluatedProperties"] = False
        elif "allOf" in schema:
            schema["allOf"] = [at(part["$ref"]) for part in schema["allOf"]]
            schema["unevaluatedProperties"] = False
    ref = {"$ref": f"#/components/schemas/{name}"}
    return jsonschema.Draft202012Validator({**ref, "components": {"schemas": schemas}})


VALIDATORS = {name: strict(name) for name in SCHEMAS}
MESSAGES = {
    operation: [message["$ref"].rpartition("/")[2] for message in item["messages"]]
    for operation, item in DOCUMENT["operations"].items()
}


def kind_of(operation: str, message: str | bytes) -> str:
    """Return the name of the one message of an operation that this is."""
    if isinstance(message, bytes):
        assert "Audio" in MESSAGES[operation]
        return "Audio"
    found, faults = [], []
    for name in MESSAGES[operation]:
        if name != "Audio":
            fault = jsonschema.exceptions.best_match(
                VALIDATORS[name].iter_errors(json.loads(message))
            )
            found += [name] * (fault is None)
            faults += [f"{name}: {fault.message}"] if fault is not None else []
    assert len(found) == 1, f"{operation} {message}: {found or faults}"
    return found[0]


# Live traffic


@dataclass
class Traffic:
    """Everything that crossed the wire, by operation; how connections were closed; HTTP answers."""

    messages: list[tuple[str, str | bytes]] = field(default_factory=list)
    closes: set[tuple[str, int | None, str | None]] = field(default_factory=set)
    bodies: dict[str, Any] = field(default_factory=dict)

    def told(self, operation: str) -> list[Json]:
        """What was said in text, in its order."""
        texts = (text for name, text in self.messages if name == operation)
        return [json.loads(text) for text in texts if isinstance(text, str)]


@dataclass
class Line:
    """A connection to one of the document's channels, of which everything is written down."""

    connection: ClientConnection
    channel: str
    traffic: Traffic

    def say(self, message: Json | bytes) -> None:
        said = message if isinstance(message, bytes) else json.dumps(message)
        self.traffic.messages.append(("hear", said))
        self.connection.send(said)

    def hear(self, timeout_s: float = DEADLINE_S) -> Json:
        text = self.connection.recv(timeout_s)
        self.traffic.messages.append(("show" if self.channel == "watch" else "tell", text))
        message: Json = json.loads(text)
        return message

    def hear_until(self, kind: str) -> Json:
        while (message := self.hear())["type"] != kind:
            pass
        return message

    def hear_all(self) -> None:
        """Hear what comes until the other side closes."""
        with suppress(ConnectionClosed):
            while True:
                self.hear()
        protocol = self.connection
        self.traffic.closes.add((self.channel, protocol.close_code, protocol.close_reason))


@dataclass
class Room:
    """A server, and whether its scorer fails now."""

    running: Running
    traffic: Traffic
    is_failing: bool = False

    @contextmanager
    def line(self, channel: str, query: str = "") -> Iterator[Line]:
        url = f"ws://127.0.0.1:{self.running.port}{DOCUMENT['channels'][channel]['address']}"
        with connect(url + query, open_timeout=DEADLINE_S, ping_interval=None, proxy=None) as made:
            yield Line(made, channel, self.traffic)


START = {
    "type": "start",
    "audio": {"encoding": "pcm_s16le", "sample_rate": 16000, "channels": 2},
    "roles": ["customer", "agent"],
    "call_id": "2024-17",
    "step_ms": 100,
}
END = {"type": "end"}


def a_call_that_comes_back(room: Room) -> None:
    """Two people, acks either way, a connection that breaks, audio that is not kept meanwhile."""
    with room.line("stream") as line:
        line.say(START)
        session = line.hear_until("ready")["session"]
        line.say(PCM[: len(PCM) // 2])
        seq = line.hear_until("emotion")["seq"]
        line.say({"type": "ack", "seq": seq})
        line.connection.socket.shutdown(socket.SHUT_RDWR)
    with room.line("stream") as line:
        resume = {"type": "resume", "session": session, "seq": seq, "samples": 40_000}
        line.say(resume)
        line.say(PCM[4 * line.hear_until("ack")["samples"] :])
        line.say(END)
        line.hear_all()


def a_call_that_is_looked_at(room: Room) -> None:
    """A watcher that comes in its middle."""
    with room.line("stream", "?call_id=seen&channels=2") as line:
        line.say(PCM)
        line.hear_until("turn")
        with room.line("watch") as watcher:
            (snapshot,) = watcher.hear()["calls"]
            assert snapshot["emotions"] and snapshot["turns"]
            watcher.connection.send("hello")
            watcher.hear_all()
        line.say(END)
        line.hear_all()


BAD = ('{"type":', '{"type":"start","audio":{"sample_rate":96000}}', '{"type":"begin"}')


def calls_that_go_wrong(room: Room) -> None:
    for said in BAD:
        with room.line("stream") as line:
            line.connection.send(said)
            line.hear_all()
    with room.line("stream", "?encoding=pcm_f32le") as line:
        line.say(np.full(100, np.nan, "<f4").tobytes())
        line.hear_all()
    room.is_failing = True
    with room.line("stream", "?channels=2") as line:
        line.say(PCM)
        line.say(END)
        line.hear_all()
    room.is_failing = False


def a_call_that_is_thinned_out(room: Room) -> None:
    """Live audio, while scoring is behind, as it is spoken: faster audio would wait."""
    assert room.running.process is not None
    room.running.process.service.hub.pressure.level = WIDENED
    with room.line("stream", "?step_ms=100") as line:
        for place in range(0, len(VOICE), 3200):
            line.say(VOICE[place : place + 3200])
            threading.Event().wait(0.1)
            with suppress(TimeoutError):
                while line.hear(0.0)["type"] != "lag":
                    pass
                line.say(END)
                line.hear_all()
                return


ASKED = (
    *("/v1/calls", "/v1/calls?limit=1", "/v1/calls?label=uncertain", "/v1/calls?label=sad"),
    *("/v1/calls?limit=0", "/v1/calls/unknown", "/v1/watch", "/v1/calls?colour=red"),
)


def look_at_calls(room: Room) -> None:
    bodies = room.traffic.bodies
    bodies |= {page: room.running.get(page) for page in ASKED}
    for call in bodies["/v1/calls"][1]["calls"]:
        for query in ("", "?events=all"):
            page = f"/v1/calls/{call['session']}{query}"
            bodies[page] = room.running.get(page)


def record(folder: Path) -> Traffic:
    """Have calls of all sorts; somebody looks on from before the first to after the last."""
    rule = AlertRule(name="any", label="neutral", probability=0.001, duration_s=0.5)
    made: list[Room] = []
    scorer = FakeScorer(CARD, fails=lambda _: made[0].is_failing)
    with (
        Store(StoreConfig(path=folder / "calls.db")) as store,
        serving(
            scorer, kept=store, alerts=(rule,), pressure=PressureConfig(calm_s=86400.0)
        ) as running,
    ):
        room = Room(running, Traffic())
        made.append(room)
        with room.line("watch") as watcher:
            watcher.hear()
            reader = threading.Thread(target=watcher.hear_all)
            reader.start()
            a_call_that_comes_back(room)
            a_call_that_is_looked_at(room)
            calls_that_go_wrong(room)
            a_call_that_is_thinned_out(room)
            look_at_calls(room)
            num = num_over(room.traffic, "tell")
            wait_until(lambda: num_over(room.traffic, "show") == num, "it has seen it all")
            watcher.connection.close()
            reader.join(DEADLINE_S)
            assert not reader.is_alive()
    return room.traffic


def num_over(traffic: Traffic, operation: str) -> int:
    return sum(message["type"] == "summary" for message in traffic.told(operation))
