"""Genesys Cloud AudioHook, version 2: a conversation that an AudioHook Monitor streams.

Text messages are JSON, ``{"version": "2", "id": session, "type", "seq", "serverseq", "position",
"parameters"}``; ours have ``clientseq`` instead. ``open`` offers media, ``opened`` takes one; then
binary messages, until ``close``, which ``closed`` answers when everything is told: in ``event``
messages, with entities of type ``ser-stream.emotion`` and so on, whose ``data`` is our event.

Positions count what was paused or discarded, too: that becomes gaps. (AudioHook protocol reference
of the Genesys Cloud Developer Center, and its reference implementation.)
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import Meta, Struct

from streamer.audio import SAMPLE_RATE, AudioFormat
from streamer.call import Lost
from streamer.dialects import CloseCode, End, Handshake, Input, PeerError, Start
from streamer.dialects.reading import read_asked, read_text
from streamer.dialects.signatures import check_audiohook, unauthorized
from streamer.errors import AudioError
from streamer.events import Error, Event, Ready, Summary, encode_event

_NIL = "00000000-0000-0000-0000-000000000000"
_MAX_TEXT = 65_535
"""Characters of a text message, either way."""
_MAX_ENTITIES = 32_768
"""Characters of entities in one message."""
_MAX_POSITION_S = 24 * 3600
_NS = 1_000_000_000
_EXPECTED = "expected an AudioHook message, version 2"
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_DURATION = re.compile(r"PT([0-9]{1,9})?(?:\.([0-9]{1,12}))?S")
_ENCODINGS: dict[str, Literal["mulaw", "pcm_s16le"]] = {"PCMU": "mulaw", "L16": "pcm_s16le"}
_ROLES = {"external": "customer", "internal": "agent"}

_Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53)]
"""A number of messages, or of samples a second; small enough to be printed."""


class _Message(Struct, frozen=True, kw_only=True):
    """What all messages of the client have in common."""

    version: str
    id: str
    type: str
    seq: _Count
    serverseq: _Count
    position: str
    parameters: msgspec.Raw


class _Media(Struct, frozen=True, kw_only=True):
    type: str
    format: str
    channels: tuple[str, ...]
    rate: _Count


class _Open(Struct, frozen=True, kw_only=True):
    organization_id: str = msgspec.field(name="organizationId")
    conversation_id: str = msgspec.field(name="conversationId")
    media: tuple[_Media, ...]
    asks_languages: bool = msgspec.field(default=False, name="supportedLanguages")


class _Discarded(Struct, frozen=True, kw_only=True):
    """Parameters of ``discarded`` and ``resumed``."""

    start: str
    discarded: str


class _Close(Struct, frozen=True, kw_only=True):
    reason: str


_Kind = TypeVar("_Kind")


class _State(Enum):
    PREPARING = auto()
    ACTIVE = auto()
    PAUSED = auto()
    PROBE = auto()
    CLOSING = auto()
    DISCONNECTED = auto()
    CLOSED = auto()


class GenesysDialect:
    """AudioHook's server side of one session; see :class:`streamer.dialects.Dialect`.

    Args:
        handshake: the request for the WebSocket. Its URL may say ``step_ms``.
        min_step_ms: the shortest step that may be asked for.
        api_key: what the ``X-API-KEY`` header must say. Unchecked where it is empty.
        client_secret: of the integration, in base64: the request must be signed with it.
            Unchecked where it is empty.
        clock: seconds since 1970, UTC; for the age of the signature alone.

    Raises:
        PeerError: the key or the signature is not there or not good.
        ConfigError: a client secret that is not base64.
    """

    def __init__(
        self,
        handshake: Handshake,
        *,
        min_step_ms: int = 100,
        api_key: str = "",
        client_secret: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        check_audiohook(handshake, api_key=api_key, client_secret=client_secret, now_s=clock())
        self._asked = read_asked(handshake.query, min_step_ms=min_step_ms)
        self._organization = handshake.header("audiohook-organization-id")
        self._id = handshake.header("audiohook-session-id") or ""
        self._state = _State.PREPARING
        self._fault: PeerError | None = None
        self._fatal: Error | None = None
        self._has_begun = False
        self._seq = self._clientseq = 0
        self._audio = AudioFormat()
        self._num_blocks = self._num_lost = 0
        self._entities: list[str] = []
        self._outbox: list[str] = []

    def receive_text(self, text: str) -> list[Input]:
        """Return what a text message means; its answer, if it has one, is there at once.

        Raises:
            PeerError: not a message of the protocol, out of sequence, or not at this time. The
                peer is told with ``disconnect``.
        """
        return self._guarded(lambda: self._receive(self._read(text)))

    def receive_bytes(self, chunk: bytes) -> list[Input]:
        """Return a binary message's audio; none of a connection probe.

        Raises:
            PeerError: before ``opened``, in a pause, after ``close``, or not whole samples.
        """
        return self._guarded(lambda: self._hear(chunk))

    def receive_event(self, event: Event) -> None:
        """Take an event of the call; its ``summary`` is followed by ``closed``."""
        if isinstance(event, Error) and event.fatal:
            self._fatal = event
            if not self._has_begun:  # there is no call, and none will be
                self._disconnect("error", event.message)
        self._has_begun = self._has_begun or isinstance(event, Ready)
        if self._state not in (_State.ACTIVE, _State.PAUSED, _State.CLOSING):
            return
        data = encode_event(event).decode()
        kind = event.__struct_config__.tag
        if sum(map(len, self._entities)) + len(data) > _MAX_ENTITIES:
            self._flush()
        self._entities.append(f'{{"type":"ser-stream.{kind}","data":{data}}}')
        if not isinstance(event, Summary):
            return
        if self._state is _State.CLOSING:
            self._state = _State.CLOSED
            self._send("closed", {})
        elif self._fatal is not None:
            self._disconnect("error", self._fatal.message)
        else:  # the server ends the call
            self._disconnect("completed", "the server ended the session")

    def messages_to_send(self) -> list[str]:
        """Return the messages that are due; events that came together go in one."""
        self._flush()
        messages, self._outbox = self._outbox, []
        return messages

    def _guarded(self, take: Callable[[], list[Input]]) -> list[Input]:
        """Take a message; a fault ends the session, and the peer is told, unless it ends anyhow."""
        if self._fault is not None:
            raise self._fault
        try:
            return take()
        except PeerError as fault:
            if self._state is _State.CLOSING:
                raise
            self._fault = fault
            self._disconnect(
                "unauthorized" if fault.code == "unauthorized" else "error", str(fault)
            )
            raise

    def _read(self, text: str) -> _Message:
        """Return a message that is one of this session, in sequence."""
        message = read_text(text, _Message, expected=_EXPECTED, max_text=_MAX_TEXT)
        if message.version != "2":
            raise PeerError(f"version is {message.version[:40]!r}: expected '2'")
        if not _UUID.fullmatch(message.id):
            raise PeerError(f"id is {message.id[:80]!r}: expected a UUID")
        if message.seq != self._clientseq + 1:
            raise PeerError(f"seq is {message.seq}: expected {self._clientseq + 1}")
        if message.serverseq > self._seq:
            raise PeerError(f"serverseq is {message.serverseq}: expected 0 to {self._seq}")
        _nanoseconds("position", message.position)
        self._clientseq = message.seq
        self._id = self._id or message.id
        if message.id.lower() != self._id.lower():
            raise PeerError(f"id is {message.id!r}: expected {self._id[:80]!r}, the session's")
        return message

    def _receive(self, message: _Message) -> list[Input]:
        match message.type:
            case "open":
                return self._open(_parameters(message, _Open))
            case "close":
                return self._close(_parameters(message, _Close))
            case "discarded":
                return self._lose(_parameters(message, _Discarded), "discarded")
            case "resumed":
                gap = self._lose(_parameters(message, _Discarded), "paused")
                if self._state is _State.PAUSED:
                    self._state = _State.ACTIVE
                return gap
            case "ping" | "update" | "paused" | "error":
                _parameters(message, dict)
            case _:
                raise PeerError(
                    f"type is {message.type[:40]!r}: expected open, close, discarded, error, "
                    "paused, ping, resumed or update",
                    close_code=CloseCode.UNSUPPORTED,
                )
        if message.type == "paused" and self._state is _State.ACTIVE:
            self._state = _State.PAUSED
        elif message.type == "ping":
            self._send("pong", {})
        elif message.type == "update" and self._state in (_State.ACTIVE, _State.PAUSED):
            self._send("updated", {})
        return []

    def _open(self, parameters: _Open) -> list[Input]:
        if self._state is not _State.PREPARING:
            raise PeerError("a second 'open': expected one")
        organization = parameters.organization_id
        if self._organization is not None and organization != self._organization:
            raise unauthorized(
                f"organizationId is {organization[:80]!r}: expected that of the "
                "Audiohook-Organization-Id header"
            )
        if not _UUID.fullmatch(parameters.conversation_id):
            raise PeerError(
                f"conversationId is {parameters.conversation_id[:80]!r}: expected a UUID"
            )
        is_probe = parameters.conversation_id == _NIL
        media = _choose(parameters.media, may_be_none=is_probe)
        opened: dict[str, Any] = {"media": [media] if media else [], "startPaused": False}
        if parameters.asks_languages:
            opened["supportedLanguages"] = []  # nothing here depends on the language
        self._send("opened", opened)
        if is_probe or media is None:
            self._state = _State.PROBE
            return []
        self._state = _State.ACTIVE
        self._audio = _format(media)
        roles = tuple(_ROLES[channel] for channel in media.channels)
        return [
            Start(
                audio=self._audio,
                roles=roles,
                step_s=self._asked.step_s,
                call_id=parameters.conversation_id,
            )
        ]

    def _close(self, parameters: _Close) -> list[Input]:
        match self._state:
            case _State.ACTIVE | _State.PAUSED:
                self._state = _State.CLOSING
                return [End()]
            case _State.PREPARING | _State.PROBE | _State.DISCONNECTED:  # no call to wait for
                self._state = _State.CLOSED
                self._send("closed", {})
        return []

    def _hear(self, chunk: bytes) -> list[Input]:
        if self._state is _State.PROBE:
            return []
        if self._state is not _State.ACTIVE:
            raise PeerError(
                f"{len(chunk)} bytes of audio while {self._state.name.lower()}: expected them "
                "after 'opened', before 'close', and not while paused"
            )
        num_blocks, rest = divmod(len(chunk), self._audio.bytes_per_block)
        if rest:
            raise PeerError(
                f"{len(chunk)} bytes of audio: expected a multiple of "
                f"{self._audio.bytes_per_block}, whole samples of every channel",
                code=AudioError.code,
                close_code=CloseCode.INVALID_DATA,
            )
        self._num_blocks += num_blocks
        return [chunk] if chunk else []

    def _lose(self, parameters: _Discarded, reason: str) -> list[Input]:
        """Return the gap up to where the stream goes on, if there is one."""
        start_ns = _nanoseconds("start", parameters.start)
        end_ns = start_ns + _nanoseconds("discarded", parameters.discarded)
        if self._state not in (_State.ACTIVE, _State.PAUSED):
            return []
        received = self._num_blocks * SAMPLE_RATE // self._audio.sample_rate
        num_samples = round(end_ns * SAMPLE_RATE / _NS) - received - self._num_lost
        if num_samples <= 0:
            return []
        self._num_lost += num_samples
        return [Lost(num_samples, reason)]

    def _disconnect(self, reason: str, info: str) -> None:
        if self._state not in (_State.DISCONNECTED, _State.CLOSED):
            self._state = _State.DISCONNECTED
            self._send("disconnect", {"reason": reason, "info": info})

    def _flush(self) -> None:
        """Put the events that wait into a message."""
        entities, self._entities = self._entities, []
        if entities:
            self._put("event", f'{{"entities":[{",".join(entities)}]}}')

    def _send(self, kind: str, parameters: dict[str, Any]) -> None:
        self._flush()
        self._put(kind, msgspec.json.encode(parameters).decode())

    def _put(self, kind: str, parameters: str) -> None:
        self._seq += 1
        head = {
            "version": "2",
            "id": self._id if _UUID.fullmatch(self._id) else _NIL,
            "type": kind,
            "seq": self._seq,
            "clientseq": self._clientseq,
            "parameters": msgspec.Raw(parameters.encode()),
        }
        self._outbox.append(msgspec.json.encode(head).decode())


def _choose(offered: tuple[_Media, ...], *, may_be_none: bool) -> _Media | None:
    """Return the best media of those offered: stereo, else the customer; PCMU before L16."""
    servable = [media for media in offered if _is_servable(media)]
    if not servable and not may_be_none:
        raise PeerError(
            f"none of {len(offered)} media can be served: expected PCMU or L16, external, internal",
            code=AudioError.code,
            close_code=CloseCode.UNSUPPORTED,
        )

    def rank(media: _Media) -> tuple[bool, ...]:
        is_mono, is_agent = len(media.channels) < 2, "external" not in media.channels
        return is_mono, is_agent, media.format != "PCMU"

    return min(servable, key=rank, default=None)


def _is_servable(media: _Media) -> bool:
    channels = set(media.channels)
    is_known = media.type == "audio" and media.format in _ENCODINGS and channels <= set(_ROLES)
    if not is_known or len(channels) != len(media.channels):
        return False
    try:
        _format(media)
    except AudioError:
        return False
    return True


def _format(media: _Media) -> AudioFormat:
    return AudioFormat(
        encoding=_ENCODINGS[media.format], sample_rate=media.rate, channels=len(media.channels)
    )


def _nanoseconds(name: str, text: str) -> int:
    """Return a duration as whole nanoseconds; AudioHook has ISO 8601 in seconds alone."""
    found = _DURATION.fullmatch(text)
    if found is None or found[1] is found[2] is None:
        raise PeerError(f"{name} is {text[:40]!r}: expected seconds, such as 'PT1.5S'")
    whole, fraction = found[1] or "0", (found[2] or "").ljust(9, "0")[:9]
    if int(whole) > _MAX_POSITION_S:
        raise PeerError(f"{name} is {text[:40]!r}: expected at most {_MAX_POSITION_S} s")
    return int(whole) * _NS + int(fraction)


def _parameters(message: _Message, kind: type[_Kind]) -> _Kind:
    text = bytes(message.parameters).decode()
    return read_text(text, kind, expected=f"in parameters of {message.type!r}", max_text=_MAX_TEXT)
