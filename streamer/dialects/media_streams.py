"""What the telephone platforms' media streams share: one JSON conversation, told four ways.

A platform opens a WebSocket, says ``start``, then sends ``media``, each with a piece of one track
as base64, and at the end ``stop``. Twilio, Telnyx, Plivo and Exotel differ in their fields' names
alone, so each of their dialects reads its own messages and leaves the rest to `MediaStream`.

Nothing is sent to the platform: it would not know what to do with it. Events are at ``/v1/watch``
and ``/v1/calls``. Messages of other kinds (``connected``, ``dtmf``, ``mark``, whatever a platform
adds) say nothing about the audio and are ignored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NoReturn, Protocol, TypeAlias

from msgspec import Meta, Struct

from streamer.audio import AudioFormat, Encoding
from streamer.call import ROLES
from streamer.dialects import CloseCode, End, Handshake, Input, PeerError, Start
from streamer.dialects.reading import read_asked, read_text
from streamer.dialects.tracks import Pacing, Piece, Tracks
from streamer.events import Event

MAX_TEXT = 262_144
"""Characters of a message. Exotel's largest piece is 100 KB: 137 thousand characters of base64."""
TRACKS = ("inbound", "outbound")
"""What the platform hears from the line, and what it sends there; the channels, in this order."""
_TRACK_CHOICES = {"inbound": TRACKS[:1], "outbound": TRACKS[1:], "both": TRACKS}
_ROLE_OF_TRACK = {"inbound": "customer", "outbound": "agent"}
_PARAMETERS = ("call_id", "step_ms", "roles", "tracks")

Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
"""A number of the platform: of a message or a piece, or milliseconds, since 1970 at most."""


class MediaFields(Struct, frozen=True, kw_only=True):
    """A piece of audio: ``chunk`` counts the pieces, ``timestamp`` is in milliseconds."""

    payload: bytes
    track: str | None = None
    chunk: Count | None = None
    timestamp: Count | None = None


class Message(Protocol):
    """Any message of a platform, as its dialect's decoder makes it; see `MediaStream`."""

    @property
    def event(self) -> str:
        """What kind of message it is."""

    @property
    def stream_id(self) -> str:
        """Whose it is; empty where the platform does not say it here."""

    @property
    def start(self) -> object | None:
        """The fields of a ``start``."""

    @property
    def media(self) -> MediaFields | None:
        """The fields of a ``media``."""


@dataclass(frozen=True, kw_only=True)
class StreamStart:
    """What a platform says will come.

    ``tracks`` is empty where the platform does not say. ``parameters`` are those that the operator
    wrote into the call flow; only the names of `MediaStream` are looked at.
    """

    stream_id: str
    call_id: str
    encoding: Encoding
    sample_rate: int
    tracks: tuple[str, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)


class MediaStream(ABC):
    """One platform's media stream, for the time of one connection; a `Dialect`.

    A platform's dialect says how its messages are read: ``message_type`` is its kind of `Message`,
    ``expected`` is that in words, ``pacing`` says how exact its times are. Numbers may come as
    strings, as most platforms send them.

    The operator may say more than the platform does, in the query of the URL or as the platform's
    own custom parameters: ``call_id`` (a name for the call in place of the platform's),
    ``step_ms``, ``roles`` (one a channel, with commas between) and, where ``start`` does not say
    it, ``tracks`` (``inbound``, the default, ``outbound`` or ``both``).

    Args:
        handshake: the platform's HTTP request.
        min_step_ms: the shortest step that an operator may ask for.
    """

    message_type: ClassVar[type[Any]]
    expected: ClassVar[str]
    pacing: ClassVar[Pacing] = Pacing()

    def __init__(self, handshake: Handshake, *, min_step_ms: int = 100) -> None:
        self.handshake = handshake
        self._min_step_ms = min_step_ms
        self._stream_id = ""
        self._channels: dict[str, int] = {}
        self._tracks: Tracks | None = None
        self._has_ended = False

    @abstractmethod
    def read_start(self, message: Any) -> StreamStart:
        """Return what a ``start`` message says; its ``start`` is there.

        Raises:
            PeerError: a format or tracks that are not served.
        """

    def read_audio(self, payload: bytes) -> bytes:
        """Return a piece's audio as the bytes of its format."""
        return payload

    def receive_text(self, text: str) -> list[Input]:
        """Return what a text message means.

        Raises:
            PeerError: not a message of the platform, or not at this time.
        """
        message: Message = read_text(
            text, self.message_type, expected=self.expected, max_text=MAX_TEXT, strict=False
        )
        if message.event not in ("start", "media", "stop") or self._has_ended:
            return []  # what was sent before "stop" may come after it
        if message.event == "start":
            return [self._begin(message)]
        if self._tracks is None:
            raise PeerError(f'"{message.event}" before "start": expected "start" first')
        if message.stream_id not in ("", self._stream_id):
            raise PeerError(
                f"a message of stream {message.stream_id[:80]!r}: expected "
                f"{self._stream_id[:80]!r}, one stream a connection"
            )
        if message.event == "stop":
            self._has_ended = True
            return [*self._tracks.receive_end(), End()]
        if message.media is None:
            raise PeerError(f'"media" without its fields: {self.expected}')
        media = message.media
        piece = Piece(media.chunk, media.timestamp, self.read_audio(media.payload))
        return [*self._tracks.receive(self._channel_of(media.track), piece)]

    def receive_bytes(self, chunk: bytes) -> list[Input]:
        """Refuse a binary message: the platforms send JSON.

        Raises:
            PeerError: always.
        """
        raise PeerError(
            f"a binary message of {len(chunk)} bytes: expected JSON text",
            code="unsupported",
            close_code=CloseCode.UNSUPPORTED,
        )

    def receive_event(self, event: Event) -> None:  # noqa: B027 - there is nothing to do
        """Take an event of the call: the platform is not told of it."""

    def messages_to_send(self) -> list[str]:
        """Return nothing: the platform is not told of anything."""
        return []

    def _begin(self, message: Message) -> Start:
        if self._tracks is not None:
            raise PeerError('a second "start": expected audio or "stop"')
        if message.start is None:
            raise PeerError(f'"start" without its fields: {self.expected}')
        said = self.read_start(message)
        parameters = _texts(self.handshake.query, said.parameters)
        asked = read_asked(
            [item for item in parameters if item[0] in ("call_id", "step_ms")],
            min_step_ms=self._min_step_ms,
        )
        own = read_asked([("call_id", said.call_id)], min_step_ms=self._min_step_ms)
        tracks = said.tracks or _tracks_of(_agreed("tracks", parameters) or "inbound")
        audio = AudioFormat(
            encoding=said.encoding, sample_rate=said.sample_rate, channels=len(tracks)
        )
        start = Start(
            audio=audio,
            roles=_roles_of(_agreed("roles", parameters), tracks),
            step_s=asked.step_s,
            call_id=asked.call_id or own.call_id,
            as_tracks=True,
        )
        self._stream_id = said.stream_id
        self._channels = {track: channel for channel, track in enumerate(tracks)}
        self._tracks = Tracks(
            len(tracks),
            sample_rate=audio.sample_rate,
            bytes_per_sample=audio.bytes_per_sample,
            pacing=self.pacing,
        )
        return start

    def _channel_of(self, track: str | None) -> int:
        if track is None and len(self._channels) == 1:
            return 0
        channel = self._channels.get(track or "")
        if channel is None:
            found = "no track" if track is None else f"track {track[:80]!r}"
            raise PeerError(
                f"audio of {found}: expected {' or '.join(self._channels)}, as "
                '"start" or the parameter "tracks" say'
            )
        return channel


def refuse_format(found: str, expected: str) -> NoReturn:
    """Refuse audio of a format that is not served.

    Raises:
        PeerError: always.
    """
    raise PeerError(f"audio of {found[:120]}: expected {expected}", code="bad_audio")


def check_tracks(tracks: tuple[str, ...]) -> tuple[str, ...]:
    """Return the tracks of a ``start`` message in the order of the channels.

    Raises:
        PeerError: none, one twice, or others than inbound and outbound.
    """
    if not tracks or len(set(tracks)) != len(tracks) or not set(tracks) <= set(TRACKS):
        found = ", ".join(tracks[:4])
        raise PeerError(f'tracks "{found[:80]}": expected inbound, outbound or both')
    return tuple(track for track in TRACKS if track in tracks)


def _texts(
    query: tuple[tuple[str, str], ...], parameters: Mapping[str, Any]
) -> list[tuple[str, str]]:
    """Return what the URL and the platform's custom parameters say under the names looked at."""
    found = []
    for name, value in [*query, *parameters.items()]:
        if name not in _PARAMETERS:
            continue  # the operator's own, for somebody else
        if not isinstance(value, str):
            raise PeerError(f"parameter {name} is no text: expected a string")
        found.append((name, value))
    return found


def _agreed(name: str, parameters: list[tuple[str, str]]) -> str | None:
    """Return a parameter's value; who says it twice may only say the same."""
    values = dict.fromkeys(value for key, value in parameters if key == name)
    if len(values) > 1:
        found = " and ".join(repr(value[:80]) for value in values)
        raise PeerError(f"{name} is {found}: expected one")
    return next(iter(values), None)


def _tracks_of(asked: str) -> tuple[str, ...]:
    tracks = _TRACK_CHOICES.get(asked)
    if tracks is None:
        raise PeerError(f"tracks is {asked[:80]!r}: expected one of {', '.join(_TRACK_CHOICES)}")
    return tracks


def _roles_of(asked: str | None, tracks: tuple[str, ...]) -> tuple[str, ...]:
    if asked is None:
        return tuple(_ROLE_OF_TRACK[track] for track in tracks)
    roles = tuple(asked.split(","))
    if len(roles) != len(tracks) or not set(roles) <= set(ROLES):
        raise PeerError(
            f"roles is {asked[:80]!r}: expected one of {', '.join(ROLES)} for each of "
            f"{', '.join(tracks)}, with commas between"
        )
    return roles
