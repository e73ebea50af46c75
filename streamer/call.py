"""A call: bytes of one or two channels in, one sequence of events out.

One decoder a call, one session a channel, and their events merged in the order of the audio, so
that neither how the bytes were cut nor when scores came back can show. Time of day comes in as an
argument, from whoever drives the call, and goes out in ``lag_ms`` alone.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from msgspec import UNSET
from msgspec.structs import replace
from numpy.typing import ArrayLike

from streamer.arrays import Samples
from streamer.audio import AudioFormat, Decoder
from streamer.card import Card
from streamer.errors import ConfigError, ScoreError, SerStreamError
from streamer.events import Error, Event, Ready, ReadyChannel, Summary
from streamer.session import OrderedEvent, Session, SessionConfig, SkipReason, Window

ROLES = ("customer", "agent")
NOTICE = (
    "Emotion inference is running on the channels marked as analysed; the people on them must be "
    "told. Agents are not analysed unless the operator has turned that on."
)


@dataclass(frozen=True, kw_only=True)
class CallConfig:
    """What is fixed when a call begins.

    ``roles`` names who speaks on each channel, customers where it is empty. An agent's emotion is
    inferred only with ``analyse_agents``. ``source`` is the file that the audio comes from.

    Raises:
        ConfigError: an unknown role, or as many roles as there are not channels.
    """

    audio: AudioFormat = field(default_factory=AudioFormat)
    roles: tuple[str, ...] = ()
    analyse_agents: bool = False
    session: SessionConfig = field(default_factory=SessionConfig)
    session_id: str = "local"
    source: str | None = None

    def __post_init__(self) -> None:
        for role in self.roles:
            if role not in ROLES:
                raise ConfigError(f"role {role!r}: expected one of {', '.join(ROLES)}")
        if self.roles and len(self.roles) != self.audio.channels:
            raise ConfigError(
                f"{len(self.roles)} roles ({', '.join(self.roles)}) for audio of "
                f"{self.audio.channels} channel{'s' * (self.audio.channels != 1)}: expected one "
                "role a channel"
            )


class Call:
    """Sans-I/O: chunks in, windows out, scores in, events out.

    Args:
        card: the card of the model that will score.
        config: audio format, roles, what is analysed.
    """

    def __init__(self, card: Card, config: CallConfig) -> None:
        self.card = card
        self.config = config
        self._decoder = Decoder(config.audio)
        roles = config.roles or ("customer",) * config.audio.channels
        self.sessions = [
            Session(
                config.session,
                card,
                channel=channel,
                role=role,
                analyse=role != "agent" or config.analyse_agents,
            )
            for channel, role in enumerate(roles)
        ]
        self._queues: list[deque[OrderedEvent]] = [deque() for _ in self.sessions]
        self._marks: deque[tuple[int, float]] = deque()
        self._max_lag_ms = 0.0
        self._fault: SerStreamError | None = None
        self._seq = 0
        self._has_begun = self._has_ended = self._has_finished = False

    @property
    def num_samples(self) -> int:
        """Samples of each channel's time so far."""
        return self.sessions[0].num_samples

    @property
    def is_speaking(self) -> bool:
        """Whether a turn is open on any channel."""
        return any(session.is_speaking for session in self.sessions)

    @property
    def num_outstanding(self) -> int:
        """Windows of all channels that have no answer yet: what back-pressure goes by."""
        return sum(session.num_outstanding for session in self.sessions)

    @property
    def has_ended(self) -> bool:
        """Whether the audio is over, by its end or by a fault in it: no more is taken."""
        return self._has_ended

    @property
    def is_finished(self) -> bool:
        """Whether the summary has been returned: nothing more will come."""
        return self._has_finished

    def receive(self, chunk: bytes | bytearray | memoryview, now_s: float) -> None:
        """Take bytes of the call's format, cut anywhere, that arrived at ``now_s`` (any clock).

        Bytes that are not audio (NaN, say) end the call with a fatal ``error`` event after
        everything that came before them; later bytes are ignored.
        """
        if self._has_ended:
            return
        for channel, samples in self._decoder.receive(chunk):
            self._feed(channel, samples)
        self._mark(now_s)
        if self._decoder.fault is not None:
            self.fail(self._decoder.fault, now_s)

    def receive_gap(self, num_samples: int, reason: str) -> None:
        """Learn that the next ``num_samples`` (at the card's rate, each channel) were lost."""
        if not self._has_ended:
            for session in self.sessions:
                session.receive_gap(num_samples, reason)

    def receive_end(self, now_s: float) -> None:
        """End the audio; the tail is scored, open turns are closed. A second call does nothing."""
        if self._has_ended:
            return
        self._has_ended = True
        for channel, samples in self._decoder.receive_end():
            self._feed(channel, samples)
        for session in self.sessions:
            session.receive_end()
        self._marks.append((self.num_samples + 1, now_s))
        self._fault = self._fault or self._decoder.fault

    def fail(self, fault: SerStreamError, now_s: float) -> None:
        """End the call because of a fault in its audio or its source; what was received counts."""
        self._fault = self._fault or fault
        self.receive_end(now_s)

    def windows_to_score(self) -> list[Window]:
        """Return the windows that have become due since the last call, each once."""
        return [window for session in self.sessions for window in session.windows_to_score()]

    def receive_scores(self, window: Window, logits: ArrayLike) -> None:
        """Take a window's logits, in any order of windows; see :meth:`Session.receive_scores`."""
        self._session_of(window).receive_scores(window, logits)

    def skip(self, window: Window, reason: SkipReason) -> None:
        """Give a window up; see :meth:`Session.skip`."""
        self._session_of(window).skip(window, reason)

    def events_to_send(self, now_s: float) -> list[Event]:
        """Return the events that are settled and were not returned before, in the audio's order."""
        events: list[Event] = [] if self._has_begun else [self._number(self._ready())]
        self._has_begun = True
        for session, queue in zip(self.sessions, self._queues, strict=True):
            queue.extend(session.ordered_events_to_send())
        while (channel := self._next_channel()) is not None:
            order, event = self._queues[channel].popleft()
            if not isinstance(event, Error):
                lag_ms = self._lag_ms(order, now_s)
                self._max_lag_ms = max(self._max_lag_ms, lag_ms)
                event = replace(event, lag_ms=lag_ms)
            events.append(self._number(event))
        self._forget_marks()
        if self._has_ended and not self._has_finished and not self.num_outstanding:
            self._has_finished = True
            if self._fault is not None:
                fault = Error(code=self._fault.code, message=str(self._fault), fatal=True)
                events.append(self._number(fault))
            events.append(self._number(self._summary()))
        return events

    def _session_of(self, window: Window) -> Session:
        if window.channel >= len(self.sessions):
            raise ScoreError(
                f"an answer for a window of channel {window.channel}: expected one that was "
                f"handed out here, of {len(self.sessions)} channels"
            )
        return self.sessions[window.channel]

    def _feed(self, channel: int, samples: Samples) -> None:
        self.sessions[channel].receive_audio(samples)

    def _next_channel(self) -> int | None:
        """The channel whose next event is first in the audio; none while another could precede."""
        waiting = [(queue[0].order, channel) for channel, queue in enumerate(self._queues) if queue]
        if not waiting:
            return None
        first = min(waiting)
        for session, queue in zip(self.sessions, self._queues, strict=True):
            if not queue and (session.horizon, session.channel) < first:
                return None
        return first[1]

    def _mark(self, now_s: float) -> None:
        # The first time counts: bytes that complete no block made nothing due.
        if not self._marks or self._marks[-1][0] < self.num_samples:
            self._marks.append((self.num_samples, now_s))

    def _lag_ms(self, order: int, now_s: float) -> float:
        """Milliseconds since the sample arrived that made an event of this order due."""
        while len(self._marks) > 1 and self._marks[0][0] < order:
            self._marks.popleft()
        if not self._marks:  # the call began with a gap: nothing has arrived
            return 0.0
        return round(max(0.0, (now_s - self._marks[0][1]) * 1000.0), 1)

    def _forget_marks(self) -> None:
        """Drop the arrival times that no event to come can need: silence must not pile them up."""
        oldest = min(
            queue[0].order if queue else session.horizon
            for session, queue in zip(self.sessions, self._queues, strict=True)
        )
        while len(self._marks) > 1 and self._marks[0][0] < oldest:
            self._marks.popleft()

    def _number(self, event: Event) -> Event:
        seq, self._seq = self._seq, self._seq + 1
        return replace(event, seq=seq, source=self.config.source or UNSET)

    def _ready(self) -> Ready:
        features, window = self.card.features, self.card.window
        overlap_s = (features.frame_length - features.frame_shift) / features.sample_rate
        first_s = window.first_frames * features.frame_shift_s + overlap_s + features.look_ahead_s
        return Ready(
            session=self.config.session_id,
            model=self.card.name,
            labels=self.card.labels,
            encoding=self.config.audio.encoding,
            sample_rate=self.config.audio.sample_rate,
            channels=tuple(
                ReadyChannel(channel=item.channel, role=item.role, analysed=item.analysed)
                for item in self.sessions
            ),
            step_ms=round(self.config.session.step_s * 1000),
            first_score_s=round(first_s, 3),
            hang_over_s=self.config.session.vad.hang_over_s,
            notice=NOTICE,
        )

    def _summary(self) -> Summary:
        return Summary(
            duration_s=round(self.num_samples / self.card.features.sample_rate, 3),
            max_lag_ms=self._max_lag_ms,
            channels=tuple(session.summary() for session in self.sessions),
        )
