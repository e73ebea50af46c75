"""How calls are shown, live and kept: as JSON for programs, as CSV for spreadsheets.

Calls are shown one by one. Nothing is counted or ordered by who spoke, agents least of all.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Literal

import msgspec
from msgspec import Raw, Struct

from streamer.events import Event, Ready, Summary, Turn, decode_event
from streamer.kept import KeptCall, KeptEvent
from streamer.records import CallEvent, CallSnapshot, Snapshot

State = Literal["live", "parked", "ended"]
"""``parked``: its peer is away, and may come back."""

_SAMPLE_RATE = 16000
_HEAD = (
    "session",
    "call_id",
    "started_at",
    "channel",
    "role",
    "start_s",
    "end_s",
    "label",
    "windows",
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What makes a spreadsheet take text for a formula (CWE-1236)."""


class ChannelView(Struct, frozen=True, kw_only=True):
    """One channel of a call: its newest label, or once the call has ended its longest.

    ``label`` may be ``uncertain``; it is null where no turn was scored.
    """

    channel: int
    role: str
    label: str | None


class CallView(Struct, frozen=True, kw_only=True):
    """One call of a list. Times of day are UTC, ISO 8601."""

    session: str
    call_id: str
    dialect: str
    model: str | None
    state: State
    started_at: str
    ended_at: str | None
    reason: str | None
    duration_s: float
    channels: tuple[ChannelView, ...]


def view_of_live(snapshot: CallSnapshot, kept: KeptCall | None = None) -> CallView:
    """Return a call that goes on as it is shown; the store may know its model."""
    record = snapshot.record
    newest: dict[int, str] = {place: turn.label for place, turn in snapshot.turns.items()}
    newest |= {place: emotion.label for place, emotion in snapshot.emotions.items()}
    return CallView(
        session=record.session,
        call_id=record.call_id,
        dialect=record.dialect,
        model=None if kept is None else kept.model,
        state="parked" if snapshot.is_parked else "live",
        started_at=iso_time(record.started_at),
        ended_at=None,
        reason=None,
        duration_s=snapshot.duration_s,
        channels=tuple(
            ChannelView(channel=channel, role=role, label=newest.get(channel))
            for channel, role in enumerate(record.roles)
        ),
    )


def view_of_kept(call: KeptCall, *, may_return: bool) -> CallView:
    """Return a call that nobody hears just now as it is shown."""
    summary = None if call.summary is None else decode_event(bytes(call.summary))
    labels: dict[int, str] = {}
    duration_s = call.num_samples / _SAMPLE_RATE
    if isinstance(summary, Summary):
        duration_s = summary.duration_s
        labels = {
            item.channel: max(item.labels, key=lambda label: item.labels[label])
            for item in summary.channels
            if any(item.labels.values())
        }
    return CallView(
        session=call.session,
        call_id=call.call_id,
        dialect=call.dialect,
        model=call.model,
        state="parked" if may_return else "ended",
        started_at=iso_time(call.started_at),
        ended_at=None if call.ended_at is None else iso_time(call.ended_at),
        reason=call.reason,
        duration_s=round(duration_s, 3),
        channels=tuple(
            ChannelView(channel=channel, role=role, label=labels.get(channel))
            for channel, role in enumerate(call.roles)
        ),
    )


def call_json(
    view: CallView, events: Sequence[KeptEvent], snapshot: CallSnapshot | None = None
) -> bytes:
    """Return all that is shown of one call but its passing events, as a JSON object.

    Args:
        view: the call.
        events: what is kept of it, in order, its emotions aside.
        snapshot: its newest turns where nothing is kept of it.
    """
    by_type: dict[str, list[Raw]] = {}
    for event in events:
        by_type.setdefault(event.type, []).append(Raw(event.json.encode()))
    turns = by_type.get("turn", [])
    if not events and snapshot is not None:
        turns = [Raw(msgspec.json.encode(turn)) for _, turn in sorted(snapshot.turns.items())]
    return msgspec.json.encode(
        {
            "call": view,
            "channels": _channels(view, events),
            "turns": turns,
            "alerts": by_type.get("alert", []),
            "gaps": by_type.get("gap", []),
            "talk_overs": by_type.get("talk_over", []),
            "errors": by_type.get("error", []),
            "summary": by_type["summary"][-1] if "summary" in by_type else None,
        }
    )


def turns_csv(view: CallView, events: Iterable[KeptEvent], turns: Iterable[Turn] = ()) -> str:
    """Return a call's turns, one line each, as CSV (RFC 4180); seconds are the call's audio's.

    Args:
        view: the call.
        events: what is kept of it, in order.
        turns: its newest turns where nothing is kept of it.
    """
    decoded = [decode_event(item.json) for item in events if item.type in ("ready", "turn")]
    all_turns = [event for event in decoded if isinstance(event, Turn)] or list(turns)
    labels: Sequence[str] = next((e.labels for e in decoded if isinstance(e, Ready)), ())
    labels = labels or (list(all_turns[0].scores) if all_turns else [])
    lines = io.StringIO(newline="")
    writer = csv.writer(lines)  # ends lines by CR LF
    writer.writerow([*_HEAD, *(_cell(f"score_{label}") for label in labels)])
    for turn in all_turns:
        texts = (view.session, view.call_id, view.started_at)
        writer.writerow(
            [
                *map(_cell, texts),
                turn.channel,
                _cell(turn.role or ""),
                turn.start_s,
                turn.end_s,
                _cell(turn.label),
                turn.windows,
                *(turn.scores.get(label, "") for label in labels),
            ]
        )
    return lines.getvalue()


def watched_json(item: Snapshot | CallEvent) -> str:
    """Return what a watcher is told: a ``snapshot``, or an event with the call that it is of."""
    if isinstance(item, Snapshot):
        calls = [
            {
                "call": view_of_live(snapshot),
                "emotions": [event for _, event in sorted(snapshot.emotions.items())],
                "turns": [event for _, event in sorted(snapshot.turns.items())],
            }
            for snapshot in item.calls
        ]
        return msgspec.json.encode({"type": "snapshot", "calls": calls}).decode()
    whose = {"call": item.record.session, "call_id": item.record.call_id}
    event: Event = item.event
    return (msgspec.json.encode(whose)[:-1] + b"," + msgspec.json.encode(event)[1:]).decode()


def iso_time(unix_s: float) -> str:
    """Return a time of day as UTC in ISO 8601, to the millisecond."""
    moment = datetime.fromtimestamp(unix_s, UTC).replace(tzinfo=None)
    return f"{moment.isoformat(timespec='milliseconds')}Z"


def _channels(view: CallView, events: Iterable[KeptEvent]) -> list[object]:
    """What is known of each channel: the summary's figures, or else what was to be expected."""
    known: list[object] = [{"channel": c.channel, "role": c.role} for c in view.channels]
    for item in events:
        if item.type in ("ready", "summary"):
            event = decode_event(item.json)
            assert isinstance(event, (Ready, Summary))
            known = list(event.channels)
    return known


def _cell(text: str) -> str:
    """Text that no spreadsheet computes."""
    return f"'{text}" if text.startswith(_FORMULA) else text
