"""Genesys Cloud's side of AudioHook, for tests."""

from __future__ import annotations

from typing import Any

from streamer.audio import AudioFormat
from streamer.call import Call, CallConfig, Lost
from streamer.dialects import Handshake
from streamer.dialects.genesys import GenesysDialect
from streamer.events import Event
from tests.dialogues import Dialogue
from tests.phone_calls import agent, customer
from tests.scorers import encode_audio, fake_logits, make_card

SESSION = "30b0e395-84d3-4570-ac13-9a62d8f514c0"
CONVERSATION = "090eaa2f-72fa-480a-83e0-8667ff89c0ec"
ORGANIZATION = "d7934305-0972-4844-938e-9060eef73d05"
NIL = "00000000-0000-0000-0000-000000000000"
STEREO = {"type": "audio", "format": "PCMU", "channels": ["external", "internal"], "rate": 8000}
EXTERNAL = {**STEREO, "channels": ["external"]}
INTERNAL = {**STEREO, "channels": ["internal"]}


class Client(Dialogue):
    """Genesys Cloud: it counts its messages and ours, and the samples of its stream."""

    def __init__(self, dialect: GenesysDialect, *, analyse_agents: bool = True) -> None:
        super().__init__(dialect, analyse_agents=analyse_agents)
        self.seq = 0
        self.position_s = 0.0

    def message(self, kind: str, **parameters: Any) -> dict[str, Any]:
        self.seq += 1
        return {
            "version": "2",
            "id": SESSION,
            "type": kind,
            "seq": self.seq,
            "serverseq": len(self.sent),
            "position": duration(self.position_s),
            "parameters": parameters,
        }

    def tell(self, kind: str, **parameters: Any) -> list[Any]:
        """Return what comes back; every message of ours is numbered and of this session."""
        answers = self.say(self.message(kind, **parameters))
        for place, answer in enumerate(self.sent, 1):
            assert (answer["version"], answer["id"], answer["seq"]) == ("2", SESSION, place)
            assert answer["clientseq"] <= self.seq
        return answers

    def open(self, *media: dict[str, Any], **more: Any) -> list[Any]:
        offered = media or (STEREO, EXTERNAL, INTERNAL)
        return self.tell("open", **open_parameters(*offered), **more)

    def stream(self, audio: bytes, *, channels: int = 2) -> list[Any]:
        """Send mu-law in messages of 200 ms."""
        size = 1600 * channels
        pieces = [audio[start : start + size] for start in range(0, len(audio), size)]
        self.position_s += len(audio) / channels / 8000
        return [answer for piece in pieces for answer in self.say(piece)]


def duration(seconds: float) -> str:
    return f"PT{seconds:.9g}S"


def open_parameters(*media: dict[str, Any], conversation: str = CONVERSATION) -> dict[str, Any]:
    return {
        "organizationId": ORGANIZATION,
        "conversationId": conversation,
        "participant": {
            "id": "883efee8-3d6c-4537-b500-6d7ca4b92fa0",
            "ani": "+1-555-555-1234",
            "aniName": "John Doe",
            "dnis": "+1-800-555-6789",
        },
        "media": list(media),
        "language": "en-US",
    }


def genesys(**headers: str) -> GenesysDialect:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return GenesysDialect(Handshake(path="/genesys", headers=tuple(named.items())))


def entities(answers: list[Any]) -> list[Any]:
    return [
        entity
        for answer in answers
        if answer["type"] == "event"
        for entity in answer["parameters"]["entities"]
    ]


def stereo(*, seconds: float = 6.0) -> bytes:
    audio = encode_audio([customer(), agent()], AudioFormat(encoding="mulaw", channels=2))
    return audio[: round(seconds * 16000)]


def run(pieces: list[bytes | Lost], *, analyse_agents: bool = True) -> list[Event]:
    """Return the events of a stereo call that is given audio and gaps directly."""
    config = CallConfig(
        audio=AudioFormat(encoding="mulaw", sample_rate=8000, channels=2),
        roles=("customer", "agent"),
        analyse_agents=analyse_agents,
    )
    call = Call(make_card(), config)
    for piece in pieces:
        if isinstance(piece, Lost):
            call.receive_gap(*piece)
        else:
            call.receive(piece, 0.0)
    call.receive_end(0.0)
    for window in call.windows_to_score():
        call.receive_scores(window, fake_logits(window.features))
    return call.events_to_send(0.0)


def documented() -> list[dict[str, Any]]:
    """Return messages of every kind, in sequence."""
    client = Client(genesys())
    return [
        client.message("open", **open_parameters(STEREO, EXTERNAL)),
        client.message("ping", rtt="PT0.1S"),
        client.message("paused"),
        client.message("resumed", start="PT1S", discarded="PT0.5S"),
        client.message("discarded", start="PT2S", discarded="PT0.5S"),
        client.message("update", language="de-DE"),
        client.message("error", code=400, message="x"),
        client.message("close", reason="end"),
    ]
