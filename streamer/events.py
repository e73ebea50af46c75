"""What comes out: events, defined once. The JSON of the command line and of the wire is made here.

Seconds count from the first sample of the call's audio. ``seq`` grows by one with every event of a
call. Clock readings are in ``lag_ms`` and nowhere else.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Struct, UnsetType

SCHEMA_VERSION = 1

ROLES = ("customer", "agent")
"""Who may speak on a channel."""


class ChannelFields(Struct, frozen=True, kw_only=True):
    """What every event carries.

    ``channel`` and ``role`` are null in an event of the whole call. ``source`` is the PATH as it
    was given, where the audio came from files.
    """

    seq: int = 0
    channel: int | None = None
    role: str | None = None
    source: str | UnsetType = UNSET


class TimedFields(ChannelFields, frozen=True, kw_only=True):
    """What every event of a channel carries about how the stream keeps up.

    ``lag_ms`` is the time from the arrival of the last sample that the event needed to the event;
    ``dropped`` the windows of the channel that were not scored, so far.
    """

    lag_ms: float = 0.0
    dropped: int = 0


class ReadyChannel(Struct, frozen=True, kw_only=True):
    """One channel of a call: who is on it, and whether its emotion is inferred."""

    channel: int
    role: str
    analysed: bool


class Ready(ChannelFields, frozen=True, kw_only=True, tag_field="type", tag="ready"):
    """The call may begin: what listens to it, and what it must expect.

    ``first_score_s`` is the audio from a turn's onset to its first emotion, ``hang_over_s`` the
    silence that ends a turn, ``step_ms`` the time between two emotions. ``notice`` tells, for those
    who must be told, that emotion inference is running.
    """

    schema: int = SCHEMA_VERSION
    session: str
    model: str
    labels: tuple[str, ...]
    encoding: str
    sample_rate: int
    channels: tuple[ReadyChannel, ...]
    step_ms: int
    first_score_s: float
    hang_over_s: float
    notice: str


class Speech(TimedFields, frozen=True, kw_only=True, tag_field="type", tag="speech"):
    """Speech began (``active``) or ended at ``time_s``."""

    active: bool
    time_s: float


class Emotion(TimedFields, frozen=True, kw_only=True, tag_field="type", tag="emotion"):
    """One window's answer.

    ``scores`` are smoothed over time, ``raw`` the window's own; both calibrated, by label, of sum
    1. ``label`` is steadied; it is ``uncertain`` where no score reaches the card's threshold,
    ``scores`` never has that. ``speech`` is the share of speech in the window; ``warming_up`` holds
    until a turn has filled a whole window. ``start_s`` to ``end_s`` is the audio that was heard.
    """

    start_s: float
    end_s: float
    label: str
    scores: dict[str, float]
    raw: dict[str, float]
    speech: float
    warming_up: bool


class Turn(TimedFields, frozen=True, kw_only=True, tag_field="type", tag="turn"):
    """Speech between two pauses is over: the average of its full windows, or else its last one.

    ``windows`` tells how many windows were averaged. ``label`` is ``uncertain`` where no score
    reaches the card's threshold; ``scores`` never has that.
    """

    start_s: float
    end_s: float
    label: str
    scores: dict[str, float]
    windows: int


class Gap(TimedFields, frozen=True, kw_only=True, tag_field="type", tag="gap"):
    """Audio from ``start_s`` to ``end_s`` never arrived; the turn that was open ended before it."""

    start_s: float
    end_s: float
    reason: str


class Lag(TimedFields, frozen=True, kw_only=True, tag_field="type", tag="lag"):
    """Windows begin not to be scored, the first one being ``start_s`` to ``end_s``."""

    start_s: float
    end_s: float
    reason: str


class TalkOver(ChannelFields, frozen=True, kw_only=True, tag_field="type", tag="talk_over"):
    """Turns of two channels overlapped from ``start_s`` to ``end_s``, for 0.3 s or more.

    A turn runs on through its pauses of less than the hang-over.
    """

    start_s: float
    end_s: float


class Alert(TimedFields, frozen=True, kw_only=True, tag_field="type", tag="alert"):
    """A rule was met: ``label`` scored high from ``start_s`` to ``end_s``, which is now.

    ``probability`` is the mean of the label's smoothed scores over that stretch. It follows the
    ``emotion`` that met the rule, and has its ``lag_ms``.
    """

    rule: str
    label: str
    probability: float
    start_s: float
    end_s: float


class Error(ChannelFields, frozen=True, kw_only=True, tag_field="type", tag="error"):
    """Something went wrong; after a ``fatal`` one nothing but the summary follows."""

    code: str
    message: str
    fatal: bool


class ChannelSummary(Struct, frozen=True, kw_only=True):
    """What one channel came to. ``labels`` is the share of its turns' time by label.

    ``uncertain`` is among them: the share of turns in which no score reached the card's threshold.
    """

    channel: int
    role: str
    analysed: bool
    speech_s: float
    turns: int
    emotions: int
    windows_scored: int
    frames_computed: int
    dropped: int
    labels: dict[str, float]


class Summary(ChannelFields, frozen=True, kw_only=True, tag_field="type", tag="summary"):
    """The call is over, and complete unless an ``error`` says otherwise.

    ``talk_over_s`` is the time of all ``talk_over`` events together.
    """

    duration_s: float
    max_lag_ms: float
    talk_over_s: float = 0.0
    channels: tuple[ChannelSummary, ...]


ChannelEvent: TypeAlias = Speech | Emotion | Turn | Gap | Lag | Error
Event: TypeAlias = Ready | Speech | Emotion | Turn | Gap | Lag | TalkOver | Alert | Error | Summary
EventType: TypeAlias = Literal[
    "ready", "speech", "emotion", "turn", "gap", "lag", "talk_over", "alert", "error", "summary"
]

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)


def encode_event(event: Event) -> bytes:
    """Return the event's JSON, one line of UTF-8 without its newline."""
    return _encoder.encode(event)


def decode_event(line: bytes | str) -> Event:
    """Return the event that a JSON line holds.

    Raises:
        msgspec.DecodeError: not JSON, or no event.
    """
    try:
        return _decoder.decode(line)
    except UnicodeError as error:  # what msgspec says of bytes inside a string, or a lone surrogate
        raise msgspec.DecodeError(f"not UTF-8: {error}") from error
    except RecursionError as error:
        raise msgspec.DecodeError(f"too many brackets: {error}") from error


def event_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of all events, made from the types above."""
    (schema,), definitions = msgspec.json.schema_components([Event], ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ser-stream events",
        "description": f"One event of a call, schema version {SCHEMA_VERSION}.",
        **schema,
        "$defs": definitions,
    }
