"""Callers who behave, in three dialects, and what must come of each of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import accumulate
from math import inf
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from bench.load_faults import spoil_model
from bench.load_peers import (
    NATIVE_END,
    NATIVE_PATH,
    Pacer,
    Peer,
    connect,
    native_messages,
    native_start,
    telephone_messages,
    telephone_start,
    telephone_stop,
    text,
)
from bench.load_speech import FLOATS, FORMATS, bytes_per_s, conversation, encoded, undisturbed
from streamer.audio import AudioFormat
from streamer.batching import Batcher
from streamer.events import (
    Emotion,
    Error,
    Event,
    Gap,
    Lag,
    Ready,
    Speech,
    Summary,
    Turn,
    decode_event,
)
from streamer.kept import CallFilter, KeptFile
from streamer.model import Model, shipped_models
from tests.scorers import assert_same_events

NUM_VOICES = 4
_POISON_GAINS = (10.0, 100.0)
_FINISH_S = 60.0
_RETRY_S = 0.2
_HANG_OVER_S = 0.6
"""How long after the end of speech its turn is told; what a dead process knew of one is gone."""
_REST_S = 1.0
"""A turn of which less is left after a gap may be too short to be heard as one."""


@dataclass(frozen=True)
class Said:
    """What a caller says, and what it comes to undisturbed."""

    audio: AudioFormat
    data: bytes
    expected: list[Event]

    @property
    def seconds(self) -> float:
        return len(self.data) / bytes_per_s(self.audio)


def what_is_said(
    folder: Path, seconds: float, step_ms: int, speech: Path | None
) -> dict[str, list[Said]]:
    """Return what callers say, by format, and ``poison`` for ``spoilt.onnx``, made here."""
    spoil_model(shipped_models()["can"].read_bytes(), folder / "spoilt.onnx")
    said: dict[str, list[Said]] = {"pcm16": [], "mulaw": [], "poison": []}
    with Batcher(Model.load(None, provider="cpu"), num_workers=1) as scorer:
        for name, audio in FORMATS.items():
            for seed in range(NUM_VOICES):
                data = encoded(conversation(seconds, seed, speech), audio)
                said[name].append(Said(audio, data, undisturbed(data, audio, scorer, step_ms)))
    with Batcher(Model.load(folder / "spoilt.onnx", provider="cpu"), num_workers=1) as scorer:
        for seed, gain in enumerate(_POISON_GAINS):
            data = encoded(np.float32(gain) * conversation(seconds, seed), FLOATS)
            expected = undisturbed(data, FLOATS, scorer, step_ms)
            assert any(isinstance(event, Error) for event in expected), "no poison"
            said["poison"].append(Said(FLOATS, data, expected))
    return said


@dataclass
class Caller:
    """One live call; ``events`` are those that it was told, ``kept`` those that the store has.

    ``reads`` is False for one that reads nothing until it has said all; ``goes_back`` for one that
    keeps what it said, to say it again after a restart. ``jump_ms`` sets a telephone's clock wrong;
    ``passed_s`` is how long the call was by the server's.
    """

    call_id: str
    path: str
    said: Said
    step_ms: int
    reads: bool = True
    goes_back: bool = True
    jump_ms: Callable[[int], int] = lambda number: 0
    events: list[Event] = field(default_factory=list)
    was_cut_off: bool = False
    resumed_at_s: float = 0.0
    begin_s: float = 0.0
    end_s: float = 0.0
    close_code: int | None = None
    kept: list[Event] = field(default_factory=list)
    end_reason: str | None = None
    passed_s: float = 0.0
    _ack: asyncio.Future[int] | None = None

    @property
    def is_native(self) -> bool:
        return self.path == NATIVE_PATH

    def hear(self, message: str) -> None:
        if message.startswith('{"type":"ack"'):
            if self._ack is not None and not self._ack.done():
                self._ack.set_result(json.loads(message)["samples"])
            return
        event = decode_event(message)
        if self._ack is not None and not self._ack.done() and isinstance(event, Error):
            assert event.code == "not_ready", event  # which is tried again
            return
        self.events.append(event)

    async def run(self, port: int, pacer: Pacer) -> None:
        """Call, speak live, hear all; come back if that is cut off."""
        self.begin_s = asyncio.get_running_loop().time()
        audio = self.said.audio
        peer = await connect(port, self.path, self.hear)
        assert peer.status == 101, peer.answer
        if self.is_native:
            start = native_start(audio.encoding, audio.sample_rate, self.step_ms, self.call_id)
            peer.send(start)
            messages = native_messages(self.said.data, bytes_per_s(audio))
        else:
            peer.send(telephone_start(self.path, self.call_id, self.step_ms))
            messages = telephone_messages(self.path, self.call_id, self.said.data, self.jump_ms)
        await self._speak(peer, pacer, messages, self.begin_s)
        if peer.close_code is None:
            self.was_cut_off = True
            if self.is_native:
                await self._come_back(port, pacer)
        self.end_s = asyncio.get_running_loop().time()

    async def _speak(
        self, peer: Peer, pacer: Pacer, messages: Sequence[bytes], begin_s: float
    ) -> None:
        if not self.reads:
            assert peer.transport is not None
            peer.transport.pause_reading()
        line = pacer.play(peer, messages, begin_s)
        await line.is_done.wait()
        peer.send(NATIVE_END if self.is_native else telephone_stop(self.path, self.call_id))
        if not self.reads and not peer.gone.is_set():
            await asyncio.sleep(0.5)
            assert peer.transport is not None
            peer.transport.resume_reading()
        async with asyncio.timeout(_FINISH_S):
            await peer.gone.wait()
        self.close_code = peer.close_code

    async def _come_back(self, port: int, pacer: Pacer) -> None:
        loop = asyncio.get_running_loop()
        first = next(event for event in self.events if isinstance(event, Ready))
        rate = self.said.audio.sample_rate
        async with asyncio.timeout(_FINISH_S):
            while True:
                self._ack = loop.create_future()  # first: a server may refuse before it is asked
                peer = await self._reconnected(port)
                resume = {"type": "resume", "session": first.session, "seq": self.events[-1].seq}
                if not self.goes_back:
                    away_s = min(loop.time() - self.begin_s, self.said.seconds)
                    resume["samples"] = round(away_s * rate)
                peer.send(text(resume))
                gone = asyncio.create_task(peer.gone.wait())
                await asyncio.wait([self._ack, gone], return_when=asyncio.FIRST_COMPLETED)
                gone.cancel()
                if self._ack.done():
                    break
                await asyncio.sleep(_RETRY_S)
        samples = self._ack.result()
        self.resumed_at_s = samples / rate
        rest = self.said.data[samples * self.said.audio.bytes_per_block :]
        messages = native_messages(rest, bytes_per_s(self.said.audio))
        await self._speak(peer, pacer, messages, self.begin_s + samples / rate)

    async def _reconnected(self, port: int) -> Peer:
        while True:
            with suppress(OSError):
                peer = await connect(port, self.path, self.hear)
                if peer.status == 101:
                    return peer
            await asyncio.sleep(_RETRY_S)

    def fetch(self, kept: KeptFile) -> None:
        """Take what is kept of the call; of a telephone's that is all that it was told."""
        (call,) = kept.calls(CallFilter(call_id=self.call_id), 10)
        self.kept = [decode_event(event.json) for event in kept.events(call.session)]
        self.end_reason = call.reason
        assert call.ended_at is not None
        self.passed_s = call.ended_at - call.started_at
        if not self.is_native:
            self.events = self.kept

    # What must have come of it

    @property
    def num_dropped(self) -> int:
        """Windows that nobody scored, by its own account; those of a poisoned call included."""
        return max(getattr(event, "dropped", 0) for event in self.kept)

    @property
    def is_overloaded(self) -> bool:
        return any(isinstance(event, Lag) for event in self.kept)

    def check(self) -> None:
        """Compare with an undisturbed call, all of it, or what windows are not left out.

        What a call was told is what is kept of it, but for the emotions that one who does not read
        was not told.
        """
        assert (self.close_code, self.end_reason) == (1000, "end"), self._who
        _assert_told(self.events, self.kept)
        assert not self.reads or len(self.events) == len(self.kept), self._who
        if self.is_overloaded:
            self._check_overloaded()
        else:
            assert_same_events(self.kept, self.said.expected)

    def check_ended(self) -> None:
        """Check a telephone's call that was killed: what was heard of it is kept, and its end."""
        assert self.end_reason == "server_restart", self._who
        if not self.is_overloaded:
            assert_same_events(self.kept, self.said.expected[: len(self.kept)])

    def check_resumed(self) -> Gap:
        """Check a native call that went on in another process; return what it says is missing."""
        assert (self.close_code, self.end_reason) == (1000, "end"), self._who
        assert [event.seq for event in self.events] == list(range(len(self.events))), "a hole"
        places = [at for at, event in enumerate(self.events) if isinstance(event, Ready)]
        assert len(places) == 2, f"{self.call_id}: ready {len(places)} times"
        before, (gap, *after) = self.events[: places[1]], self.events[places[1] + 1 :]
        assert isinstance(gap, Gap) and gap.reason == "server_restart", gap
        assert abs(gap.end_s - self.resumed_at_s) < 1e-3, (gap, self.resumed_at_s)
        if not any(isinstance(event, Lag) for event in before):
            assert_same_events(before, self.said.expected[: len(before)])
            for event in self.said.expected[len(before) :]:
                assert _time_s(event) > gap.start_s - _HANG_OVER_S, (self._who, gap, event)
        for event in after:
            begin_s = getattr(event, "start_s", getattr(event, "time_s", inf))
            assert begin_s >= gap.end_s, (self._who, gap, event)
        self._check_rest(after, gap.end_s)
        _assert_told(self.kept, self.events)
        assert self.kept[-1] == self.events[-1] and gap in self.kept, (self._who, "not kept")
        return gap

    def _check_overloaded(self) -> None:
        """Every window is told of: by scores, which are the undisturbed ones, or as dropped."""
        kept, expected = self.kept, self.said.expected
        whole, found = expected[-1], kept[-1]
        assert isinstance(whole, Summary) and isinstance(found, Summary), self._who
        assert abs(found.duration_s - whole.duration_s) < 1e-3, self._who
        assert _speech(kept) == _speech(expected), self._who
        turns = [(turn.start_s, turn.end_s) for turn in expected if isinstance(turn, Turn)]
        assert turns == [(turn.start_s, turn.end_s) for turn in kept if isinstance(turn, Turn)]
        raw = {(one.start_s, one.end_s): one.raw for one in expected if isinstance(one, Emotion)}
        emotions = [event for event in kept if isinstance(event, Emotion)]
        for one in emotions:
            assert one.raw == pytest.approx(raw[one.start_s, one.end_s], abs=1e-4), self._who
        num_dropped = sum(channel.dropped for channel in found.channels)
        assert num_dropped == self.num_dropped > 0, self._who
        num_windows = sum(channel.emotions + channel.dropped for channel in whole.channels)
        assert len(emotions) + num_dropped == num_windows, self._who

    def _check_rest(self, after: list[Event], begin_s: float) -> None:
        """Whatever is said after the gap is heard, be it the rest of a turn; so is the end."""
        last, whole = after[-1], self.said.expected[-1]
        assert isinstance(last, Summary) and isinstance(whole, Summary), self._who
        assert abs(last.duration_s - whole.duration_s) < 1e-3, self._who
        turns = [event for event in after if isinstance(event, Turn)]
        for turn in self.said.expected:
            if isinstance(turn, Turn) and turn.end_s > begin_s + _REST_S:
                start_s = max(turn.start_s, begin_s)
                heard_s = sum(_overlap_s(one, start_s, turn.end_s) for one in turns)
                assert heard_s > 0.5 * (turn.end_s - start_s), (self._who, turn, turns)

    @property
    def _who(self) -> str:
        return f"{self.call_id} {self.path}: {self.close_code}, {self.end_reason}"


def most_at_once(callers: Sequence[Caller]) -> int:
    """Return how many of these calls went on at the same time, at most."""
    begun = [(caller.begin_s, 1) for caller in callers]
    changes = sorted(begun + [(caller.end_s, -1) for caller in callers])
    return max(accumulate(change for _, change in changes))


def _assert_told(some: list[Event], every: list[Event]) -> None:
    """Each event is the one of that number; the peer alone has the name that resumes a call."""
    found = {event.seq: event for event in every}
    for event in some:
        other = found[event.seq]
        if isinstance(event, Ready) and isinstance(other, Ready):
            event, other = replace(event, session=""), replace(other, session="")
        assert event == other


def _speech(events: list[Event]) -> list[tuple[bool, float]]:
    return [(event.active, event.time_s) for event in events if isinstance(event, Speech)]


def _time_s(event: Event) -> float:
    """Return up to where an event tells of the audio; for ever, if it tells of the call."""
    return float(getattr(event, "end_s", getattr(event, "time_s", inf)))


def _overlap_s(turn: Turn, start_s: float, end_s: float) -> float:
    return max(0.0, min(turn.end_s, end_s) - max(turn.start_s, start_s))
