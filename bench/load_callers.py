"""Callers who behave, in three dialects, and what must come of each of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

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
from bench.load_speech import bytes_per_s
from streamer.audio import AudioFormat
from streamer.events import Emotion, Error, Event, Gap, Lag, Ready, Summary, Turn, decode_event
from streamer.kept import CallFilter, KeptFile
from tests.scorers import assert_same_events

_FINISH_S = 60.0
_RETRY_S = 0.2


@dataclass(frozen=True)
class Said:
    """What a caller says, and what it comes to undisturbed."""

    audio: AudioFormat
    data: bytes
    expected: list[Event]

    @property
    def seconds(self) -> float:
        return len(self.data) / bytes_per_s(self.audio)


@dataclass
class Caller:
    """One live call; ``events`` are those that it was told, for a telephone those that are kept.

    ``reads`` is False for one that reads nothing until it has said all; ``goes_back`` for one that
    keeps what it said, to say it again after a restart. ``jump_ms`` sets a telephone's clock wrong.
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
    close_code: int | None = None
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
            return  # a server that is not ready yet: tried again
        self.events.append(event)

    async def run(self, port: int, pacer: Pacer) -> None:
        """Call, speak live, hear all; come back if that is cut off."""
        self.begin_s = asyncio.get_running_loop().time()
        audio = self.said.audio
        peer = await connect(port, self.path, self.hear)
        assert peer.status == 101, peer.answer
        if self.is_native:
            peer.send(native_start(audio.encoding, audio.sample_rate, self.step_ms))
            messages = native_messages(self.said.data, bytes_per_s(audio))
        else:
            peer.send(telephone_start(self.path, self.call_id, self.step_ms))
            messages = telephone_messages(self.path, self.call_id, self.said.data, self.jump_ms)
        await self._speak(peer, pacer, messages, self.begin_s)
        if peer.close_code is None:
            self.was_cut_off = True
            if self.is_native:
                await self._come_back(port, pacer)

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
                peer = await self._reconnected(port)
                self._ack = loop.create_future()
                resume = {"type": "resume", "session": first.session, "seq": self.events[-1].seq}
                if not self.goes_back:
                    resume["samples"] = round((loop.time() - self.begin_s) * rate)
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

    def fetch(self, kept: KeptFile) -> str | None:
        """Take a telephone's events from where they are kept; return why its call ended."""
        (call,) = kept.calls(CallFilter(call_id=self.call_id), 10)
        self.events = [decode_event(event.json) for event in kept.events(call.session)]
        return call.reason

    # What must have come of it

    @property
    def is_overloaded(self) -> bool:
        return any(isinstance(event, Lag) for event in self.events)

    def check(self) -> None:
        """Compare with an undisturbed call: all of it, or its turns where windows were left out."""
        if self.is_overloaded or not self.reads:
            turns = [_turn(event) for event in self.events if isinstance(event, Turn)]
            assert turns == [_turn(one) for one in self.said.expected if isinstance(one, Turn)]
            assert isinstance(self.events[-1], Summary), self.call_id
        if not self.is_overloaded and self.reads:
            assert_same_events(self.events, self.said.expected)

    def check_resumed(self) -> Gap:
        """Check a native call that went on in another process; return what it says is missing."""
        assert [event.seq for event in self.events] == list(range(len(self.events))), "a hole"
        places = [at for at, event in enumerate(self.events) if isinstance(event, Ready)]
        assert len(places) == 2, f"{self.call_id}: ready {len(places)} times"
        before, gap = self.events[: places[1]], self.events[places[1] + 1]
        if not any(isinstance(event, Lag) for event in before):
            assert_same_events(before, self.said.expected[: len(before)])
        assert isinstance(gap, Gap) and gap.reason == "server_restart", gap
        assert abs(gap.end_s - self.resumed_at_s) < 1e-3, (gap, self.resumed_at_s)
        last, whole = self.events[-1], self.said.expected[-1]
        assert isinstance(last, Summary) and isinstance(whole, Summary)
        assert abs(last.duration_s - whole.duration_s) < 1e-3
        after = [one for one in self.events[places[1] :] if isinstance(one, Turn)]
        for turn in self.said.expected:
            if isinstance(turn, Turn) and turn.start_s > gap.end_s + 0.5:
                assert any(_is_mostly(one, turn) for one in after), (self.call_id, turn, after)
        ends = [event.end_s for event in self.events if isinstance(event, Emotion)]
        assert not [at for at in ends if gap.start_s + 0.1 < at < gap.end_s], "heard in the gap"
        return gap


def _turn(turn: Turn) -> tuple[float, float]:
    return turn.start_s, turn.end_s


def _is_mostly(found: Turn, expected: Turn) -> bool:
    """Whether two turns overlap for most of the expected one: a new process hears it anew."""
    overlap_s = min(found.end_s, expected.end_s) - max(found.start_s, expected.start_s)
    return overlap_s > 0.5 * (expected.end_s - expected.start_s)
