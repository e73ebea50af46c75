"""One call: its audio waits here to be heard, its events to be told, whoever is connected."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Protocol, cast

from streamer.batching import Scorer
from streamer.call import Call, CallInput, Lost, TrackChunk
from streamer.dialects import CloseCode, PeerError
from streamer.drivers import SLICE_S, converse
from streamer.errors import AudioError
from streamer.event_log import EventLog
from streamer.events import Emotion, Error, Event, Turn
from streamer.pressure import Lateness, Pressure
from streamer.records import CallRecord, CallSnapshot

_log = logging.getLogger("streamer.server")

_MAX_QUEUED_BYTES = 2**18
"""Audio that waits to be heard: 8 s of it at 16 kHz, 16 bits. Then nothing more is read."""
MAX_UNTOLD = 256
"""Events that wait for a peer to read; then its emotions grow stale, or its file waits."""
_PACED_S = 0.5
"""How far live audio may be ahead of the clock; a file soon is by more."""
_DRIFT = 1.01
"""A sound card's clock is not ours."""
_CREDIT_S = 10.0
"""How far live audio may be behind the clock, and still catch up without being taken for a file."""
_PAUSE_S = 1.0
"""A peer that sends nothing for so long has paused: what comes then is not late."""


class Listener(Protocol):
    """Whoever is connected to a call."""

    def wake(self) -> None:
        """There is something new in the call's log, or the call is over."""
        ...

    def replace(self) -> None:
        """Somebody else is connected to the call from now on."""
        ...


class _End:
    """The audio is over."""


class LiveCall:
    """A call that goes on, connected or not, until its end.

    It hears what it is fed in a task of its own (:meth:`begin`), and keeps its events in ``log``.

    Args:
        call: a call to which nothing was fed.
        record: what it is.
        secret: with which its peer may come back.
        scorer: scores its windows.
        pressure: of the process.
        on_event: awaited with each event before it can be told.
        on_over: called once, when no event will come any more; and again with True when nobody
            can come back for those that there are, either.
        resume_timeout_s: how long a peer that vanished may be away; 0: it cannot come back.
        log: what another process had told of it.
    """

    def __init__(
        self,
        call: Call,
        record: CallRecord,
        *,
        secret: str = "",
        scorer: Scorer,
        pressure: Pressure,
        on_event: Callable[[LiveCall, Event], Awaitable[None] | None],
        on_over: Callable[[LiveCall, bool], None],
        resume_timeout_s: float,
        log: EventLog | None = None,
    ) -> None:
        self.call = call
        self.record = record
        self.secret = secret
        self.log = log if log is not None else EventLog()
        self.reason = ""
        """Why it ended: ``end``, the code of a fault, what became of its peer."""
        self.close_code = CloseCode.NORMAL
        self.is_over = self.is_reported = False
        self.num_events = self.num_turns = 0
        self._scorer, self._pressure = scorer, pressure
        self._resume_timeout_s = resume_timeout_s
        self.may_return = resume_timeout_s > 0  # also while its loss is not noticed yet
        self._on_event, self._on_over = on_event, on_over
        self._loop = asyncio.get_running_loop()
        self._inputs: deque[CallInput | PeerError | _End] = deque()
        self._num_queued_bytes = 0
        self._arrived, self._taken, self._told = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._is_ending = False
        self._listener: Listener | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        audio = call.config.audio
        self._block = audio.bytes_per_block
        self._bytes_per_s = self._block * audio.sample_rate
        self._num_bytes = self._num_bytes_twice = 0
        self._lead_s, self._paced_at_s = 0.0, self._loop.time()
        self._lateness: dict[int, Lateness] = {}
        self._emotions: dict[int, Emotion] = {}
        self._turns: dict[int, Turn] = {}

    # What it is

    @property
    def num_samples(self) -> int:
        """Samples of each channel that have arrived, at the stream's own rate."""
        return self._num_bytes // self._block

    @property
    def settled_samples(self) -> int:
        """Samples (16 kHz) before which all that happened is in events."""
        sessions = self.call.sessions
        return int(min(min(session.horizon - 1, session.num_samples) for session in sessions))

    @property
    def is_paced(self) -> bool:
        """Whether its audio comes as it is spoken; else it can wait."""
        return self._lead_s < _PACED_S

    @property
    def behind_s(self) -> float | None:
        """How long its audio waits to be heard; None where nobody waits: a file, a silent peer."""
        if not self.is_paced or self._listener is None or self._is_ending:
            return None
        oldest_s = self._loop.time() - _PAUSE_S
        known_s = [late.behind_s for late in self._lateness.values() if late.at_s >= oldest_s]
        return min(known_s, default=None)

    @property
    def heard_s(self) -> float:
        """Seconds of the call's time so far."""
        return self.call.num_samples / self.call.card.features.sample_rate

    @property
    def is_parked(self) -> bool:
        """Whether its peer is away, and may come back."""
        return self._timer is not None

    @property
    def parked_until_s(self) -> float:
        """When it is given up, by the loop's clock; infinite where it is connected."""
        return float("inf") if self._timer is None else self._timer.when()

    def snapshot(self) -> CallSnapshot:
        """Return what a dashboard shows of it."""
        return CallSnapshot(
            record=self.record,
            duration_s=round(self.heard_s, 3),
            is_parked=self.is_parked,
            emotions=dict(self._emotions),
            turns=dict(self._turns),
        )

    # Its audio

    def begin(self) -> None:
        """Begin to hear."""
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(self._finish)  # also where it was cancelled before it began

    def feed(self, item: CallInput) -> None:
        """Take audio, or the news that some is lost. Await :meth:`room` before the next."""
        if self._is_ending:
            return
        if isinstance(item, bytes) and self._num_bytes_twice:
            cut = min(self._num_bytes_twice, len(item))
            self._num_bytes_twice -= cut
            item = item[cut:]
        if not isinstance(item, Lost):
            size = len(item.data if isinstance(item, TrackChunk) else item)
            self._num_bytes += size
            self._num_queued_bytes += size
            self._pace(size / self._bytes_per_s)
        self._inputs.append(item)
        self._arrived.set()

    @property
    def has_room(self) -> bool:
        """Whether more may be fed now."""
        return self._num_queued_bytes < _MAX_QUEUED_BYTES

    async def room(self) -> None:
        """Wait until more may be fed. That time does not make its audio late."""
        while not self.has_room:
            self._taken.clear()
            await self._taken.wait()
        self._paced_at_s = self._loop.time()

    def continue_from(self, num_samples: int | None, reason: str) -> None:
        """A new connection goes on: from sample ``num_samples``, or else from where we are.

        What is missing up to there is told as a gap. A sample that was cut is not taken twice.
        """
        rest = self._num_bytes % self._block
        if num_samples is None or num_samples <= self.num_samples:
            self._num_bytes_twice = rest
            return
        self._num_bytes_twice = 0
        if rest:
            self.feed(bytes(self._block - rest))
        self.skip_to(num_samples, self._at_16_khz(self.num_samples), reason)

    def skip_to(self, num_samples: int, here: int, reason: str) -> None:
        """Go on at sample ``num_samples`` of the stream; all from ``here`` (16 kHz) on is lost."""
        self.feed(Lost(max(0, self._at_16_khz(num_samples) - here), reason))
        self._num_bytes = num_samples * self._block

    def end(self, reason: str, close_code: CloseCode = CloseCode.NORMAL) -> None:
        """End the audio: what has arrived is heard, then the summary comes. Once is enough."""
        self._end_with(_End(), reason, close_code)

    def fail(self, fault: PeerError) -> None:
        """End the audio because of what the peer did; it is told so after what came before."""
        self._end_with(fault, fault.code, fault.close_code)

    def abandon(self) -> None:
        """End at once, with nothing more told."""
        self._end_with(_End(), "abandoned", CloseCode.GOING_AWAY)
        if self._task is not None:
            self._task.cancel()

    # Who is connected

    def attach(self, listener: Listener, seq: int) -> None:
        """Connect a peer that has all events up to ``seq``; whoever was connected is replaced."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        before, self._listener = self._listener, listener
        self.log.begin_from(seq)
        self._told.set()
        if before is not None:
            before.replace()

    def is_heard_by(self, listener: Listener) -> bool:
        """Whether this is who is connected."""
        return self._listener is listener

    def detach(self, listener: Listener, reason: str, *, may_return: bool) -> None:
        """Learn that the peer is gone; if it may return, wait for that."""
        if self._listener is not listener:
            return
        self._listener = None
        self._told.set()
        if may_return and self.may_return:
            self._timer = self._loop.call_later(self._resume_timeout_s, self.give_up)
        elif self.is_over:
            self._on_over(self, True)
        else:
            self.end(reason)

    def give_up(self) -> None:
        """Its peer does not come back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.is_over:
            self._on_over(self, True)
        else:
            self.end("lost")

    def told(self, seq: int) -> None:
        """Learn that the peer was sent everything up to ``seq``."""
        self.log.told(seq)
        self._told.set()

    # How it goes

    def _end_with(self, last: PeerError | _End, reason: str, close_code: CloseCode) -> None:
        if not self._is_ending:
            self._is_ending = True
            self.reason, self.close_code = reason, close_code
            self._inputs.append(last)
            self._arrived.set()

    def _pace(self, audio_s: float) -> None:
        now_s = self._loop.time()
        passed_s = now_s - self._paced_at_s
        self._lead_s = max(-_CREDIT_S, self._lead_s - _DRIFT * passed_s) + audio_s
        self._paced_at_s = now_s

    def _at_16_khz(self, num_samples: int) -> int:
        rate = self.call.config.audio.sample_rate
        return round(num_samples * self.call.card.features.sample_rate / rate)

    async def _run(self) -> None:
        conversation = converse(
            self.call,
            self._chunks(),
            self._scorer,
            pressure=self._pressure,
            is_paced=lambda: self.is_paced,
        )
        try:
            async with aclosing(cast(AsyncGenerator[Event], conversation)) as events:
                async for event in events:
                    await self._take(event)
                    while self._listener and not self.is_paced and self.log.num_untold > MAX_UNTOLD:
                        self._told.clear()
                        await self._told.wait()
        except asyncio.CancelledError:
            if self.reason != "abandoned":
                raise
        except Exception:  # noqa: BLE001 - a task's edge: one call's fault is that call's alone
            _log.exception("call failed session=%s", self.record.session)
            await self._apologise()

    def _finish(self, _: asyncio.Task[None]) -> None:
        self.is_over = self._is_ending = True
        self._inputs.clear()
        self._num_queued_bytes = 0
        self._taken.set()
        self._on_over(self, self._listener is None and self._timer is None)
        if self._listener is not None:
            self._listener.wake()

    async def _chunks(self) -> AsyncIterator[CallInput]:
        """Yield what was fed, to its end; a fault of the peer ends it, too."""
        while True:
            while not self._inputs:
                self._arrived.clear()
                await self._arrived.wait()
            item = self._inputs.popleft()
            if isinstance(item, _End):
                return
            if isinstance(item, PeerError):
                raise item
            if not isinstance(item, Lost):
                if isinstance(item, bytes):
                    item = self._joined(item)
                size = len(item.data if isinstance(item, TrackChunk) else item)
                self._num_queued_bytes -= size
                self._taken.set()
                self._note_heard(item, self._loop.time())
            else:
                self._lateness.clear()
            yield item

    def _note_heard(self, item: bytes | TrackChunk, now_s: float) -> None:
        """Learn how late audio is heard: of each track by itself, as another may not come."""
        channel, data = item if isinstance(item, TrackChunk) else (0, item)
        num_tracks = self.call.config.audio.channels if isinstance(item, TrackChunk) else 1
        lateness = self._lateness.setdefault(channel, Lateness())
        if now_s - lateness.at_s > _PAUSE_S:
            lateness.restart()
        lateness.taken(len(data) * num_tracks / self._bytes_per_s, now_s)

    def _joined(self, item: bytes) -> bytes:
        """Add the audio that waits behind it, up to a slice: larger pieces cost less."""
        parts, missing = [item], round(SLICE_S * self._bytes_per_s) - len(item)
        while self._inputs and isinstance(following := self._inputs[0], bytes):
            missing -= len(following)
            if missing < 0:
                break
            parts.append(following)
            self._inputs.popleft()
        return b"".join(parts) if len(parts) > 1 else item

    async def _take(self, event: Event) -> None:
        self.num_events += 1
        match event:
            case Emotion():
                self._emotions[event.channel or 0] = event
            case Turn():
                self.num_turns += 1
                self._turns[event.channel or 0] = event
            case Error(fatal=True) if self.reason in ("", "end", "stopping"):
                is_peers = event.code == AudioError.code
                self._is_ending, self.reason = True, event.code
                self.close_code = CloseCode.INVALID_DATA if is_peers else CloseCode.INTERNAL
            case _:
                pass
        keeping = self._on_event(self, event)
        if keeping is not None:
            await keeping
        self.log.append(event)
        if self._listener is not None:
            self._listener.wake()

    async def _apologise(self) -> None:
        message = "the server failed, and has logged how: expected nothing of the kind"
        self._is_ending = True
        self.reason, self.close_code = "internal", CloseCode.INTERNAL
        error = Error(seq=self.log.next_seq, code="internal", message=message, fatal=True)
        await self._take(error)
