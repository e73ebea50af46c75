"""How calls are written to their file: rows that wait, and the transactions that they go in.

Blocking, without a thread or a clock of its own: :class:`streamer.store.Store` brings both.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import IntEnum
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import msgspec

from streamer.errors import ConfigError
from streamer.events import Event, Ready, encode_event
from streamer.kept import KeptFile
from streamer.records import CallRecord

_AT_ONCE = 2000
"""Rows of one transaction: some 10 ms. So a full disk is found out by a small one, and what is
erased does not keep what is to be written waiting."""
_ROW_BYTES = 300
"""What a row takes in memory beside its text."""


class Rank(IntEnum):
    """How readily a row is given up, the lowest first."""

    EMOTION = 0
    PASSING = 1
    FINAL = 2
    BEGIN = 3
    END = 4


_RANKS = {
    "emotion": Rank.EMOTION,
    "speech": Rank.PASSING,
    "lag": Rank.PASSING,
    "summary": Rank.END,
}
_AS_WRITTEN = (Rank.BEGIN, Rank.FINAL, Rank.PASSING, Rank.EMOTION, Rank.END)
"""A call's own row comes first, its end when all of it is there."""

_BEGIN = (
    "INSERT OR IGNORE INTO calls "
    "(session, call_id, owner, dialect, roles, start, started_at, heard_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)
_MODEL = "UPDATE calls SET model = ? WHERE session = ?"
_PROGRESS = (
    "UPDATE calls SET heard_at = ?, num_samples = max(num_samples, ?), last_seq = max(last_seq, ?) "
    "WHERE session = ?"
)
_EVENT = "INSERT OR IGNORE INTO events (session, seq, type, time_s, json) VALUES (?, ?, ?, ?, ?)"
_END = (
    "UPDATE calls SET ended_at = ?1, reason = ?2, summary = (SELECT json FROM events "
    "WHERE session = ?3 AND type = 'summary' AND type <> 'emotion' ORDER BY seq DESC LIMIT 1) "
    "WHERE session = ?3"
)


class Row(NamedTuple):
    """One statement's values. Written twice, a row is the same as written once."""

    rank: Rank
    statement: str
    values: tuple[str | float | None, ...]

    @property
    def num_bytes(self) -> int:
        """About what it takes in memory."""
        return _ROW_BYTES + sum(len(value) for value in self.values if isinstance(value, str))


def begin_row(record: CallRecord, heard_at: float) -> Row:
    """Return the row of a call that began."""
    start = msgspec.json.encode(replace(record.start, call_id="")).decode()
    names = record.session, _text(record.call_id), record.owner, record.dialect
    texts = *names, ",".join(record.roles), start
    return Row(Rank.BEGIN, _BEGIN, (*texts, record.started_at, heard_at))


def event_rows(session: str, event: Event) -> list[Row]:
    """Return the rows that an event makes.

    Raises:
        ValueError: it cannot be told in JSON.
    """
    kind = str(event.__struct_config__.tag)
    time_s = getattr(event, "end_s", getattr(event, "time_s", None))
    values = session, event.seq, kind, time_s, encode_event(event).decode()
    rows = [Row(_RANKS.get(kind, Rank.FINAL), _EVENT, values)]
    if isinstance(event, Ready):
        rows.append(Row(Rank.FINAL, _MODEL, (event.model, session)))
    return rows


def end_row(session: str, ended_at: float, reason: str) -> Row:
    """Return the row that ends a call; its summary, if there is any, comes before."""
    return Row(Rank.END, _END, (ended_at, _text(reason), session))


def _text(text: str) -> str:
    """Half a surrogate pair, which JSON may hold, is no UTF-8, and would stop all that waits."""
    return text.encode(errors="replace").decode()


class Rows:
    """What waits to be written, in order; when it is too much, the least is given up first."""

    def __init__(self) -> None:
        self._ranks: dict[Rank, deque[Row]] = {rank: deque() for rank in Rank}
        self._progress: dict[str, tuple[float, int, int, str]] = {}
        self._num_bytes = 0

    def __len__(self) -> int:
        return len(self._progress) + sum(map(len, self._ranks.values()))

    @property
    def num_bytes(self) -> int:
        """About what all of it takes in memory."""
        return self._num_bytes + _ROW_BYTES * len(self._progress)

    @property
    def has_ends(self) -> bool:
        """Whether a call's end is among it."""
        return bool(self._ranks[Rank.END])

    def add(self, row: Row) -> None:
        """Have a row wait."""
        self._ranks[row.rank].append(row)
        self._num_bytes += row.num_bytes

    def add_progress(self, session: str, heard_at: float, num_samples: int, last_seq: int) -> None:
        """Have the newest state of a call wait, in place of an earlier one."""
        _, samples, seq, _ = self._progress.get(session, (0.0, 0, -1, ""))
        self._progress[session] = heard_at, max(samples, num_samples), max(seq, last_seq), session

    def fit(self, max_bytes: int) -> int:
        """Give rows up, oldest first, until the rest takes no more than this; return how many."""
        num_given_up = 0
        for rows in self._ranks.values():
            while rows and self.num_bytes > max_bytes:
                self._num_bytes -= rows.popleft().num_bytes
                num_given_up += 1
        return num_given_up

    def take(self, num_rows: int) -> Rows:
        """Take the first rows out, in the order in which they are to be written."""
        first = Rows()
        for rank in _AS_WRITTEN:
            rows = self._ranks[rank]
            while rows and num_rows:
                row = rows.popleft()
                first.add(row)
                self._num_bytes -= row.num_bytes
                num_rows -= 1
        if not any(self._ranks.values()):  # a call is settled up to there when all of it is there
            first._progress, self._progress = self._progress, {}
        return first

    def put_back(self, first: Rows) -> None:
        """Have what could not be written wait again, before what came since."""
        for rank, rows in self._ranks.items():
            rows.extendleft(reversed(first._ranks[rank]))
        later, self._progress = self._progress, first._progress
        for session, (heard_at, num_samples, last_seq, _) in later.items():
            self.add_progress(session, heard_at, num_samples, last_seq)
        self._num_bytes += first._num_bytes

    def write(self, connection: sqlite3.Connection) -> None:
        """Write all of it, inside a transaction."""
        rows = [row for rank in _AS_WRITTEN for row in self._ranks[rank]]
        num_begun = len(self._ranks[Rank.BEGIN])
        connection.executemany(_BEGIN, [row.values for row in rows[:num_begun]])
        connection.executemany(_PROGRESS, self._progress.values())
        for statement, group in groupby(rows[num_begun:], itemgetter(1)):
            connection.executemany(statement, [row.values for row in group])


class CannotWriteError(Exception):
    """SQLite cannot, now; ``str()`` is its reason."""


class Writer:
    """Writes one file, reopening it after a fault.

    Args:
        file: the file.

    Raises:
        ConfigError: see :meth:`KeptFile.open`.
    """

    def __init__(self, file: KeptFile) -> None:
        self._file = file
        self._connection: sqlite3.Connection | None = file.open()

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None

    def write(self, rows: Rows) -> None:
        """Write what waits; what could not be written waits on.

        A call's end is on the disk itself when this returns, the rest at the system's leisure.

        Raises:
            CannotWriteError: the disk is full, or whatever SQLite says.
        """
        while rows:
            first = rows.take(_AT_ONCE)
            try:
                with self._transaction(is_lasting=first.has_ends) as connection:
                    first.write(connection)
            except CannotWriteError:
                rows.put_back(first)
                raise

    def end_left(self, sessions: Collection[str], reason: str) -> None:
        """End calls that nobody hears any longer, at the time when they were last heard.

        Raises:
            CannotWriteError: as in :meth:`write`.
        """
        with self._transaction() as connection:
            connection.executemany(
                "UPDATE calls SET ended_at = heard_at, reason = ? "
                "WHERE session = ? AND ended_at IS NULL",
                [(reason, session) for session in sessions],
            )

    def hide(self, session: str) -> bool:
        """Hide a finished call from all readers, to be erased; return whether there was one.

        Raises:
            CannotWriteError: as in :meth:`write`.
        """
        with self._transaction(is_lasting=True) as connection:
            found = connection.execute(
                "UPDATE calls SET is_erased = 1 "
                "WHERE session = ? AND ended_at IS NOT NULL AND NOT is_erased",
                (session,),
            )
            return found.rowcount > 0

    def hide_before(self, ended_at: float) -> None:
        """Hide the calls that ended before then (Unix time), to be erased.

        Raises:
            CannotWriteError: as in :meth:`write`.
        """
        with self._transaction() as connection:
            connection.execute(
                "UPDATE calls SET is_erased = 1 WHERE ended_at < ? AND NOT is_erased", (ended_at,)
            )

    def erase(self) -> tuple[str | None, bool]:
        """Erase a portion of what is hidden; return of which session, and whether that is gone.

        The disk gets its pages back. The session is None where nothing is hidden.

        Raises:
            CannotWriteError: as in :meth:`write`.
        """
        with self._transaction() as connection:
            hidden = connection.execute("SELECT session FROM calls WHERE is_erased LIMIT 1")
            if (row := hidden.fetchone()) is None:
                return None, False
            session = str(row[0])
            erased = connection.execute(
                "DELETE FROM events WHERE session = ?1 AND seq < "
                "(SELECT min(seq) FROM events WHERE session = ?1) + ?2",
                (session, _AT_ONCE),
            )
            is_gone = erased.rowcount == 0
            if is_gone:
                connection.execute("DELETE FROM calls WHERE session = ?", (session,))
        with suppress(sqlite3.Error):
            # Not `execute`: it takes one step, one page, of a statement without columns.
            connection.executescript(f"PRAGMA incremental_vacuum({_AT_ONCE})")
        return session, is_gone

    def forget_log(self) -> None:
        """Empty the write-ahead log, where what was erased can be read, unless it is being read."""
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    @contextmanager
    def _transaction(self, *, is_lasting: bool = False) -> Iterator[sqlite3.Connection]:
        """All or nothing; afterwards the file is fit for another, whatever went wrong."""
        try:
            if self._connection is None:
                self._connection = self._file.open()
            connection = self._connection
            connection.execute(f"PRAGMA synchronous = {'FULL' if is_lasting else 'NORMAL'}")
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except (sqlite3.Error, ConfigError, ValueError, OverflowError) as error:
            self.close()  # which rolls back
            raise CannotWriteError(str(error)) from error
