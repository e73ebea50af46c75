"""One watcher's events: bounded, whatever it does."""

from __future__ import annotations

import asyncio
from collections import deque

from streamer.events import Emotion
from streamer.records import CallEvent

MAX_WAITING = 1024
"""Events that wait for one watcher."""


class Watch:
    """Events that wait for a watcher of all calls, or of one session.

    Where there are too many, stale emotions go first; where that is not enough, all go, and the
    watcher is behind: it needs a snapshot.
    """

    def __init__(self, session: str | None = None) -> None:
        self._session = session
        self._waiting: deque[CallEvent] = deque()
        self._news = asyncio.Event()
        self._is_behind = True
        self._has_ended = False

    @property
    def has_ended(self) -> bool:
        """Whether the session that it follows is over, and all of it was taken."""
        return self._has_ended and not self._waiting and not self._is_behind

    def end(self, session: str) -> None:
        """Learn that nothing more will come of a session."""
        if session == self._session:
            self._has_ended = True
            self._news.set()

    def receive(self, item: CallEvent) -> None:
        """Take an event of any call."""
        if self._session not in (None, item.record.session) or self._is_behind:
            return
        self._waiting.append(item)
        if len(self._waiting) > MAX_WAITING:
            self._drop_stale()
            if len(self._waiting) > MAX_WAITING // 2:
                self._waiting.clear()
                self._is_behind = True
        self._news.set()

    def take_is_behind(self) -> bool:
        """Return whether the watcher needs a snapshot, which it gets now."""
        is_behind, self._is_behind = self._is_behind, False
        return is_behind

    async def next(self) -> CallEvent | None:
        """Wait for the next event; None where a snapshot has to come first, or it has ended."""
        while not self._waiting and not self._is_behind and not self._has_ended:
            self._news.clear()
            await self._news.wait()
        return None if self._is_behind or not self._waiting else self._waiting.popleft()

    def _drop_stale(self) -> None:
        """Keep the newest emotion of each channel, and all that is no emotion."""
        newest = {
            (item.record.session, item.event.channel): item.event.seq
            for item in self._waiting
            if isinstance(item.event, Emotion)
        }
        self._waiting = deque(
            item
            for item in self._waiting
            if not isinstance(item.event, Emotion)
            or newest[item.record.session, item.event.channel] == item.event.seq
        )
