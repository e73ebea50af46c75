"""Talk-over: two people of a call speak at once, told from the speech of its two channels.

Sans-I/O, and made of events in the call's order, so neither chunking nor late scores can show.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from streamer.events import ChannelEvent, Speech, TalkOver
from streamer.vad import BLOCK_S, VadConfig

TALK_OVER_MIN_S = 0.3
"""Shorter overlaps are not told: who takes the turn promptly overlaps by a syllable, about 0.2 s,
and each turn's ends are only known to a block or two of 20 ms."""

_ROUNDING_S = 0.001
"""Events tell whole milliseconds."""


@dataclass(kw_only=True)
class _SpokenTurn:
    start_s: float
    end_s: float = math.inf
    """Infinite while the turn is open."""


@dataclass(kw_only=True)
class _Overlap:
    """Two turns at once until ``end_s``, or until the one that is still open ends, if earlier."""

    start_s: float
    end_s: float
    open_channel: int


class TalkOverWatch:
    """Finds where the turns of two channels overlap.

    A turn is told to have ended only ``hang_over_s`` after its end, or at once before a gap and at
    the end of a call. So the turn that ends first may be told last; an overlap is told when the
    other turn is known to reach past it.

    Args:
        vad: voice activity of both channels.
    """

    def __init__(self, vad: VadConfig) -> None:
        # As SpeechTracker counts it, in whole blocks.
        self._hang_over_s = math.ceil(vad.hang_over_s / BLOCK_S - 1e-6) * BLOCK_S
        self._turns: dict[int, _SpokenTurn] = {}
        self._overlaps: list[_Overlap] = []
        self.total_s = 0.0
        """Seconds of all talk-overs that were told."""

    def receive(self, event: ChannelEvent, due_s: float) -> list[TalkOver]:
        """Take the call's next event of a channel, due at ``due_s``; return what it settles."""
        if isinstance(event, Speech) and event.channel is not None:
            if event.active:
                self._start(event.channel, event.time_s)
            else:
                self._end(event.channel, event.time_s)
        told: list[TalkOver] = []
        waiting: list[_Overlap] = []
        for overlap in self._overlaps:
            # A turn that is still open was heard less than a hang-over ago.
            is_open = self._turns[overlap.open_channel].end_s == math.inf
            if is_open and overlap.end_s > due_s - self._hang_over_s + _ROUNDING_S:
                waiting.append(overlap)
            else:
                told += self._tell(overlap)
        self._overlaps = waiting
        return told

    def _start(self, channel: int, time_s: float) -> None:
        self._turns[channel] = _SpokenTurn(start_s=time_s)
        for number, other in self._turns.items():
            # Its end may have been told within the onset of this one.
            if number != channel and other.end_s < math.inf:
                self._meet(channel, self._turns[channel], other)

    def _end(self, channel: int, time_s: float) -> None:
        turn = self._turns[channel]
        turn.end_s = time_s
        for overlap in self._overlaps:
            if overlap.open_channel == channel:
                overlap.end_s = min(overlap.end_s, time_s)
        for number, other in self._turns.items():
            if number != channel and other.end_s == math.inf:
                self._meet(number, other, turn)

    def _meet(self, open_channel: int, open_turn: _SpokenTurn, ended: _SpokenTurn) -> None:
        start_s = max(open_turn.start_s, ended.start_s)
        if start_s < ended.end_s:
            self._overlaps.append(
                _Overlap(start_s=start_s, end_s=ended.end_s, open_channel=open_channel)
            )

    def _tell(self, overlap: _Overlap) -> list[TalkOver]:
        duration_s = round(overlap.end_s - overlap.start_s, 3)
        if duration_s < TALK_OVER_MIN_S:
            return []
        self.total_s = round(self.total_s + duration_s, 3)
        return [TalkOver(start_s=overlap.start_s, end_s=overlap.end_s)]
