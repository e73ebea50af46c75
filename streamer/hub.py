"""All calls of a process: who begins one, comes back to one, watches them, keeps them."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace

from streamer.alerts import AlertRule
from streamer.batching import Scorer
from streamer.call import Call, CallConfig
from streamer.dialects import CloseCode, PeerError, Resume, Start
from streamer.dialects.native import ResumeFrom
from streamer.errors import AudioError, ConfigError
from streamer.event_log import EventLog
from streamer.events import Event, Summary
from streamer.live_call import LiveCall
from streamer.logs import write
from streamer.pressure import Pressure, PressureConfig
from streamer.records import (
    CallEvent,
    CallObserver,
    CallRecord,
    CallSnapshot,
    Snapshot,
    Store,
    StoredCall,
    Watched,
    public_name,
)
from streamer.session import SessionConfig
from streamer.watch import Watch

_log = logging.getLogger("streamer.server")

RETRY_S = 10
"""When a peer that was refused is asked to try again."""
_TICK_S = 0.25
_STORE_TICKS = 4
_FINISH_TIMEOUT_S = 5.0
"""A disk that does not answer must not keep a summary from its peer for ever."""


@dataclass(frozen=True, kw_only=True)
class HubConfig:
    """What holds for every call of a process; see :class:`streamer.server.ServerConfig`."""

    session: SessionConfig = field(default_factory=SessionConfig)
    analyse_agents: bool = False
    alerts: tuple[AlertRule, ...] = ()
    max_calls: int = 200
    resume_timeout_s: float = 60.0
    pressure: PressureConfig = field(default_factory=PressureConfig)


class Hub:
    """The calls that are going on, and whoever takes an interest in them.

    Args:
        config: limits, and what is inferred.
        scorer: may also come later; until then calls are refused with "try again".
        store: keeps the calls, if any does.
        observers: follow all calls.
        clock: the time of day, seconds since 1970.
    """

    def __init__(
        self,
        config: HubConfig | None = None,
        *,
        scorer: Scorer | None = None,
        store: Store | None = None,
        observers: Sequence[CallObserver] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config or HubConfig()
        self.scorer = scorer
        self.store = store
        self.pressure = Pressure(self.config.pressure)
        self._observers = tuple(observers)
        self._clock = clock
        self._calls: dict[str, LiveCall] = {}
        self._watches: set[Watch] = set()
        self._is_draining = False
        self._is_empty = asyncio.Event()
        self._is_empty.set()
        self._ticker: asyncio.Task[None] | None = None

    # Who may begin

    @property
    def num_calls(self) -> int:
        """Calls that are not over, those of peers that may come back included."""
        return sum(not call.is_over for call in self._calls.values())

    def refusal(self) -> tuple[str, str] | None:
        """Code and sentence for a call that cannot be taken now; None where it can."""
        if self._is_draining:
            return "stopping", f"the server is stopping: try again in {RETRY_S} s"
        if self.scorer is None:
            return "not_ready", f"the model is not loaded yet: try again in {RETRY_S} s"
        if self.num_calls >= self.config.max_calls and not self._parked():
            limit = self.config.max_calls
            return "busy", f"no room for a call, the limit is {limit}: try again in {RETRY_S} s"
        if self.pressure.complaint:
            return "overloaded", f"{self.pressure.complaint}: try again in {RETRY_S} s"
        return None

    def begin(
        self, start: Start, *, dialect: str, peer: str, may_return: bool, owner: str = ""
    ) -> LiveCall:
        """Begin the call that a peer asks for.

        Raises:
            PeerError: there is no room; or it asks for what cannot be.
        """
        if (refusal := self.refusal()) is not None:
            code, sentence = refusal
            raise PeerError(sentence, code=code, close_code=CloseCode.TRY_AGAIN_LATER)
        if self.num_calls >= self.config.max_calls:
            min(self._parked(), key=lambda call: call.parked_until_s).give_up()
        self._forget_finished()
        secret = secrets.token_hex(16)
        record = CallRecord(
            session=public_name(secret),
            call_id=start.call_id,
            dialect=dialect,
            roles=start.roles or ("customer",) * start.audio.channels,
            started_at=self._clock(),
            start=start,
            owner=owner,
        )
        call = self._call(record)
        if self.store is not None:
            self.store.add_call(record)
        live = self._begin(call, record, EventLog(), peer, secret, may_return=may_return)
        live.begin()
        return live

    async def resume(self, resume: Resume, *, peer: str, owner: str = "") -> LiveCall:
        """Find the call to which a peer comes back, also where another process began it.

        Its ``session`` is the call's secret; ``owner``, the name of its token, is who began it.

        Raises:
            PeerError: there is no such call any more, or events that it lacks are gone.
        """
        session = public_name(resume.session)
        live = self._calls.get(session)
        if live is None and self.store is not None and self.scorer is not None:
            stored = await self.store.unfinished(session)
            live = self._calls.get(session)  # of two that came back one was first
            is_theirs = stored is not None and stored.record.owner == owner
            if stored is not None and is_theirs and live is None and not self._is_draining:
                return self._revive(stored, resume, peer)
        if live is None or not live.may_return or live.record.owner != owner:
            raise PeerError(
                "no such session, or not any more: expected one that was cut off less than "
                f"{self.config.resume_timeout_s:g} s ago, and the token that began it",
                code="unknown_session",
            )
        self._check_log(live.log, resume)
        samples = resume.samples if isinstance(resume, ResumeFrom) else None
        live.continue_from(samples, "connection_lost")
        return live

    # Who looks on

    def calls(self) -> list[CallSnapshot]:
        """Return the calls that are not over, the oldest first."""
        return [call.snapshot() for call in self._calls.values() if not call.is_over]

    async def watch(self, session: str | None = None) -> AsyncIterator[Watched]:
        """Give the calls as they are, or one of them to its end, then their events as they come.

        A watcher that is slow loses stale emotions first; one that is slower still starts again
        with a snapshot.
        """
        watch = Watch(session)
        if session is not None and all(c.record.session != session for c in self.calls()):
            watch.end(session)
        self._watches.add(watch)
        try:
            while not watch.has_ended:
                if watch.take_is_behind():
                    calls = [c for c in self.calls() if session in (None, c.record.session)]
                    yield Snapshot(calls=tuple(calls))
                item = await watch.next()
                if item is not None:
                    yield item
        finally:
            self._watches.discard(watch)

    # The end

    async def drain(self, timeout_s: float) -> int:
        """Take no more calls, end those that are going on; return how many had to be abandoned."""
        self._is_draining = True
        for call in list(self._calls.values()):
            call.end("stopping", CloseCode.GOING_AWAY)
        try:
            await asyncio.wait_for(self._is_empty.wait(), timeout_s)
        except TimeoutError:
            num_left = self.num_calls
            _log.warning("drain timeout_s=%g calls_left=%d", timeout_s, num_left)
            for call in list(self._calls.values()):
                call.abandon()
            await self._is_empty.wait()
            return num_left
        return 0

    def close(self) -> None:
        """Forget the calls that are over and wait for nobody any more."""
        for call in list(self._calls.values()):
            call.give_up()

    def _forget_finished(self) -> None:
        """Keep no more finished calls than there may be live ones."""
        over = [call for call in self._calls.values() if call.is_over and call.is_parked]
        for call in over[: max(0, len(over) - self.config.max_calls)]:
            call.give_up()

    def _parked(self) -> list[LiveCall]:
        return [call for call in self._calls.values() if call.is_parked and not call.is_over]

    def _call(self, record: CallRecord, *, start_sample: int = 0, first_seq: int = 0) -> Call:
        """Make the call that a record tells of.

        Raises:
            PeerError: it cannot be.
        """
        start, session = record.start, self.config.session
        try:
            if start.step_s is not None:
                session = replace(session, step_s=start.step_s)
            config = CallConfig(
                audio=start.audio,
                roles=start.roles,
                analyse_agents=self.config.analyse_agents,
                session=session,
                session_id=record.session,
                as_tracks=start.as_tracks,
                start_sample=start_sample,
                first_seq=first_seq,
                alerts=self.config.alerts,
            )
            assert self.scorer is not None
            return Call(self.scorer.card, config)
        except (AudioError, ConfigError) as error:
            raise PeerError(str(error), code=error.code) from error

    def _revive(self, stored: StoredCall, resume: Resume, peer: str) -> LiveCall:
        """Go on with a call whose process is gone, after a gap: what it knew beyond is lost."""
        record, here = stored.record, stored.num_samples
        log = EventLog(stored.events)
        if resume.seq >= log.next_seq:  # the peer got more than the disk did
            log = EventLog(first_seq=resume.seq + 1)
        self._check_log(log, resume)
        call = self._call(record, start_sample=here, first_seq=log.next_seq)
        live = self._begin(call, record, log, peer, resume.session, may_return=True)
        first = math.ceil(here * record.start.audio.sample_rate / call.card.features.sample_rate)
        samples = resume.samples if isinstance(resume, ResumeFrom) else None
        live.skip_to(max(first, samples or 0), here, "server_restart")
        live.begin()
        return live

    def _begin(
        self,
        call: Call,
        record: CallRecord,
        log: EventLog,
        peer: str,
        secret: str,
        *,
        may_return: bool,
    ) -> LiveCall:
        assert self.scorer is not None
        live = LiveCall(
            call,
            record,
            secret=secret,
            scorer=self.scorer,
            pressure=self.pressure,
            on_event=self._receive_event,
            on_over=self._receive_over,
            resume_timeout_s=self.config.resume_timeout_s if may_return else 0.0,
            log=log,
        )
        self._calls[record.session] = live
        self._is_empty.clear()
        if self._ticker is None:
            self._ticker = asyncio.create_task(self._tick())
        start = record.start
        write(
            _log,
            logging.INFO,
            "call start",
            session=record.session,
            peer=peer,
            dialect=record.dialect,
            call_id=start.call_id,
            encoding=start.audio.encoding,
            rate=start.audio.sample_rate,
            roles=",".join(record.roles),
        )
        self._tell(lambda observer: observer.call_started(record))
        return live

    def _check_log(self, log: EventLog, resume: Resume) -> None:
        if resume.seq >= log.next_seq:
            raise PeerError(
                f"events up to {resume.seq} are said to have come: expected at most "
                f"{log.next_seq - 1}"
            )
        if resume.seq + 1 < log.first_seq:
            raise PeerError(
                f"events from {resume.seq + 1} on are asked for: expected {log.first_seq} or "
                "later, the others are not kept any more",
                code="forgotten",
            )

    def _receive_event(self, live: LiveCall, event: Event) -> Awaitable[None] | None:
        """Show an event to all that it concerns; a summary has to be kept before it is told."""
        record = live.record
        self._tell(lambda observer: observer.event(record, event))
        for watch in self._watches:
            watch.receive(CallEvent(record, event))
        if self.store is None:
            return None
        self.store.add_events(record.session, [event], live.settled_samples)
        is_last = isinstance(event, Summary) or live.reason == "internal"
        return self._keep(live) if is_last else None

    async def _keep(self, live: LiveCall) -> None:
        assert self.store is not None
        try:
            async with asyncio.timeout(_FINISH_TIMEOUT_S):
                await self.store.finish(live.record.session, live.reason)
        except TimeoutError:
            _log.error("call not kept session=%s", live.record.session)

    def _receive_over(self, live: LiveCall, is_released: bool) -> None:
        """A call is over; it is kept until nobody can come back for its last events."""
        if not live.is_reported:
            live.is_reported = True
            write(
                _log,
                logging.INFO,
                "call end",
                session=live.record.session,
                reason=live.reason,
                audio_s=round(live.heard_s, 2),
                turns=live.num_turns,
                events=live.num_events,
            )
            self._tell(lambda observer: observer.call_ended(live.record, live.reason))
            for watch in self._watches:
                watch.end(live.record.session)
        if is_released:
            self._calls.pop(live.record.session, None)
        if not self.num_calls:
            self._is_empty.set()
            self.pressure.rest()
            if self._ticker is not None:
                self._ticker.cancel()
                self._ticker = None

    def _tell(self, tell: Callable[[CallObserver], None]) -> None:
        for observer in self._observers:
            try:
                tell(observer)
            except Exception:  # noqa: BLE001 - somebody else's edge: no call is to suffer
                _log.exception("an observer of calls failed")

    async def _tick(self) -> None:
        """Judge the pressure, and note how far the calls are, as long as there are any."""
        loop = asyncio.get_running_loop()
        num_ticks = 0
        while True:
            due_s = loop.time() + _TICK_S
            await asyncio.sleep(_TICK_S)
            self.pressure.loop_lagged(loop.time() - due_s)
            self.pressure.audio_waits(live.behind_s for live in self._calls.values())
            before, level = self.pressure.level, self.pressure.update(loop.time())
            if level != before:
                wait_s = round(self.pressure.wait_s, 2)
                write(_log, logging.INFO, "pressure", level=level, wait_s=wait_s)
            num_ticks += 1
            if self.store is not None and num_ticks % _STORE_TICKS == 0:
                for live in self._calls.values():
                    if not live.is_over:
                        self.store.add_events(live.record.session, [], live.settled_samples)
