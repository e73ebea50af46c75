"""vosk-server: what Asterisk, FreeSWITCH, Jigasi and others send audio to for recognition.

Optionally ``{"config": {"sample_rate": 16000, ...}}``; then binary messages, 16-bit linear PCM,
little-endian, mono, each answered by exactly one JSON text; then ``{"eof": 1}``, answered by the
last one. (vosk-server, ``websocket/asr_server.py``, and its sample clients, which send, wait for
the answer, and send again.)

An answer is a ``partial`` result while nothing is final, a ``text`` once a turn is over. There are
no words in them; what was recognised is beside: ``emotion`` is the turn's event, ``events`` all
events since the answer before. Each event is in exactly one answer, in order.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from streamer.audio import AudioFormat
from streamer.dialects import End, Handshake, Input, PeerError, Start
from streamer.dialects.reading import read_asked, read_text
from streamer.errors import AudioError
from streamer.events import Error, Event, Ready, Summary, Turn

_MAX_TEXT = 65_536
"""Characters of a text message; a configuration may bring a list of phrases."""
_DEFAULT_RATE = 8_000
"""As vosk-server's own, where neither ``config`` nor the URL names one."""
_MAX_WAITING = 256
"""Events that may wait for their turn's answer; beyond, one answer takes all of them."""
_EXPECTED = 'expected {"config":{"sample_rate":16000}} before audio, or {"eof":1} after it'


class _Config(Struct, frozen=True, kw_only=True):
    """What is recognised here has no use for the words of vosk's configuration."""

    sample_rate: float | UnsetType = UNSET


class _Message(Struct, frozen=True, kw_only=True):
    config: _Config | UnsetType = UNSET
    eof: Any = UNSET


class _Partial(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer while no turn is over."""

    partial: Literal[""]
    events: tuple[Event, ...] = ()


class _Final(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The answer once a turn is over, and the last one."""

    text: str
    result: tuple[()]
    emotion: Turn | UnsetType = UNSET
    events: tuple[Event, ...] = ()


_encoder = msgspec.json.Encoder()


class VoskDialect:
    """vosk-server's side of one connection; see :class:`streamer.dialects.Dialect`.

    Args:
        handshake: the request for the WebSocket. Its URL may say ``sample_rate``, for clients that
            send no configuration; ``call_id``, ``roles`` (here one, ``customer`` or ``agent``) and
            ``step_ms``; and ``text=label``: the label of a turn is then its ``text``, for clients
            that hand nothing else on.
        min_step_ms: the shortest step that may be asked for.

    Raises:
        PeerError: the URL names a rate, a role or the like that cannot be.
    """

    def __init__(self, handshake: Handshake, *, min_step_ms: int = 100) -> None:
        asked = dict(handshake.query)
        self._asked = read_asked(handshake.query, min_step_ms=min_step_ms)
        self._audio = _format(_rate(asked.get("sample_rate", str(_DEFAULT_RATE))))
        if asked.get("text", "") not in ("", "label"):
            raise PeerError(f"text is {asked['text'][:80]!r}: expected 'label', or none")
        self._tells_label = asked.get("text") == "label"
        self._has_started = self._has_ended = self._has_begun = False
        self._events: deque[Event] = deque()
        self._num_turns = 0
        self._outbox: list[str] = []

    def receive_text(self, text: str) -> list[Input]:
        """Return what a text message means; a configuration has no answer.

        Raises:
            PeerError: not JSON, neither a configuration nor the end, or not at this time.
        """
        # Not strict, as clients are used to: a rate may be a string of digits.
        message = read_text(text, _Message, expected=_EXPECTED, max_text=_MAX_TEXT, strict=False)
        if self._has_ended:
            raise PeerError('a message after "eof": expected none')
        if message.config is not UNSET:
            self._configure(message.config)
        elif message.eof is UNSET:
            raise PeerError(f"a message without config and eof: {_EXPECTED}")
        if message.eof is UNSET:
            return []
        if not message.eof:
            raise PeerError(f"eof is {message.eof!r}: expected 1")
        self._has_ended = True
        return [*self._begin(), End()]

    def receive_bytes(self, chunk: bytes) -> list[Input]:
        """Return a binary message's audio; its answer is there at once.

        Raises:
            PeerError: after the end.
        """
        if self._has_ended:
            raise PeerError(f'{len(chunk)} bytes of audio after "eof": expected none')
        self._answer()
        return [*self._begin(), chunk]

    def receive_event(self, event: Event) -> None:
        """Take an event, for the next answer; the last one of all is the answer itself."""
        self._events.append(event)
        self._num_turns += isinstance(event, Turn)
        self._has_begun = self._has_begun or isinstance(event, Ready)
        # A call that could not begin has no summary: its error must not wait for one.
        refused = isinstance(event, Error) and event.fatal and not self._has_begun
        if refused or isinstance(event, Summary):
            self._outbox.append(self._final(len(self._events)))

    def messages_to_send(self) -> list[str]:
        """Return the answers that are due: one a binary message, one when all is over."""
        messages, self._outbox = self._outbox, []
        return messages

    def _configure(self, config: _Config) -> None:
        if config.sample_rate is UNSET:
            return
        audio = _format(config.sample_rate)
        if self._has_started and audio != self._audio:
            raise PeerError(
                f"sample_rate {audio.sample_rate} after audio of {self._audio.sample_rate}: "
                "expected the same, or a new connection",
                code=AudioError.code,
            )
        self._audio = audio

    def _begin(self) -> list[Input]:
        if self._has_started:
            return []
        self._has_started = True
        asked = self._asked
        return [
            Start(audio=self._audio, roles=asked.roles, step_s=asked.step_s, call_id=asked.call_id)
        ]

    def _answer(self) -> None:
        if not self._num_turns:
            self._outbox.append(_encode(_Partial(partial="", events=self._take(len(self._events)))))
            return
        ends = (place for place, event in enumerate(self._events, 1) if isinstance(event, Turn))
        too_many = len(self._events) > _MAX_WAITING
        self._outbox.append(self._final(len(self._events) if too_many else next(ends)))

    def _final(self, num_events: int) -> str:
        events = self._take(num_events)
        turns = [event for event in events if isinstance(event, Turn)]
        return _encode(
            _Final(
                text=turns[-1].label if turns and self._tells_label else "",
                result=(),
                emotion=turns[-1] if turns else UNSET,
                events=events,
            )
        )

    def _take(self, num_events: int) -> tuple[Event, ...]:
        events = tuple(self._events.popleft() for _ in range(num_events))
        self._num_turns -= sum(isinstance(event, Turn) for event in events)
        return events


def _encode(answer: _Partial | _Final) -> str:
    return _encoder.encode(answer).decode()


def _rate(text: str) -> float:
    if not (text.isascii() and text.isdigit() and len(text) <= 6):
        raise PeerError(
            f"sample_rate is {text[:40]!r}: expected whole Hz in digits", code=AudioError.code
        )
    return float(text)


def _format(sample_rate: float) -> AudioFormat:
    try:
        whole = int(sample_rate) if sample_rate.is_integer() else sample_rate
        return AudioFormat(encoding="pcm_s16le", sample_rate=whole)  # type: ignore[arg-type]
    except AudioError as error:
        raise PeerError(str(error), code=error.code) from error
