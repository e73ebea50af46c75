"""One WebSocket: from its handshake to its close, in whatever dialect."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

from msgspec.structs import replace
from starlette.websockets import WebSocket

from streamer.call import Lost, TrackChunk
from streamer.dialects import (
    Acknowledge,
    CloseCode,
    Dialect,
    End,
    Handshake,
    Input,
    PeerError,
    Resume,
    Start,
)
from streamer.dialects.native import NativeDialect
from streamer.dialects.registry import NATIVE_PATH, DialectSecrets, dialect_name, make_dialect
from streamer.doors import guest_of, handshake_of
from streamer.events import Error, Event, Ready
from streamer.hub import RETRY_S, Hub
from streamer.live_call import MAX_UNTOLD, LiveCall
from streamer.logs import write
from streamer.wire import ClosedError, GoneError, Wire

_log = logging.getLogger("streamer.server")

_REST_S = 0.2
"""How long a call on which nobody speaks is left alone: how late a ``speech`` event may be told."""
_AT_ONCE_S = 0.002
"""A message that was waited for longer than this was not there before."""
_ACK_S = 1.0
"""How often a native peer is told how much of its audio has arrived, at most."""
_LAST_ACK_S = 1.0
"""How long a peer that acknowledges events is waited for after the last one."""
_FOR_EVER_S = 86400.0


@dataclass(frozen=True, kw_only=True)
class LiveConfig:
    """What holds for every connection of a server; see :class:`streamer.server.ServerConfig`.

    ``refused`` is told the code with which a peer was refused before it had a call.
    """

    min_step_s: float = 0.1
    idle_timeout_s: float = 60.0
    send_timeout_s: float = 30.0
    secrets: DialectSecrets = field(default_factory=DialectSecrets)
    refused: Callable[[str], None] = lambda code: None


class Connection:
    """One WebSocket, which brings a call its audio and takes its events away.

    What the peer sends is read here as fast as the call has room for it, what it is told is sent
    by a second task. Where it does not read, its emotions grow stale and are passed over.
    """

    def __init__(self, websocket: WebSocket, hub: Hub, config: LiveConfig) -> None:
        self._socket = websocket
        self._hub = hub
        self._config = config
        self._handshake = handshake_of(websocket.scope)
        self._owner = guest_of(websocket.scope)
        self._is_native = self._handshake.path == NATIVE_PATH
        self._dialect: Dialect = NativeDialect(Handshake(path=NATIVE_PATH))
        self._receiving: asyncio.Timeout | None = None
        self._clock = asyncio.get_running_loop().time
        self._note_life()
        self._is_ending = self._is_abandoned = self._is_replaced = False
        self._task: asyncio.Task[Any] | None = None
        self._live: LiveCall | None = None
        self._seq = -1
        self._wire = Wire(websocket, config.send_timeout_s)
        self._news = asyncio.Event()
        self._ack_due_s = self._clock() + _ACK_S
        self._is_ack_due = self._has_acknowledged = False

    def end(self) -> None:
        """End it as soon as its call is over; at once, with 1001, where it has none yet."""
        self._is_ending = True
        if self._live is None and self._receiving is not None and not self._receiving.expired():
            self._receiving.reschedule(self._clock())

    def abandon(self) -> None:
        """End it at once, whatever it waits for; the peer gets nothing more."""
        self._is_abandoned = True
        if self._task is not None:
            self._task.cancel()

    def wake(self) -> None:
        """There is something to tell; see :class:`streamer.live_call.Listener`."""
        self._news.set()

    def replace(self) -> None:
        """The peer has come back on another connection."""
        self._is_replaced = True
        self._news.set()

    async def run(self) -> None:
        """Hear the peer until it ends, errs or goes. Its faults end here."""
        self._task = asyncio.current_task()
        reason, may_return = "internal", False
        try:
            reason = await self._hear()
            # Nobody knows whether the last events arrived, unless they were acknowledged.
            may_return = self._is_native and self._live is not None and not self._live.log.is_empty
        except GoneError as gone:
            reason, may_return = str(gone), self._is_native and not gone.has_hung_up
        except asyncio.CancelledError:
            if not self._is_abandoned:
                raise
            reason = "abandoned"
        except Exception:  # noqa: BLE001 - a task's edge: one call's fault is that call's alone
            _log.exception("connection failed peer=%s", self._wire.peer)
            with suppress(GoneError):
                await self._wire.close(CloseCode.INTERNAL, "internal")
        finally:
            if self._live is not None:
                self._live.detach(self, reason, may_return=may_return)
        session = "" if self._live is None else self._live.record.session
        if self._live is None or (self._live.is_parked and not self._live.is_over):
            who = {"session": session, "peer": self._wire.peer, "path": self._handshake.path}
            write(_log, logging.INFO, "connection end", **who, reason=reason)

    async def _hear(self) -> str:
        """Do it all; return why it ended."""
        try:
            self._dialect = make_dialect(
                self._handshake,
                min_step_ms=round(self._config.min_step_s * 1000),
                secrets=self._config.secrets,
            )
        except PeerError as fault:
            if not self._is_native:  # it would not understand an event
                self._config.refused(fault.code)
                await self._wire.deny(403, str(fault))
                return fault.code
            await self._wire.accept()
            return await self._send_fault(fault)
        if not self._is_native and (refusal := self._hub.refusal()) is not None:
            code, sentence = refusal
            self._config.refused(code)
            await self._wire.deny(503, sentence, {"retry-after": str(RETRY_S)})
            return code
        await self._wire.accept()
        try:
            self._refuse_if_hopeless()
            inputs: list[Input] = []
            while not inputs:  # some answer without any call: probes, pings
                inputs = await self._receive()
            self._live = live = await self._connect(inputs[0])
        except PeerError as fault:
            return await self._send_fault(fault)
        listening = asyncio.create_task(self._listen(live, inputs[1:]))
        listening.add_done_callback(lambda _: self._news.set())
        try:
            await self._tell(live, listening)
        except ClosedError:  # as it does, too, whose peer hung up: that it says itself
            with suppress(TimeoutError):
                await asyncio.wait_for(listening, self._config.send_timeout_s)
            raise
        finally:
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)
        if self._is_replaced:
            await self._wire.close(CloseCode.POLICY, "replaced")
            return "replaced"
        await self._wire.close(live.close_code, live.reason)
        return live.reason

    # How it begins

    def _refuse_if_hopeless(self) -> None:
        """Refuse whoever comes while nobody can be served, not even who comes back."""
        refusal = self._hub.refusal()
        if refusal is not None and refusal[0] in ("stopping", "not_ready"):
            code, sentence = refusal
            raise PeerError(sentence, code=code, close_code=CloseCode.TRY_AGAIN_LATER)

    async def _connect(self, first: Input) -> LiveCall:
        """Begin the call that the first message asks for, or find it."""
        if isinstance(first, Resume):
            live = await self._hub.resume(first, peer=self._wire.peer, owner=self._owner)
            self._seq, self._is_ack_due = first.seq, self._is_native
        else:
            assert isinstance(first, Start)
            live = self._hub.begin(
                first,
                dialect=dialect_name(self._handshake.path),
                peer=self._wire.peer,
                may_return=self._is_native,
                owner=self._owner,
            )
        live.attach(self, self._seq)
        return live

    # What comes

    async def _listen(self, live: LiveCall, inputs: list[Input]) -> None:
        """Take the peer's messages to its end; its faults end the call, after what came before."""
        try:
            while True:
                for item in inputs:
                    if isinstance(item, End):
                        live.end("end")
                        return await self._listen_on(live)
                    await self._take(live, item)
                since_s = self._clock()
                inputs = await self._receive()
                is_end = bool(inputs) and isinstance(inputs[-1], End)
                if not is_end and self._clock() - since_s > _AT_ONCE_S:
                    await self._rest(live)
        except PeerError as fault:
            if live.is_heard_by(self):
                live.fail(fault)
        await self._listen_on(live)

    async def _take(self, live: LiveCall, item: Input) -> None:
        """Hand an input to the call, if it is still ours, as soon as it has room."""
        if isinstance(item, Acknowledge):
            self._acknowledge(live, item.seq)
            return
        assert isinstance(item, bytes | TrackChunk | Lost)
        if not live.has_room:
            since_s = self._clock()
            await live.room()
            self._silent_at_s += self._clock() - since_s  # we did not listen
        if live.is_heard_by(self):
            live.feed(item)

    async def _listen_on(self, live: LiveCall) -> None:
        """Go on when the audio is over, for acknowledgements: the rest is ignored."""
        while True:
            self._silent_at_s = self._clock() + _FOR_EVER_S
            with suppress(PeerError):
                for item in await self._receive():
                    if isinstance(item, Acknowledge):
                        self._acknowledge(live, item.seq)
            await asyncio.sleep(0)

    def _acknowledge(self, live: LiveCall, seq: int) -> None:
        if seq > self._seq:
            raise PeerError(f"an ack of event {seq}: expected at most {self._seq}, the newest sent")
        if live.is_heard_by(self):
            self._has_acknowledged = True
            live.log.forget(seq)
            if live.log.is_empty:
                self._news.set()

    async def _rest(self, live: LiveCall) -> None:
        """Let live audio gather for a while if nobody speaks.

        Waking for each 20 ms of silence would cost more than all that is done with it. Audio that
        is there at once, faster than it was spoken, never comes here.
        """
        if not live.call.is_speaking and not self._is_ending:
            await asyncio.sleep(_REST_S)

    async def _receive(self) -> list[Input]:
        """Return what the peer's next message means.

        Raises:
            PeerError: it may not say that; or it has been silent for too long, or is to be ended.
            GoneError: it left.
        """
        message = await self._next_message()
        if message["type"] == "websocket.disconnect":
            raise GoneError.of(message)
        text, chunk = message.get("text"), message.get("bytes")
        if chunk:
            self._note_life()
        elif text is None:
            await asyncio.sleep(0)  # a flood of empty messages must not keep the loop
        try:
            if text is not None:
                inputs = self._dialect.receive_text(text)
                if any(isinstance(item, TrackChunk) for item in inputs):
                    self._note_life()
                return inputs
            inputs = self._dialect.receive_bytes(chunk or b"")
            self._note_progress()
            return inputs
        finally:
            await self._queue_answers(is_text=text is not None)

    def _note_life(self) -> None:
        """The peer is there: it may be silent for some time again."""
        self._silent_at_s = self._clock() + self._config.idle_timeout_s

    def _note_progress(self) -> None:
        """Have the peer told once a second how much of its audio is here."""
        now_s = self._clock()
        if self._is_native and self._live is not None and now_s >= self._ack_due_s:
            self._ack_due_s = now_s + _ACK_S
            self._is_ack_due = True
            self._news.set()

    async def _next_message(self) -> dict[str, Any]:
        """Wait for a message, but not longer than a peer may be silent."""
        if self._is_ending and self._live is None:
            raise self._stopping()
        try:
            async with asyncio.timeout_at(self._silent_at_s) as self._receiving:
                message = await self._socket.receive()
            if self._clock() > self._silent_at_s:  # it was there at once
                raise TimeoutError
        except TimeoutError:
            if self._is_ending and self._live is None:
                raise self._stopping() from None
            raise PeerError(
                f"no audio for {self._config.idle_timeout_s:g} s: expected some, silence too, or "
                "the end",
                code="idle",
            ) from None
        finally:
            self._receiving = None
        return cast(dict[str, Any], message)

    def _stopping(self) -> PeerError:
        sentence = "the server is stopping: expected a new call elsewhere, or later"
        return PeerError(sentence, code="stopping", close_code=CloseCode.GOING_AWAY)

    # What goes

    async def _tell(self, live: LiveCall, listening: asyncio.Task[None]) -> None:
        """Send what there is to send until the call is over, or somebody else is connected to it.

        Raises:
            GoneError: the peer left, or does not read.
        """
        is_last_call = False
        while not self._is_replaced:
            self._news.clear()
            if self._is_ack_due and isinstance(self._dialect, NativeDialect):
                self._is_ack_due = False
                self._dialect.receive_progress(live.secret, live.num_samples, self._seq)
                self._wire.put(self._dialect.messages_to_send())
            await self._wire.flush()
            if listening.done():
                listening.result()  # raises: it ends with the connection
            event = self._next_event(live)
            if event is not None:
                if self._is_native and isinstance(event, Ready):
                    event = replace(event, session=live.secret)  # with which it may come back
                await self._send(event)
                if live.is_heard_by(self):
                    live.told(self._seq)
            elif not live.is_over:
                await self._news.wait()
            elif live.log.is_empty or not self._has_acknowledged or is_last_call:
                return
            else:  # who acknowledges everything need not be able to come back
                is_last_call = True
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), _LAST_ACK_S)

    def _next_event(self, live: LiveCall) -> Event | None:
        """Return the event to be told next; stale emotions are passed over for a slow reader."""
        if self._seq + 1 < live.log.first_seq:
            raise GoneError("slow_reader")
        is_slow = live.is_paced and live.log.num_untold > MAX_UNTOLD
        event = live.log.next_after(self._seq, skip_stale=is_slow)
        if event is not None:
            self._seq = event.seq
        return event

    async def _send(self, event: Event) -> None:
        self._dialect.receive_event(event)
        self._wire.put(self._dialect.messages_to_send())
        await self._wire.flush()

    async def _queue_answers(self, *, is_text: bool) -> None:
        """Have the answers to a message sent; wait while the peer takes none."""
        answers = self._dialect.messages_to_send()
        if answers and is_text and not self._is_native:  # to a ping in a pause: a sign of life
            self._note_life()
        has_some = self._wire.put(answers)
        if self._live is None:
            await self._wire.flush()
        elif has_some:
            self._news.set()
            await self._wire.room()

    async def _send_fault(self, fault: PeerError) -> str:
        self._config.refused(fault.code)
        await self._send(Error(seq=0, code=fault.code, message=str(fault), fatal=True))
        await self._wire.close(fault.close_code, fault.code)
        return fault.code
