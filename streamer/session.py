"""The core: audio of one channel in, windows out, scores in, events out.

No socket, clock, thread or file: whoever drives it may score on a thread, in a batch with other
calls, on another machine, or with a fake. Events leave in the order of the audio they speak of,
whatever the order in which scores come back.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from msgspec.structs import replace
from numpy.typing import ArrayLike

from streamer.arrays import Samples, Scores, WindowFeatures
from streamer.card import UNCERTAIN, Card
from streamer.errors import AudioError, ScoreError, SessionClosedError
from streamer.events import ChannelEvent, ChannelSummary, Emotion, Error, Gap, Lag, Speech, Turn
from streamer.frontend import FrontEnd, FrontEndConfig, Happening, SpeechStart, WindowCut
from streamer.smoothing import LabelSteadier, ScoreSmoother, SmoothingConfig, calibrate, softmax
from streamer.vad import VadConfig

SkipReason: TypeAlias = Literal["overload", "widened", "scorer_failed"]
"""Why a window is given up: scoring is behind, it only scores every second one, or it failed."""

_CAUGHT_UP = 8
"""Windows in a row that were scored: a widened step scores every second, and a turn's last ones."""


@dataclass(frozen=True, kw_only=True)
class SessionConfig:
    """What an operator may choose; all else is the card's."""

    step_s: float = 0.25
    vad: VadConfig = field(default_factory=VadConfig)
    smoothing: SmoothingConfig = field(default_factory=SmoothingConfig)


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """One model input, handed out once: ``features`` has shape (3, num_ceps, num_frames).

    ``number`` counts the channel's windows from 0, ``turn`` its turns from 0. Answer each with
    :meth:`Session.receive_scores` or :meth:`Session.skip`.
    """

    channel: int
    number: int
    turn: int
    start_s: float
    end_s: float
    features: WindowFeatures
    speech_ratio: float
    is_full: bool
    is_last: bool


class OrderedEvent(NamedTuple):
    """An event and its place in the call: samples processed when it became due.

    Those of a stretch's end come after all others of their position, and so count one more.
    """

    order: int
    event: ChannelEvent


@dataclass(eq=False)
class _Pending:
    """A window in its place among the events, waiting for its answer."""

    window: Window
    probabilities: Scores | None = None
    skipped: SkipReason | None = None

    @property
    def is_answered(self) -> bool:
        return self.probabilities is not None or self.skipped is not None


@dataclass
class _TurnEnd:
    start_s: float
    end_s: float


_Item: TypeAlias = ChannelEvent | _Pending | _TurnEnd


class Session:
    """One channel of a call.

    Args:
        config: step, voice activity, smoothing.
        card: the card of the model whose scores will come.
        channel: its number in the call, from 0; every event carries it.
        role: who speaks on it.
        analyse: off for a channel whose emotion is not inferred: it tells speech only.
        start_sample: the time of its first sample, where another process heard what came before.
    """

    def __init__(
        self,
        config: SessionConfig,
        card: Card,
        *,
        channel: int = 0,
        role: str = "customer",
        analyse: bool = True,
        start_sample: int = 0,
    ) -> None:
        self.card = card
        self.channel = channel
        self.role = role
        self.analysed = analyse
        self._rate = card.features.sample_rate
        self._front_end = FrontEnd(
            FrontEndConfig(
                features=card.features,
                normalization=card.normalization,
                window=card.window,
                vad=config.vad,
                step_s=config.step_s,
                analyse=analyse,
            )
        )
        self._smoother = ScoreSmoother(config.smoothing)
        self._steadier = LabelSteadier(config.smoothing, card.rejection.smoothed)
        self._offset = start_sample
        self._frames_before = 0
        self._items: deque[tuple[int, _Item]] = deque()
        self._unanswered: dict[int, _Pending] = {}
        self._to_score: list[Window] = []
        self._num_windows = 0
        self._turn_total: Scores = np.zeros(len(card.labels))
        self._turn_windows = 0
        self._turn_last: Scores | None = None
        self._skipping: SkipReason | None = None
        self._num_scored_in_a_row = 0
        self._ended = False
        self._dropped = 0
        self._num_started = self._num_turns = self._num_emotions = self._num_scored = 0
        self._speech_s = 0.0
        self._label_s = dict.fromkeys((*card.labels, UNCERTAIN), 0.0)

    @property
    def num_samples(self) -> int:
        """Samples of the channel's time so far, gaps included."""
        return self._offset + self._front_end.num_samples

    @property
    def is_speaking(self) -> bool:
        """Whether a turn is open."""
        return self._front_end.is_speaking

    @property
    def num_outstanding(self) -> int:
        """Windows handed out, or about to be, that have no answer yet."""
        return len(self._unanswered)

    @property
    def horizon(self) -> float:
        """Every event still to come has an order of at least this."""
        if self._items:
            return self._items[0][0]
        return math.inf if self._ended else self.num_samples + 1

    def receive_audio(self, samples: Samples) -> None:
        """Take audio at the card's rate, shape (n,), any n.

        Raises:
            SessionClosedError: after :meth:`receive_end`.
        """
        if self._ended:
            raise SessionClosedError(f"{len(samples)} samples after the end: expected none")
        self._take(self._front_end.receive(samples), is_end=False)

    def receive_gap(self, num_samples: int, reason: str) -> None:
        """Learn that the next ``num_samples`` never arrived: an open turn ends before them.

        Raises:
            AudioError: fewer than 0 samples.
            SessionClosedError: after :meth:`receive_end`.
        """
        if num_samples < 0:
            raise AudioError(f"a gap of {num_samples} samples: expected 0 or more")
        if self._ended:
            raise SessionClosedError("a gap after the end: expected none")
        self._take(self._front_end.flush(), is_end=True)
        start = self.num_samples
        self._frames_before += self._front_end.num_frames_computed
        self._front_end = self._front_end.successor()
        self._offset = start + num_samples
        gap = Gap(start_s=self._seconds(start), end_s=self._seconds(self._offset), reason=reason)
        self._items.append((start + 1, gap))

    def receive_end(self) -> None:
        """End the audio: an open turn is finished with what there is. A second call is idle."""
        if not self._ended:
            self._take(self._front_end.flush(), is_end=True)
            self._ended = True

    def windows_to_score(self) -> list[Window]:
        """Return the windows that have become due since the last call, each once."""
        windows, self._to_score = self._to_score, []
        return windows

    def receive_scores(self, window: Window, logits: ArrayLike) -> None:
        """Take a window's logits, shape (num_labels,).

        Raises:
            ScoreError: not one finite number a label, or no answer is expected for the window. The
                window still waits for its answer in the first case.
        """
        values = np.asarray(logits, np.float64)
        if values.shape != (len(self.card.labels),) or not np.isfinite(values).all():
            raise ScoreError(
                f"scores {values.tolist()} for window {window.number}: expected "
                f"{len(self.card.labels)} finite numbers"
            )
        self._answer(window).probabilities = softmax(values)

    def skip(self, window: Window, reason: SkipReason) -> None:
        """Give a window up: it will not be scored.

        Raises:
            ScoreError: no answer is expected for the window.
        """
        self._answer(window).skipped = reason

    def events_to_send(self) -> list[ChannelEvent]:
        """Return the events that are settled and were not returned before, in order."""
        return [event for _, event in self.ordered_events_to_send()]

    def ordered_events_to_send(self) -> list[OrderedEvent]:
        """Like :meth:`events_to_send`, with each event's place among the call's other channels."""
        settled = []
        while self._items:
            order, item = self._items[0]
            if isinstance(item, _Pending):
                if not item.is_answered:
                    break
                events = self._settle_window(item)
            elif isinstance(item, _TurnEnd):
                events = self._settle_turn(item)
            else:
                events = [item]
            self._items.popleft()
            settled += [OrderedEvent(order, self._sign(event)) for event in events]
        return settled

    def summary(self) -> ChannelSummary:
        """Return what the channel came to so far."""
        total_s = sum(self._label_s.values())
        return ChannelSummary(
            channel=self.channel,
            role=self.role,
            analysed=self.analysed,
            speech_s=round(self._speech_s, 3),
            turns=self._num_turns,
            emotions=self._num_emotions,
            windows_scored=self._num_scored,
            frames_computed=self._frames_before + self._front_end.num_frames_computed,
            dropped=self._dropped,
            labels={
                label: round(seconds / total_s, 3) if total_s else 0.0
                for label, seconds in self._label_s.items()
            },
        )

    def _take(self, happenings: list[Happening], *, is_end: bool) -> None:
        for happening in happenings:
            order = self._offset + happening.position + is_end
            match happening:
                case SpeechStart():
                    self._num_started += 1
                    time_s = self._seconds(self._offset + happening.start_sample)
                    self._items.append((order, Speech(active=True, time_s=time_s)))
                case WindowCut():
                    pending = _Pending(self._window(happening))
                    self._items.append((order, pending))
                    self._unanswered[pending.window.number] = pending
                    self._to_score.append(pending.window)
                case _:
                    start_s = self._seconds(self._offset + happening.start_sample)
                    end_s = self._seconds(self._offset + happening.end_sample)
                    self._items.append((order, Speech(active=False, time_s=end_s)))
                    self._items.append((order, _TurnEnd(start_s, end_s)))

    def _window(self, cut: WindowCut) -> Window:
        features = self.card.features
        shift, overlap = features.frame_shift, features.frame_length - features.frame_shift
        number, self._num_windows = self._num_windows, self._num_windows + 1
        return Window(
            channel=self.channel,
            number=number,
            turn=self._num_started - 1,
            start_s=self._seconds(self._offset + cut.span.start_frame * shift),
            end_s=self._seconds(self._offset + cut.span.end_frame * shift + overlap),
            features=cut.features,
            speech_ratio=round(cut.speech_ratio, 3),
            is_full=cut.span.is_full,
            is_last=cut.span.is_last,
        )

    def _answer(self, window: Window) -> _Pending:
        pending = self._unanswered.get(window.number)
        if pending is None or pending.window is not window:
            raise ScoreError(
                f"an answer for window {window.number} of channel {window.channel}: expected a "
                "window that was handed out here and has none yet"
            )
        del self._unanswered[window.number]
        return pending

    def _settle_window(self, pending: _Pending) -> list[ChannelEvent]:
        window, probabilities = pending.window, pending.probabilities
        if probabilities is None:
            return self._settle_skip(window, pending.skipped or "scorer_failed")
        self._num_scored_in_a_row += 1
        if self._skipping != "widened" or self._num_scored_in_a_row >= _CAUGHT_UP:
            self._skipping = None
        self._num_scored += 1
        self._num_emotions += 1
        self._turn_last = probabilities
        if window.is_full:
            self._turn_total = self._turn_total + probabilities
            self._turn_windows += 1
        calibration = self.card.calibration
        smoothed = self._smoother.update(probabilities, window.end_s)
        scores = calibrate(smoothed, calibration.smoothed)
        steadied = self._steadier.update(scores, window.end_s)
        return [
            Emotion(
                start_s=window.start_s,
                end_s=window.end_s,
                label=UNCERTAIN if steadied is None else self.card.labels[steadied],
                scores=self._by_label(scores),
                raw=self._by_label(calibrate(probabilities, calibration.window)),
                speech=window.speech_ratio,
                warming_up=not window.is_full,
            )
        ]

    def _settle_skip(self, window: Window, reason: SkipReason) -> list[ChannelEvent]:
        self._dropped += 1
        self._num_scored_in_a_row = 0
        if self._skipping == reason:
            return []
        self._skipping = reason
        if reason != "scorer_failed":
            return [Lag(start_s=window.start_s, end_s=window.end_s, reason=reason)]
        message = f"the window that ends at {window.end_s:.2f} s could not be scored"
        return [Error(code=reason, message=message, fatal=False)]

    def _settle_turn(self, turn: _TurnEnd) -> list[ChannelEvent]:
        """Average as the paper does for utterances (section 3.2): full windows, or the last."""
        self._num_turns += 1
        self._speech_s += turn.end_s - turn.start_s
        if not self.analysed:
            return []
        total, num_windows, last = self._turn_total, self._turn_windows, self._turn_last
        self._turn_total, self._turn_windows = np.zeros(len(self.card.labels)), 0
        self._turn_last = None
        if last is None:
            message = (
                f"the turn from {turn.start_s:.2f} to {turn.end_s:.2f} s has no label: none of its "
                "windows was scored"
            )
            return [Error(code="turn_not_scored", message=message, fatal=False)]
        mean = total / num_windows if num_windows else last
        scores = calibrate(mean, self.card.calibration.turn)
        is_sure = scores.max() >= self.card.rejection.turn
        label = self.card.labels[int(np.argmax(scores))] if is_sure else UNCERTAIN
        self._label_s[label] += turn.end_s - turn.start_s
        return [
            Turn(
                start_s=turn.start_s,
                end_s=turn.end_s,
                label=label,
                scores=self._by_label(scores),
                windows=max(1, num_windows),
            )
        ]

    def _sign(self, event: ChannelEvent) -> ChannelEvent:
        if isinstance(event, Error):
            return replace(event, channel=self.channel, role=self.role)
        return replace(event, channel=self.channel, role=self.role, dropped=self._dropped)

    def _by_label(self, scores: Scores) -> dict[str, float]:
        pairs = zip(self.card.labels, scores, strict=True)
        return {label: round(float(score), 6) for label, score in pairs}

    def _seconds(self, samples: int) -> float:
        return round(samples / self._rate, 3)
