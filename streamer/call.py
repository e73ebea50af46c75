"""A call: bytes of one or two channels in, one sequence of events out.

One decoder a call, one session a channel, and their events merged in the order of the audio, so
that neither how the bytes were cut nor when scores came back can show. Time of day comes in as an
argument, from whoever drives the call, and goes out in ``lag_ms`` alone.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from dataclasses import replace as replace_config
from typing import NamedTuple, TypeAlias

from msgspec import UNSET
from msgspec.structs import replace
from numpy.typing import ArrayLike

from streamer.alerts import AlertRule, AlertWatch, check_labels, check_rules
from streamer.audio import AudioFormat, Decoder
from streamer.card import Card
from streamer.errors import ConfigError, ScoreError, SerStreamError
from streamer.events import ROLES as ROLES
from streamer.events import ChannelEvent, Error, Event, Ready, ReadyChannel, Summary
from streamer.session import OrderedEvent, Session, SessionConfig, SkipReason, Window
from streamer.talk_over import TalkOverWatch

NOTICE = (
    "Emotion inference is running on the channels marked as analysed; the people on them must be "
    "told. Agents are not analysed unless the operator has turned that on."
)


class Lost(NamedTuple):
    """Audio that never arrived, in its place among the chunks.

    ``num_samples`` are at 16 kHz, of one channel, or of each where ``channel`` is None.
    """

    num_samples: int
    reason: str
    channel: int | None = None


class TrackChunk(NamedTuple):
    """Bytes of one channel alone, for a call whose channels come as tracks of their own."""

    channel: int
    data: bytes


Chunk: TypeAlias = bytes | Lost
"""Bytes of all channels, interleaved, or the news that some were lost."""

CallInput: TypeAlias = Chunk | TrackChunk
"""What a call may be fed."""


@dataclass(frozen=True, kw_only=True)
class CallConfig:
    """What is fixed when a call begins.

    ``roles`` names who speaks on each channel, customers where it is empty. An agent's emotion is
    inferred only with ``analyse_agents``. ``source`` is the file that the audio comes from. With
    ``as_tracks`` the channels are not interleaved: each chunk is of one of them. A call that goes
    on where another process left off begins at ``start_sample`` (16 kHz) with ``first_seq``.
    ``alerts`` are told of each channel whose role they are for and whose emotion is inferred.

    Raises:
        ConfigError: an unknown role, as many roles as there are not channels, a negative start, or
            alerts that :func:`streamer.alerts.check_rules` refuses.
    """

    audio: AudioFormat = field(default_factory=AudioFormat)
    roles: tuple[str, ...] = ()
    analyse_agents: bool = False
    session: SessionConfig = field(default_factory=SessionConfig)
    session_id: str = "local"
    source: str | None = None
    as_tracks: bool = False
    start_sample: int = 0
    first_seq: int = 0
    alerts: tuple[AlertRule, ...] = ()

    def __post_init__(self) -> None:
        check_rules(self.alerts, analyse_agents=self.analyse_agents)
        if self.start_sample < 0 or self.first_seq < 0:
            raise ConfigError(
                f"a start at sample {self.start_sample}, event {self.first_seq}: expected 0 or more"
            )
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

    Raises:
        ConfigError: an alert for a label that the model does not have.
    """

    def __init__(self, card: Card, config: CallConfig) -> None:
        check_labels(config.alerts, card.labels)
        self.card = card
        self.config = config
        track = replace_config(config.audio, channels=1)
        self._decoders = (
            [Decoder(track) for _ in range(config.audio.channels)]
            if config.as_tracks
            else [Decoder(config.audio)]
        )
        roles = config.roles or ("customer",) * config.audio.channels
        self.sessions = [
            Session(
                config.session,
                card,
                channel=channel,
                role=role,
                analyse=role != "agent" or config.analyse_agents,
                start_sample=config.start_sample,
            )
            for channel, role in enumerate(roles)
        ]
        self._alerts = [
            AlertWatch(
                rule
                for rule in config.alerts
                if session.analysed and rule.role in (None, session.role)
            )
            for session in self.sessions
        ]
        self._talk_over = TalkOverWatch(config.session.vad)
        self._queues: list[deque[OrderedEvent]] = [deque() for _ in self.sessions]
        self._marks: list[deque[tuple[int, float]]] = [deque() for _ in self.sessions]
        self._max_lag_ms = 0.0
        self._fault: SerStreamError | None = None
        self._seq = config.first_seq
        self._has_begun = self._has_ended = self._has_finished = False

    @property
    def num_samples(self) -> int:
        """Samples of the call's time so far, of the channel that is furthest."""
        return max(session.num_samples for session in self.sessions)

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

    def receive(
        self, chunk: bytes | bytearray | memoryview, now_s: float, channel: int = 0
    ) -> None:
        """Take bytes of the call's format, cut anywhere, that arrived at ``now_s`` (any clock).

        ``channel`` is whose they are in a call of tracks. Bytes that are not audio (NaN, say) end
        the call with a fatal ``error`` event after everything that came before them; later bytes
        are ignored.
        """
        if self._has_ended:
            return
        decoder = self._decoders[channel]
        for place, samples in decoder.receive(chunk):
            self.sessions[channel + place].receive_audio(samples)
        self._mark(now_s)
        if decoder.fault is not None:
            self.fail(decoder.fault, now_s)

    def receive_gap(self, num_samples: int, reason: str, channel: int | None = None) -> None:
        """Learn that the next ``num_samples`` (at the card's rate) of one, or each, were lost."""
        if self._has_ended:
            return
        self._receive_tails(channel)
        for session in self.sessions:
            if channel is None or session.channel == channel:
                session.receive_gap(num_samples, reason)

    def receive_end(self, now_s: float) -> None:
        """End the audio; the tail is scored, open turns are closed. A second call does nothing."""
        if self._has_ended:
            return
        self._has_ended = True
        for channel, decoder in enumerate(self._decoders):
            for place, samples in decoder.receive_end():
                self.sessions[channel + place].receive_audio(samples)
            self._fault = self._fault or decoder.fault
        for session, marks in zip(self.sessions, self._marks, strict=True):
            session.receive_end()
            marks.append((session.num_samples + 1, now_s))

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
                lag_ms = self._lag_ms(channel, order, now_s)
                self._max_lag_ms = max(self._max_lag_ms, lag_ms)
                event = replace(event, lag_ms=lag_ms)
            events.append(self._number(event))
            events += map(self._number, self._consequences(channel, order, event))
        self._forget_marks()
        if self._has_ended and not self._has_finished and not self.num_outstanding:
            self._has_finished = True
            if self._fault is not None:
                fault = Error(code=self._fault.code, message=str(self._fault), fatal=True)
                events.append(self._number(fault))
            events.append(self._number(self._summary()))
        return events

    def _receive_tails(self, channel: int | None) -> None:
        """Take what decoders hold back, of one channel or each: it is from before the gap.

        They begin anew behind it. Of a sample that it cut in two nothing is left.
        """
        for first, decoder in enumerate(self._decoders):
            if channel in (None, first) or not self.config.as_tracks:
                for place, samples in decoder.receive_end():
                    self.sessions[first + place].receive_audio(samples)
                self._decoders[first] = Decoder(decoder.format)
        for session, marks in zip(self.sessions, self._marks, strict=True):
            if marks:  # it arrived when the last bytes did
                marks[-1] = max(marks[-1][0], session.num_samples), marks[-1][1]

    def _session_of(self, window: Window) -> Session:
        if window.channel >= len(self.sessions):
            raise ScoreError(
                f"an answer for a window of channel {window.channel}: expected one that was "
                f"handed out here, of {len(self.sessions)} channels"
            )
        return self.sessions[window.channel]

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

    def _consequences(self, channel: int, order: int, event: ChannelEvent) -> list[Event]:
        """What the call tells because of an event, right after it: talk-overs, alerts."""
        due_s = order / self.card.features.sample_rate
        return [*self._talk_over.receive(event, due_s), *self._alerts[channel].receive(event)]

    def _mark(self, now_s: float) -> None:
        # The first time counts: bytes that complete no block made nothing due.
        for session, marks in zip(self.sessions, self._marks, strict=True):
            if not marks or marks[-1][0] < session.num_samples:
                marks.append((session.num_samples, now_s))

    def _lag_ms(self, channel: int, order: int, now_s: float) -> float:
        """Milliseconds since the sample arrived that made an event of this order due."""
        marks = self._marks[channel]
        while len(marks) > 1 and marks[0][0] < order:
            marks.popleft()
        if not marks:  # the channel began with a gap: nothing has arrived
            return 0.0
        return round(max(0.0, (now_s - marks[0][1]) * 1000.0), 1)

    def _forget_marks(self) -> None:
        """Drop the arrival times that no event to come can need: silence must not pile them up."""
        for session, queue, marks in zip(self.sessions, self._queues, self._marks, strict=True):
            oldest = queue[0].order if queue else session.horizon
            while len(marks) > 1 and marks[0][0] < oldest:
                marks.popleft()

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
            talk_over_s=self._talk_over.total_s,
            channels=tuple(session.summary() for session in self.sessions),
        )
