"""What is known of a call beyond its events, and who is told of it: a store, watchers, metrics."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeAlias

from streamer.dialects import Start
from streamer.events import Emotion, Event, Turn


@dataclass(frozen=True, kw_only=True)
class CallRecord:
    """What is fixed when a call begins.

    ``session`` is our name for it, which everybody may see: see :func:`public_name`. ``call_id`` is
    the peer's own, or empty. ``roles`` has one entry a channel. ``started_at`` is in seconds since
    1970, by the system's clock. ``owner`` is the name of the token that began it, or empty.
    """

    session: str
    call_id: str
    dialect: str
    roles: tuple[str, ...]
    started_at: float
    start: Start
    owner: str = ""


def public_name(secret: str) -> str:
    """Return the name of the call that who has this secret may resume: 32 hexadecimal digits.

    The secret is told to the call's own peer alone, and kept nowhere but in memory. From its name
    nobody finds it: the first 128 bits of SHA-256 of 128 random ones.
    """
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()[:32]


@dataclass(frozen=True, kw_only=True)
class StoredCall:
    """A call that began in a process which did not live to finish it.

    ``num_samples`` (16 kHz) is the last position that was stored: all that happened before it is
    in events. ``events`` are the newest ones of the call, oldest first, without a hole; a store
    need not return more than 2048 of them.
    """

    record: CallRecord
    num_samples: int
    events: tuple[Event, ...]


class Store(Protocol):
    """Where calls are kept beyond the process: their events and summaries, never audio.

    No method raises: what cannot be kept is the store's to log, and costs no call anything. The
    methods that are no coroutines only take notes, and return at once.
    """

    def add_call(self, record: CallRecord) -> None:
        """Learn that a call began; once a session, not again where it is resumed."""
        ...

    def add_events(self, session: str, events: Sequence[Event], num_samples: int) -> None:
        """Keep events of a call, in order, and how far it is settled: samples at 16 kHz.

        They must be on disk within a second, in one transaction with the position.
        """
        ...

    async def finish(self, session: str, reason: str) -> None:
        """Return when the call is on disk as finished, its ``summary`` (added before) included.

        Awaited before the peer gets its summary: a call that it knows to be finished is kept.
        """
        ...

    async def unfinished(self, session: str) -> StoredCall | None:
        """Return a call that began and has not finished; None where there is no such."""
        ...


class CallObserver(Protocol):
    """Who follows all calls: metrics, webhooks. Called in the event loop: must be quick."""

    def call_started(self, record: CallRecord) -> None:
        """A call began; also where one goes on that another process had begun."""
        ...

    def event(self, record: CallRecord, event: Event) -> None:
        """A call has an event; the last one is its ``summary``."""
        ...

    def call_ended(self, record: CallRecord, reason: str) -> None:
        """A call is over: ``end``, or the code of what ended it."""
        ...


@dataclass(frozen=True, kw_only=True)
class CallSnapshot:
    """A live call as it is now; ``emotions`` and ``turns`` are the newest by channel."""

    record: CallRecord
    duration_s: float
    is_parked: bool
    emotions: Mapping[int, Emotion] = field(default_factory=dict)
    turns: Mapping[int, Turn] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All live calls that a watcher follows; what it knew before is out of date."""

    calls: tuple[CallSnapshot, ...]


class CallEvent(NamedTuple):
    """An event, and the call that it is of."""

    record: CallRecord
    event: Event


Watched: TypeAlias = Snapshot | CallEvent
"""What a watcher gets: a snapshot first, and again where it was too slow, then events."""
