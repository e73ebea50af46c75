"""The file of kept calls: one SQLite database, its schema, and what is read from it.

Events and summaries, never audio. :mod:`streamer.store` writes it; whoever reads opens a connection
of their own, which write-ahead logging lets them do while it is written.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from msgspec import Raw, Struct

from streamer.errors import ConfigError, SerStreamError

APPLICATION_ID = 0x53455253
"""In the file's header, so that another program's database is not written to ("SERS")."""
SCHEMA_VERSION = 1

_SCHEMA = f"""
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
CREATE TABLE calls (
    session TEXT PRIMARY KEY,
    call_id TEXT NOT NULL,
    owner TEXT NOT NULL,         -- the name of the token that began it
    dialect TEXT NOT NULL,
    model TEXT,
    roles TEXT NOT NULL,         -- by channel, with a comma between
    start TEXT NOT NULL,         -- what the call is made again from, JSON
    started_at REAL NOT NULL,    -- Unix time in seconds, like the other two
    heard_at REAL NOT NULL,
    ended_at REAL,               -- null while the call goes on
    reason TEXT,
    num_samples INTEGER NOT NULL DEFAULT 0,
    last_seq INTEGER NOT NULL DEFAULT -1,
    summary TEXT,                -- the summary event's JSON
    is_erased INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX calls_newest ON calls (started_at, session);
CREATE INDEX calls_going_on ON calls (started_at, session) WHERE ended_at IS NULL;
CREATE INDEX calls_ended ON calls (ended_at);
CREATE INDEX calls_named ON calls (call_id, started_at, session) WHERE call_id <> '';
CREATE INDEX calls_erased ON calls (session) WHERE is_erased;
CREATE TABLE events (
    session TEXT NOT NULL,
    seq INTEGER NOT NULL,
    type TEXT NOT NULL,
    time_s REAL,                 -- in the call's audio
    json TEXT NOT NULL,
    PRIMARY KEY (session, seq)
) WITHOUT ROWID;
CREATE INDEX events_but_emotions ON events (session, type, seq) WHERE type <> 'emotion';
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
_BUSY_TIMEOUT_S = 1.0
"""How long another process, such as a person's sqlite3 shell, may hold the file up at a time."""
_WAL_LIMIT_BYTES = 2**26
_READING_TIMEOUT_S = 10.0
"""A label that hardly a call has takes 3 s to be looked for in 100,000 calls."""
_STEPS_BETWEEN_LOOKS = 100_000

_COLUMNS = (
    "session, call_id, owner, dialect, model, roles, start, started_at, heard_at, ended_at, "
    "reason, num_samples, last_seq, summary"
)


class StoreError(SerStreamError):
    """The store cannot be read or changed just now; calls go on without it."""

    code = "store_unavailable"


class KeptCall(Struct, frozen=True, kw_only=True):
    """One call as the store knows it; times are Unix times in seconds.

    ``start`` is the JSON of the peer's :class:`Start`; ``ended_at`` is None while the call goes on
    or may be resumed. All that happened before ``num_samples`` (16 kHz) is in the kept events, the
    last of which is ``last_seq``.
    """

    session: str
    call_id: str
    owner: str
    dialect: str
    model: str | None
    roles: tuple[str, ...]
    start: str
    started_at: float
    heard_at: float
    ended_at: float | None
    reason: str | None
    num_samples: int
    last_seq: int
    summary: Raw | None


class KeptEvent(NamedTuple):
    """One event, as JSON."""

    seq: int
    type: str
    json: str


@dataclass(frozen=True, kw_only=True)
class CallFilter:
    """Which kept calls are meant: those for which all that is given holds.

    ``label``: a turn (of ``role``, where that is given) had it. ``before`` is the start time and
    session of the last call of the page before.
    """

    is_ended: bool | None = None
    call_id: str | None = None
    label: str | None = None
    role: str | None = None
    since_s: float | None = None
    before: tuple[float, str] | None = None


@dataclass(frozen=True)
class KeptFile:
    """Where the calls are kept."""

    path: Path

    def open(self) -> sqlite3.Connection:
        """Return a connection to write with, in autocommit mode, the file made if there is none.

        Raises:
            ConfigError: the file cannot be opened, is no store, or a newer program's.
        """
        try:
            # SQLite gives its side files the rights of this one: what people felt is not for all.
            # Only a new one is opened beside SQLite: closing it would drop SQLite's locks.
            with suppress(FileExistsError):
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            connection = sqlite3.connect(
                self.path,
                timeout=_BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
            )
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"store {self.path}: {error}: expected a file that can be written, in a folder "
                "that is there"
            ) from error
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def lock(self) -> sqlite3.Connection:
        """Take the file for this process until the connection is closed or the process dies.

        SQLite would let two processes write, and each would end the other's calls. A file beside
        it is locked, without a byte in it.

        Raises:
            ConfigError: another process has it, or the folder cannot be written.
        """
        beside = self.path.with_name(f"{self.path.name}-lock")
        connection = None
        try:
            connection = sqlite3.connect(
                beside, timeout=0.0, isolation_level=None, check_same_thread=False
            )
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            if connection is not None:
                connection.close()
            raise ConfigError(
                f"store {self.path}: found {error} ({beside.name}): expected a folder that can be "
                "written, and a store that no other server has open; --store names another file, "
                "--no-store none"
            ) from error
        return connection

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection that cannot write.

        Raises:
            StoreError: SQLite failed.
        """
        try:
            uri = f"{self.path.absolute().as_uri()}?mode=ro"
            with closing(
                sqlite3.connect(uri, uri=True, timeout=_BUSY_TIMEOUT_S, isolation_level=None)
            ) as connection:
                give_up_s = time.monotonic() + _READING_TIMEOUT_S
                connection.set_progress_handler(
                    lambda: time.monotonic() > give_up_s, _STEPS_BETWEEN_LOOKS
                )
                yield connection
        except sqlite3.Error as error:
            raise StoreError(
                f"the store cannot be read: found {error}: expected a sound database, not "
                f"locked, and an answer within {_READING_TIMEOUT_S:g} s"
            ) from error

    def unfinished(self) -> list[str]:
        """Return the sessions of the calls that have not ended."""
        with self.reading() as connection:
            rows = connection.execute("SELECT session FROM calls WHERE ended_at IS NULL")
            return [session for (session,) in rows]

    def call(self, session: str) -> KeptCall | None:
        """Return one call, None if there is none of that name."""
        with self.reading() as connection:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM calls WHERE session = ? AND NOT is_erased", (session,)
            ).fetchone()
            return None if row is None else _call_of(row)

    def calls(self, wanted: CallFilter, limit: int) -> list[KeptCall]:
        """Return at most ``limit`` calls, newest first."""
        where, values = _where(wanted)
        with self.reading() as connection:
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM calls WHERE {where} "
                "ORDER BY started_at DESC, session DESC LIMIT ?",
                (*values, limit),
            )
            return [_call_of(row) for row in rows]

    def events(
        self, session: str, *, after_seq: int = -1, limit: int = -1, but_emotions: bool = False
    ) -> list[KeptEvent]:
        """Return a call's events after one, in order; all of them where the limit is -1."""
        which = "AND type <> 'emotion'" if but_emotions else ""
        with self.reading() as connection:
            rows = connection.execute(
                f"SELECT seq, type, json FROM events WHERE session = ? AND seq > ? {which} "
                "ORDER BY seq LIMIT ?",
                (session, after_seq, limit),
            )
            return [KeptEvent(*row) for row in rows]

    def newest_events(self, session: str, limit: int) -> list[KeptEvent]:
        """Return the newest events of a call, oldest first, from the last hole in ``seq`` on."""
        with self.reading() as connection:
            rows = connection.execute(
                "SELECT seq, type, json FROM events WHERE session = ? ORDER BY seq DESC LIMIT ?",
                (session, limit),
            )
            events: list[KeptEvent] = []
            for row in rows:
                if events and row[0] != events[-1].seq - 1:
                    break
                events.append(KeptEvent(*row))
            return events[::-1]

    def _prepare(self, connection: sqlite3.Connection) -> None:
        """Make the tables, or see that they are ours."""
        try:
            application, version, num_tables = (
                connection.execute(query).fetchone()[0]
                for query in (
                    "PRAGMA application_id",
                    "PRAGMA user_version",
                    "SELECT count(*) FROM sqlite_schema",
                )
            )
            if application == 0 and version == 0 and num_tables == 0:
                connection.executescript(_SCHEMA)
                version = SCHEMA_VERSION
            elif application != APPLICATION_ID:
                raise ConfigError(
                    f"store {self.path}: found another program's database (application id "
                    f"{application}): expected one that ser-stream made, or no file"
                )
            if version > SCHEMA_VERSION:
                raise ConfigError(
                    f"store {self.path}: found schema version {version}, which a newer ser-stream "
                    f"wrote: expected {SCHEMA_VERSION} or less; run the newer one, or name "
                    "another file"
                )
            connection.execute("SELECT count(*) FROM (SELECT 1 FROM events LIMIT 1)")
            connection.execute(f"PRAGMA journal_size_limit = {_WAL_LIMIT_BYTES}")
            connection.execute("PRAGMA secure_delete = ON")
        except sqlite3.Error as error:
            raise ConfigError(
                f"store {self.path}: found {error}: expected a sound SQLite database that "
                "ser-stream made, not locked; restore a copy, or name another file"
            ) from error


def _call_of(row: tuple[object, ...]) -> KeptCall:
    fields = dict(zip(KeptCall.__struct_fields__, row, strict=True))
    fields["roles"] = tuple(str(fields["roles"]).split(","))
    summary = fields["summary"]
    fields["summary"] = None if summary is None else Raw(str(summary).encode())
    return KeptCall(**fields)  # type: ignore[arg-type]  # the columns' types are the schema's


def _where(wanted: CallFilter) -> tuple[str, list[object]]:
    """SQL for what is wanted, and its values."""
    terms: list[str] = ["NOT is_erased"]
    values: list[object] = []
    if wanted.is_ended is not None:
        terms.append(f"ended_at IS {'NOT ' * wanted.is_ended}NULL")
    if wanted.call_id is not None:
        terms.append("call_id = ? AND call_id <> ''")
        values.append(wanted.call_id)
    if wanted.since_s is not None:
        terms.append("started_at >= ?")
        values.append(wanted.since_s)
    if wanted.before is not None:
        terms.append("(started_at, session) < (?, ?)")
        values += wanted.before
    if wanted.label is not None:
        terms.append(
            "EXISTS (SELECT 1 FROM events WHERE events.session = calls.session "
            "AND type = 'turn' AND type <> 'emotion' AND json ->> '$.label' = ?"
            + " AND json ->> '$.role' = ?" * (wanted.role is not None)
            + ")"
        )
        values.append(wanted.label)
    if wanted.role is not None:
        if wanted.label is None:
            terms.append("instr(',' || roles || ',', ',' || ? || ',') > 0")
        values.append(wanted.role)
    return " AND ".join(terms), values
