"""Our own protocol: one JSON message that starts, binary audio cut anywhere, one that ends.

``{"type": "start", "audio": {"encoding", "sample_rate", "channels"}, "roles", "call_id",
"step_ms"}``, every field optional; then binary messages; then ``{"type": "end"}``. A client that
knows nothing of this and just sends audio is heard, too: as 16 kHz mono ``pcm_s16le``, or as the
query parameters of its URL say. What comes back is events as JSON text, and what has arrived:
``{"type": "ack", "session", "samples", "seq"}``. A client that was cut off begins its next
connection with ``{"type": "resume", "session", "seq", "samples"}``, and says with ``{"type": "ack",
"seq"}`` what need not be kept for it.

What is not understood is refused: an unknown field is a typing error that would change what is
heard in silence.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeAlias

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from streamer.audio import AudioFormat
from streamer.dialects import (
    Acknowledge,
    CloseCode,
    End,
    Handshake,
    Input,
    PeerError,
    Resume,
    Start,
)
from streamer.errors import AudioError, ConfigError
from streamer.events import Event, encode_event

_MAX_TEXT = 4096
"""Characters of a text message."""
_MAX_CALL_ID = 128
_SHIFT_MS = 10
"""Windows end where frames do."""
_MAX_STEP_MS = 10_000
_PARAMETERS = {
    "encoding": "encoding",
    "sample_rate": "sample_rate",
    "rate": "sample_rate",
    "channels": "channels",
    "roles": "roles",
    "step_ms": "step_ms",
    "call_id": "call_id",
}
_NUMBERS = ("sample_rate", "channels", "step_ms")
_EXPECTED = (
    'expected {"type":"start","audio":{"encoding":…,"sample_rate":…,"channels":…},"roles":[…],'
    '"call_id":…,"step_ms":…} with any of these fields, {"type":"end"}, '
    '{"type":"resume","session":…,"seq":…} or {"type":"ack","seq":…}'
)


_Int: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
"""Small enough to be printed and divided; ranges are checked where the numbers mean something."""
_Count: TypeAlias = Annotated[int, Meta(ge=0, le=2**53 - 1)]
"""What JavaScript can count to."""


class Audio(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the binary messages are; see :class:`streamer.audio.AudioFormat`."""

    encoding: str | UnsetType = UNSET
    sample_rate: _Int | UnsetType = UNSET
    channels: _Int | UnsetType = UNSET


class StartMessage(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="start"
):
    """The first message: what will come. ``roles`` names who speaks on each channel."""

    audio: Audio = Audio()
    roles: tuple[str, ...] | UnsetType = UNSET
    call_id: str | UnsetType = UNSET
    step_ms: _Int | UnsetType = UNSET


class EndMessage(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="end"
):
    """The last message: no more audio will come, everything that is known may be told."""


class ResumeMessage(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="resume"
):
    """The first message of a client that was cut off: it has the events up to ``seq``.

    It can send the call's audio again from sample ``samples`` on, if it says so; else from wherever
    the server's ``ack`` tells it to.
    """

    session: Annotated[str, Meta(max_length=64)]
    seq: _Int
    samples: _Count | UnsetType = UNSET


class AckMessage(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="ack"
):
    """The client has the events up to ``seq``."""

    seq: _Int


class Arrived(Struct, frozen=True, kw_only=True, tag_field="type", tag="ack"):
    """What the server says of a stream: ``samples`` of each channel, at its own rate, arrived.

    ``seq`` is that of the newest event that was sent on this connection, or was there before.
    """

    session: str
    samples: int
    seq: int


@dataclass(frozen=True, kw_only=True)
class ResumeFrom(Resume):
    """A native client is back, and can send again from sample ``samples`` on; None: from any."""

    samples: int | None = None


Message: TypeAlias = StartMessage | EndMessage | ResumeMessage | AckMessage
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


class NativeDialect:
    """The native protocol, for the time of one connection; see :class:`streamer.dialects.Dialect`.

    Args:
        handshake: its query parameters count: ``encoding``, ``sample_rate`` or ``rate``,
            ``channels``, ``roles`` (with commas between), ``step_ms``, ``call_id``.
        min_step_ms: the shortest step that a peer may ask for.

    Raises:
        PeerError: a parameter that is unknown, given twice, or not of its kind.
    """

    def __init__(self, handshake: Handshake, *, min_step_ms: int = 100) -> None:
        self._asked = _read_query(handshake.query)
        self._min_step_ms = min_step_ms
        self._has_started = self._has_ended = False
        self._to_send: list[str] = []

    def receive_text(self, text: str) -> list[Input]:
        """Return what a text message means.

        Raises:
            PeerError: not JSON, not a message of the protocol, or not at this time.
        """
        match self._decode(text):
            case AckMessage() as message:
                if not self._has_started:
                    raise PeerError('an "ack" before there was an event: expected a "start"')
                return [Acknowledge(seq=message.seq)]
            case _ if self._has_ended:
                raise PeerError('a message after "end": expected none')
            case EndMessage():
                start = self._begin(StartMessage())
                self._has_ended = True
                return [*start, End()]
            case _ if self._has_started:
                raise PeerError(
                    'a second "start" or "resume", or one after audio: expected audio or "end"'
                )
            case ResumeMessage() as message:
                self._has_started = True
                samples = None if message.samples is UNSET else message.samples
                return [ResumeFrom(session=message.session, seq=message.seq, samples=samples)]
            case StartMessage() as message:
                return self._begin(message)

    def receive_bytes(self, chunk: bytes) -> list[Input]:
        """Return a binary message's audio, after the start that it implies if there was none.

        Raises:
            PeerError: after the end, or the start that it implies cannot be.
        """
        if self._has_ended:
            raise PeerError(f'{len(chunk)} bytes of audio after "end": expected none')
        return [*self._begin(StartMessage()), chunk]

    def receive_event(self, event: Event) -> None:
        """Take an event, to be sent as JSON."""
        self._to_send.append(encode_event(event).decode())

    def receive_progress(self, session: str, num_samples: int, seq: int) -> None:
        """Learn how much has arrived of the stream; the peer is to hear of it."""
        arrived = Arrived(session=session, samples=num_samples, seq=seq)
        self._to_send.append(_encoder.encode(arrived).decode())

    def messages_to_send(self) -> list[str]:
        """Return the messages that the peer is to get now, each once."""
        messages, self._to_send = self._to_send, []
        return messages

    def _decode(self, text: str) -> Message:
        if len(text) > _MAX_TEXT:
            raise PeerError(
                f"a text message of {len(text)} characters: expected at most {_MAX_TEXT}",
                code="too_big",
                close_code=CloseCode.TOO_BIG,
            )
        try:
            return _decoder.decode(text)
        except msgspec.ValidationError as error:
            raise PeerError(f"{error}: {_EXPECTED}") from error
        except (ValueError, RecursionError) as error:  # not JSON; a lone surrogate; brackets
            raise PeerError(
                f"a text message that is not JSON ({error}): {_EXPECTED}",
                code="bad_json",
                close_code=CloseCode.INVALID_DATA,
            ) from error

    def _begin(self, message: StartMessage) -> list[Input]:
        if self._has_started:
            return []
        said, asked = message.audio, self._asked.audio
        wanted = {
            "encoding": _agree("encoding", said.encoding, asked.encoding),
            "sample_rate": _agree("sample_rate", said.sample_rate, asked.sample_rate),
            "channels": _agree("channels", said.channels, asked.channels),
        }
        given = {name: value for name, value in wanted.items() if value is not UNSET}
        try:
            audio = AudioFormat(**given)
        except AudioError as error:
            raise PeerError(str(error), code=error.code) from error
        roles = _agree("roles", message.roles, self._asked.roles)
        step_ms = _agree("step_ms", message.step_ms, self._asked.step_ms)
        call_id = _agree("call_id", message.call_id, self._asked.call_id)
        if call_id is not UNSET and not (
            call_id.isprintable() and 0 < len(call_id) <= _MAX_CALL_ID
        ):
            raise PeerError(
                f"call_id of {len(call_id)} characters: expected 1 to {_MAX_CALL_ID} printable ones"
            )
        if step_ms is not UNSET:
            self._check_step(step_ms)
        self._has_started = True
        return [
            Start(
                audio=audio,
                roles=() if roles is UNSET else roles,
                step_s=None if step_ms is UNSET else step_ms / 1000,
                call_id="" if call_id is UNSET else call_id,
            )
        ]

    def _check_step(self, step_ms: int) -> None:
        if not self._min_step_ms <= step_ms <= _MAX_STEP_MS or step_ms % _SHIFT_MS:
            raise PeerError(
                f"step of {step_ms} ms: expected {self._min_step_ms} to {_MAX_STEP_MS} ms, a "
                f"multiple of {_SHIFT_MS} ms",
                code=ConfigError.code,
            )


def _agree(name: str, said: Any, asked: Any) -> Any:
    """Return what the start message or the URL gives; both may only say the same."""
    if said is UNSET or asked is UNSET or said == asked:
        return asked if said is UNSET else said
    raise PeerError(f"{name} is {said!r} in the start message but {asked!r} in the URL")


def _read_query(query: Iterable[tuple[str, str]]) -> StartMessage:
    audio: dict[str, Any] = {}
    found: dict[str, Any] = {"type": "start", "audio": audio}
    for parameter, value in query:
        name = _PARAMETERS.get(parameter)
        if name is None:
            _refuse_query(f"{parameter!r} is unknown, expected one of {', '.join(_PARAMETERS)}")
        target = audio if name in Audio.__struct_fields__ else found
        if name in target:
            _refuse_query(f"{name} is given twice, expected one")
        if name in _NUMBERS and not (value.isascii() and value.isdigit()):
            _refuse_query(f"{name} is {value[:40]!r}, expected a whole number in digits")
        target[name] = value.split(",") if name == "roles" else value
    try:
        return msgspec.convert(found, StartMessage, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        _refuse_query(str(error))


def _refuse_query(sentence: str) -> NoReturn:
    raise PeerError(f"query parameters: {sentence}")
