"""The newest events of one call, for whoever is connected to it now, or comes back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from streamer.events import Emotion, Event

MAX_EVENTS = 2048
"""Events that are kept for a peer that does not take them, or is away."""
MAX_TOLD = 512
"""Those of them that were sent, and are kept because they may not have arrived."""


class EventLog:
    """Events of consecutive ``seq``; the oldest go when there are too many.

    Args:
        events: what there was before; if none, the first one will have ``first_seq``.
    """

    def __init__(self, events: Iterable[Event] = (), *, first_seq: int = 0) -> None:
        known = list(events)[-MAX_EVENTS:]
        self._events: deque[Event] = deque()
        self._first_seq = known[0].seq if known else first_seq
        self._told_seq = self._first_seq - 1
        self._newest: dict[int | None, int] = {}
        for event in known:
            self.append(event)

    @property
    def first_seq(self) -> int:
        """The oldest event that is kept, or else the next one."""
        return self._first_seq

    @property
    def next_seq(self) -> int:
        """The event that comes next."""
        return self._first_seq + len(self._events)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is kept: everything so far has arrived."""
        return not self._events

    @property
    def num_untold(self) -> int:
        """Events that were not sent yet."""
        return self.next_seq - 1 - self._told_seq

    def append(self, event: Event) -> None:
        """Take the next event."""
        assert event.seq == self.next_seq, f"event {event.seq}: expected {self.next_seq}"
        self._events.append(event)
        if isinstance(event, Emotion):
            self._newest[event.channel] = event.seq
        if len(self._events) > MAX_EVENTS:
            self.forget(self._first_seq)

    def get(self, seq: int) -> Event | None:
        """Return an event that is kept; None of one that is not there yet."""
        place = seq - self._first_seq
        return self._events[place] if 0 <= place < len(self._events) else None

    def next_after(self, seq: int, *, skip_stale: bool = False) -> Event | None:
        """Return the first event after ``seq``, if it is there.

        With ``skip_stale`` an emotion is passed over where there is a newer one of its channel.
        """
        while (event := self.get(seq + 1)) is not None:
            seq += 1
            is_emotion = isinstance(event, Emotion)
            if not (skip_stale and is_emotion and self._newest[event.channel] > seq):
                return event
        return None

    def begin_from(self, seq: int) -> None:
        """A new connection: everything up to ``seq`` was told, and no more."""
        self._told_seq = seq

    def told(self, seq: int) -> None:
        """Learn that everything up to ``seq`` was sent."""
        self._told_seq = max(self._told_seq, seq)
        self.forget(min(self._told_seq - MAX_TOLD, self.next_seq - 1))

    def forget(self, seq: int) -> None:
        """Drop everything up to ``seq``."""
        while self._events and self._first_seq <= seq:
            self._events.popleft()
            self._first_seq += 1
        self._told_seq = max(self._told_seq, self._first_seq - 1)
