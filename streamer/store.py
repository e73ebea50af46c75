"""What is kept of calls: their events and summaries in one SQLite file, never audio.

One thread writes, twice a second, so that a ``kill -9`` loses at most the last second; a call that
:meth:`Store.finish` said is kept, is kept, whatever dies. Nothing here ever holds a call up: while
the file cannot be written (a full disk, a lock, a fault), what is to be written waits in bounded
memory, and emotions are the first to be given up.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from streamer.dialects import Start
from streamer.errors import ConfigError
from streamer.events import Event, decode_event
from streamer.kept import CallFilter, KeptCall, KeptEvent, KeptFile, StoreError
from streamer.records import CallRecord, StoredCall
from streamer.store_writer import CannotWriteError, Rows, Writer, begin_row, end_row, event_rows

_log = logging.getLogger(__name__)
_Found = TypeVar("_Found")

_NUM_READERS = 2
_NUM_NEWEST = 2048
"""Events with which a call is resumed."""
_REVIVAL_S = 5.0
"""From the question for an unfinished call to its first new event, at most."""
_RETRY_EVERY_S = 2.0
_RETENTION_EVERY_S = 600.0
_DAY_S = 86400.0


@dataclass(frozen=True, kw_only=True)
class StoreConfig:
    """Where calls are kept, and for how long.

    A finished call is erased ``retention_days`` after its end. Calls that another process left
    unfinished may be resumed for ``resume_timeout_s``. What waits to be written is kept up to
    ``max_pending_bytes``; ``finish`` waits for the disk for at most ``finish_timeout_s``.

    Raises:
        ConfigError: a value outside its range.
    """

    path: Path
    retention_days: float = 30.0
    resume_timeout_s: float = 60.0
    commit_every_s: float = 0.5
    finish_timeout_s: float = 2.0
    max_pending_bytes: int = 2**26

    def __post_init__(self) -> None:
        if not 0.0 < self.retention_days <= 36500.0:
            raise ConfigError(
                f"retention_days {self.retention_days}: expected more than 0, to 36500"
            )
        if not 0.0 <= self.resume_timeout_s <= 86400.0:
            raise ConfigError(f"resume_timeout_s {self.resume_timeout_s}: expected 0 to a day")
        if not 0.01 <= self.commit_every_s <= 1.0:
            raise ConfigError(f"commit_every_s {self.commit_every_s}: expected 0.01 to 1")
        if not 0.0 < self.finish_timeout_s <= 60.0:
            raise ConfigError(f"finish_timeout_s {self.finish_timeout_s}: expected 0 to 60")
        if self.max_pending_bytes < 2**16:
            raise ConfigError(f"max_pending_bytes {self.max_pending_bytes}: expected 65536 or more")


class StoreState(NamedTuple):
    """How the store does: ``fault`` is why it cannot write now, None where it can."""

    fault: str | None
    num_faults: int
    num_pending: int
    num_pending_bytes: int
    num_given_up: int


class Store:
    """Keeps calls in a file; any thread may use it, and close it.

    Args:
        config: where, and for how long.
        clock: Unix time in seconds.

    Raises:
        ConfigError: the file cannot be written, is none of ours, or another process has it.
    """

    def __init__(self, config: StoreConfig, *, clock: Callable[[], float] = time.time) -> None:
        self.config = config
        self._clock = clock
        self._file = KeptFile(config.path)
        self._lock = self._file.lock()
        try:
            self._writer = Writer(self._file)
            until_s = time.monotonic() + config.resume_timeout_s
            self._left = dict.fromkeys(self._file.unfinished(), until_s)
        except BaseException as error:
            self._lock.close()
            if isinstance(error, StoreError):
                raise ConfigError(f"store {config.path}: {error}") from error
            raise
        self._condition = threading.Condition()
        self._rows = Rows()
        self._num_given_up = self._num_faults = 0
        self._ending: list[Future[bool]] = []
        self._deletions: list[tuple[str, Future[bool]]] = []
        self._fault: str | None = None
        self._is_urgent = self._is_closing = False
        self._next_retention_s = time.monotonic()
        self._erasing: dict[str, Future[bool]] = {}
        self._has_hidden = True  # by the process before this one, perhaps
        self._readers = ThreadPoolExecutor(_NUM_READERS, thread_name_prefix="store-reader")
        self._thread = threading.Thread(target=self._run, name="store", daemon=True)
        self._thread.start()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def state(self) -> StoreState:
        """How it does now."""
        with self._condition:
            return StoreState(
                self._fault,
                self._num_faults,
                len(self._rows),
                self._rows.num_bytes,
                self._num_given_up,
            )

    # What calls tell: none of it waits for the disk, but for `finish`.

    def add_call(self, record: CallRecord) -> None:
        """Keep that a call has begun."""
        with self._condition:
            self._rows.add(begin_row(record, self._clock()))
            self._fit()

    def add_events(self, session: str, events: Sequence[Event], num_samples: int) -> None:
        """Keep events of a call, which is settled up to ``num_samples`` (16 kHz).

        Both are on the disk within a second, in one transaction.
        """
        with self._condition:
            self._left.pop(session, None)
            for event in events:
                try:
                    for row in event_rows(session, event):
                        self._rows.add(row)
                except ValueError:  # half a surrogate pair
                    self._num_given_up += 1
            last_seq = events[-1].seq if events else -1
            self._rows.add_progress(session, self._clock(), num_samples, last_seq)
            self._fit()

    async def finish(self, session: str, reason: str) -> None:
        """Keep that a call has ended; return when that, and all of it, is on the disk.

        Where that takes longer than ``finish_timeout_s``, or the disk is full, return all the same.
        """
        written: Future[bool] = Future()
        with self._condition:
            self._left.pop(session, None)
            self._rows.add(end_row(session, self._clock(), reason))
            self._fit()
            if self._fault is not None or self._is_closing:
                return
            self._ending.append(written)
            self._wake()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.config.finish_timeout_s):
                await asyncio.wrap_future(written)

    # What a restarted server and the views of calls ask.

    async def unfinished(self, session: str) -> StoredCall | None:
        """Return a call that a former process left unfinished, while it may be resumed.

        It is somebody's again with its first event.
        """
        with self._condition:
            if session not in self._left:
                return None
            self._left[session] = max(self._left[session], time.monotonic() + _REVIVAL_S)
        try:
            return await self._read(lambda: self._stored(session))
        except (StoreError, msgspec.DecodeError) as error:
            _log.error("call cannot be read session=%s found=%r", session, str(error))
            return None

    def is_left(self, session: str) -> bool:
        """Whether a former process left a call unfinished, and it may be resumed."""
        with self._condition:
            return session in self._left

    async def call(self, session: str) -> KeptCall | None:
        """Return one call, as of the last commit.

        Raises:
            StoreError: the file cannot be read.
        """
        return await self._read(lambda: self._file.call(session))

    async def calls(self, wanted: CallFilter, limit: int) -> list[KeptCall]:
        """Return at most ``limit`` calls, newest first.

        Raises:
            StoreError: the file cannot be read.
        """
        return await self._read(lambda: self._file.calls(wanted, limit))

    async def events(
        self, session: str, *, after_seq: int = -1, limit: int = -1, but_emotions: bool = False
    ) -> list[KeptEvent]:
        """Return a call's events; see :meth:`KeptFile.events`.

        Raises:
            StoreError: the file cannot be read.
        """
        return await self._read(
            lambda: self._file.events(
                session, after_seq=after_seq, limit=limit, but_emotions=but_emotions
            )
        )

    async def delete(self, session: str) -> bool:
        """Erase a finished call; return whether there was one. It is gone when this returns.

        Raises:
            StoreError: the file cannot be written.
        """
        erased: Future[bool] = Future()
        with self._condition:
            if self._is_closing:
                raise StoreError("the store cannot be written: found it closed: expected it open")
            self._deletions.append((session, erased))
            self._wake()
        return await asyncio.wrap_future(erased)

    def close(self) -> None:
        """Write what waits, and let go of the file. Blocking; a second call does nothing."""
        with self._condition:
            self._is_closing = True
            self._wake()
        self._thread.join()
        self._readers.shutdown()
        self._lock.close()

    async def _read(self, question: Callable[[], _Found]) -> _Found:
        if self._is_closing:
            raise StoreError("the store cannot be read: found it closed: expected it open")
        return await asyncio.get_running_loop().run_in_executor(self._readers, question)

    def _stored(self, session: str) -> StoredCall | None:
        call = self._file.call(session)
        if call is None:
            return None
        start = msgspec.json.decode(call.start, type=Start)
        record = CallRecord(
            session=session,
            call_id=call.call_id,
            dialect=call.dialect,
            roles=call.roles,
            started_at=call.started_at,
            start=replace(start, call_id=call.call_id),
            owner=call.owner,
        )
        events = self._file.newest_events(session, _NUM_NEWEST)
        return StoredCall(
            record=record,
            num_samples=call.num_samples,
            events=tuple(decode_event(event.json) for event in events),
        )

    def _wake(self) -> None:
        self._is_urgent = True
        self._condition.notify()

    def _fit(self) -> None:
        self._num_given_up += self._rows.fit(self.config.max_pending_bytes)

    # The thread that writes.

    def _run(self) -> None:
        is_closing = False
        while not is_closing:
            with self._condition:
                self._condition.wait_for(lambda: self._is_urgent, self._wait_s())
                self._is_urgent, is_closing = False, self._is_closing
                rows, self._rows = self._rows, Rows()
                ending, self._ending = self._ending, []
                deletions, self._deletions = self._deletions, []
            fault = None
            try:
                self._writer.write(rows)
                _answer(ending, True)
                self._keep_house(deletions)
            except CannotWriteError as error:
                fault = str(error)
            except Exception as error:  # noqa: BLE001 - a task's edge: nobody else would write
                _log.exception("the store failed")
                fault = str(error)
            self._tell(fault, rows)
            _answer(ending, False)
            if fault is not None or is_closing:
                self._refuse(deletions)
        self._writer.close()
        if rows:
            _log.error("store closed path=%s rows_lost=%d", self.config.path, len(rows))

    def _wait_s(self) -> float:
        if self._fault is not None:
            return _RETRY_EVERY_S
        return 0.0 if self._has_hidden else self.config.commit_every_s

    def _keep_house(self, deletions: list[tuple[str, Future[bool]]]) -> None:
        """Hide what is to go, end what nobody came back for, erase a portion of what is hidden."""
        for session, erased in deletions:
            if self._writer.hide(session):
                self._erasing[session] = erased
                self._has_hidden = True
            else:
                _answer([erased], False)
        now_s = time.monotonic()
        self._end_left(now_s)
        if now_s >= self._next_retention_s:
            self._writer.hide_before(self._clock() - self.config.retention_days * _DAY_S)
            self._next_retention_s = now_s + _RETENTION_EVERY_S
            self._has_hidden = True
        if self._has_hidden:
            erased_session, is_gone = self._writer.erase()
            self._has_hidden = erased_session is not None
            if not self._has_hidden or (is_gone and erased_session in self._erasing):
                self._writer.forget_log()
            if is_gone and erased_session in self._erasing:
                _answer([self._erasing.pop(erased_session)], True)

    def _end_left(self, now_s: float) -> None:
        """End the calls of the process before this one that nobody came back for."""
        with self._condition:
            ending = {session: at_s for session, at_s in self._left.items() if now_s >= at_s}
            for session in ending:
                del self._left[session]
        if ending:
            try:
                self._writer.end_left(ending, "server_restart")
            except CannotWriteError:
                with self._condition:
                    self._left |= ending
                raise

    def _tell(self, fault: str | None, rows: Rows) -> None:
        """Have what could not be written wait on; log if that is news."""
        with self._condition:
            is_news = (fault is None) != (self._fault is None)
            self._fault = fault
            self._num_faults += fault is not None
            self._rows.put_back(rows)
            self._fit()
            state = self._num_given_up, len(self._rows)
        if is_news and fault is None:
            _log.info("store writes again path=%s rows_given_up=%d", self.config.path, state[0])
        elif is_news:
            _log.error(
                "store cannot be written path=%s found=%r; calls go on, rows_waiting=%d",
                self.config.path,
                fault,
                state[1],
            )

    def _refuse(self, deletions: list[tuple[str, Future[bool]]]) -> None:
        """Say of deletions that they are not done; what is hidden stays so, and goes later."""
        reason = self._fault or "it closes"
        for erased in [*(erased for _, erased in deletions), *self._erasing.values()]:
            with suppress(InvalidStateError):
                erased.set_exception(
                    StoreError(f"the store cannot be written: found {reason}: try again later")
                )
        self._erasing.clear()


def _answer(futures: Iterable[Future[bool]], answer: bool) -> None:
    """Answer those who still wait, and were not answered before."""
    for future in futures:
        with suppress(InvalidStateError):
            future.set_result(answer)
