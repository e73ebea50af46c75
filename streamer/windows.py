"""Which stretches of a turn are scored: 2 s windows by absolute frame number.

A window is always ``num_frames`` frames and never reaches back before its turn's pre-roll; what is
missing on the left is filled by :func:`cut_window`'s one rule, in training as in serving. The
first window ends ``first_frames`` after the onset, the next ones a step later each. Grid points in
a pause are passed over: silence costs no inference. Only the first is not, and ends where the
speech did. A turn whose speech goes beyond its last window gets one more at its end, its only one
where it is shorter than ``first_frames``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamer.arrays import Frames, WindowFeatures
from streamer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class WindowConfig:
    """The network's input; part of the card.

    Raises:
        ConfigError: a first window that is empty or longer than a full one.
    """

    num_frames: int = 200
    first_frames: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.first_frames <= self.num_frames:
            raise ConfigError(
                f"first window of {self.first_frames} frames: expected 1 to {self.num_frames}"
            )


@dataclass(frozen=True, kw_only=True)
class Span:
    """A window to be: frames ``[start_frame, end_frame)`` of a turn.

    ``is_full`` tells that no frame of it is padding; ``is_last`` that its turn ends with it.
    """

    start_frame: int
    end_frame: int
    is_full: bool
    is_last: bool = False


class WindowSchedule:
    """The spans of one channel, turn by turn. Pure arithmetic on frame numbers."""

    def __init__(self, window: WindowConfig, *, step_frames: int, pause_frames: int = 20) -> None:
        if step_frames < 1:
            raise ConfigError(f"step of {step_frames} frames: expected 1 or more")
        self._window = window
        self._step_frames = step_frames
        self._pause_frames = pause_frames
        self._turn_start = 0
        self._next_end = 0
        self._last_end = 0
        self._is_first = True

    def open_turn(self, onset_frame: int, start_frame: int) -> None:
        """Begin a turn: speech from ``onset_frame``, pre-roll from ``start_frame``."""
        self._turn_start = start_frame
        self._next_end = onset_frame + self._window.first_frames
        self._last_end = onset_frame
        self._is_first = True

    def due(self, num_ready: int, speech_end: int) -> list[Span]:
        """Return the spans that have become due.

        Args:
            num_ready: frames computed so far (absolute).
            speech_end: one past the last speech frame so far (absolute).
        """
        spans = []
        while self._next_end <= num_ready:
            if speech_end + self._pause_frames >= self._next_end:
                spans.append(self._span(self._next_end))
            elif self._is_first:  # nobody waits longer for a turn's first score than was stated
                spans.append(self._span(speech_end))
            self._is_first = False
            self._next_end += self._step_frames
        return spans

    def close_turn(self, speech_end: int) -> Span | None:
        """End the turn; return the span of its tail, if any speech came after the last one."""
        if speech_end <= self._last_end:
            return None
        return self._span(speech_end, is_last=True)

    def _span(self, end: int, *, is_last: bool = False) -> Span:
        self._last_end = end
        start = max(self._turn_start, end - self._window.num_frames)
        full = end - start == self._window.num_frames
        return Span(start_frame=start, end_frame=end, is_full=full, is_last=is_last)


def cut_window(frames: Frames, num_frames: int) -> WindowFeatures:
    """Make one model input of a span's frames, the newest last.

    Too few frames are repeated leftwards, cyclically, until the window is full: means, deviations
    and rhythm stay those of the speech that is there, which zeros would not leave alone.

    Args:
        frames: shape (n, 3, num_rows), 1 <= n <= ``num_frames``.

    Returns:
        Shape (3, num_rows, num_frames), float32, contiguous.
    """
    index = np.arange(-num_frames, 0) % len(frames)
    return np.ascontiguousarray(frames[index].transpose(1, 2, 0), dtype=np.float32)
