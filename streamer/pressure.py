"""How far scoring is behind, and what is left out because of it: graded, and not for ever.

Sans-I/O: told when windows go out and come back, and how late the event loop is; asked for a level.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from statistics import median

from streamer.errors import ConfigError

WIDENED = 1
"""From this level on, every second window of a live call is left out."""
NEWEST = 2
"""From this level on, a live call has one window a channel out, the newest of those that wait."""
FULL = 3
"""At this level no new call is taken."""
_CLOCK_DRIFT = 0.01
_ENOUGH = 8
"""Live calls whose median says that it is the server that is late, and not a peer."""


@dataclass(frozen=True, kw_only=True)
class PressureConfig:
    """When a level begins and ends: ``raise_s`` are the waits for a score at which 1, 2, 3 begin.

    Level 1 ends below half of the first, 2 and 3 below the first, each after ``calm_s`` in a row.
    At level 2 a call has one window out, so waits are as long as there are calls: if they are still
    above the first for ``patience_s``, that is level 3. Waits are averaged over ``average_s``.

    Fewer windows help a scorer that is late, but not an event loop that is: where live audio waits
    ``behind_s`` to be heard, no call is taken at whatever level, until it waits less than half.

    Raises:
        ConfigError: waits that do not grow, or a time that is not positive.
    """

    raise_s: tuple[float, float, float] = (0.4, 0.8, 1.6)
    calm_s: float = 3.0
    patience_s: float = 3.0
    average_s: float = 1.0
    behind_s: float = 0.4

    def __post_init__(self) -> None:
        first, second, third = self.raise_s
        if not 0.0 < first < second < third:
            raise ConfigError(f"waits of {self.raise_s} s: expected three that grow")
        if min(self.calm_s, self.patience_s, self.average_s, self.behind_s) <= 0.0:
            raise ConfigError("a time of 0 s or less: expected more")


class Lateness:
    """How far behind a live stream is heard, beyond what it was least: that is its own delay.

    All times are seconds of one clock. What grows by less than a hundredth is a peer's clock.
    """

    def __init__(self) -> None:
        self.behind_s = 0.0
        """As of the last :meth:`taken`."""
        self.at_s = 0.0
        """When that was."""
        self._heard_s = 0.0
        self._least_s = math.inf

    def taken(self, audio_s: float, now_s: float) -> None:
        """Learn that so much more of its audio is being heard."""
        self._heard_s += audio_s
        delay_s = now_s - self._heard_s
        self._least_s = min(self._least_s + _CLOCK_DRIFT * (now_s - self.at_s), delay_s)
        self.behind_s = delay_s - self._least_s
        self.at_s = now_s

    def restart(self) -> None:
        """Learn that the peer said nothing for a while, or that audio was lost."""
        self._least_s = math.inf
        self.behind_s = 0.0


class Pressure:
    """The level of a process; all times are seconds of one clock, whichever."""

    def __init__(self, config: PressureConfig | None = None) -> None:
        self.config = config or PressureConfig()
        self.level = 0
        """0 to 3, as of the last :meth:`update`."""
        self.wait_s = 0.0
        """How long a window waits for its score, averaged; or audio or the loop."""
        self.behind_s = 0.0
        """How long live audio waits to be heard."""
        self.is_behind = False
        """Whether that is too long for one more call."""
        self._out: dict[Hashable, float] = {}
        self._waits_s: list[float] = []
        self._loop_lag_s = 0.0
        self._updated_at_s: float | None = None
        self._raised_at_s = -math.inf
        self._calm_since_s: float | None = None

    @property
    def num_out(self) -> int:
        """Windows of all calls that are out for scoring."""
        return len(self._out)

    def submitted(self, window: Hashable, now_s: float) -> None:
        """Learn that a window was handed to the scorer."""
        self._out[window] = now_s

    def answered(self, window: Hashable, now_s: float) -> None:
        """Learn that its answer is there, a failure too."""
        since_s = self._out.pop(window, None)
        if since_s is not None:
            self._waits_s.append(now_s - since_s)

    def withdrawn(self, window: Hashable) -> None:
        """Learn that nobody waits for it any more."""
        self._out.pop(window, None)

    def loop_lagged(self, lag_s: float) -> None:
        """Learn by how much the event loop was late."""
        self._loop_lag_s = max(self._loop_lag_s, lag_s)

    @property
    def complaint(self) -> str:
        """Why no call can be taken now; empty where one can."""
        if self.level >= FULL:
            return f"scoring is behind by {self.wait_s:.1f} s"
        return f"audio waits {self.behind_s:.1f} s to be heard" if self.is_behind else ""

    def audio_waits(self, behind_s: Iterable[float | None]) -> None:
        """Learn how far behind the live calls are: the median, as one peer's network is its own.

        Of a few calls it says nothing about us. Twice in a row too far is no accident.
        """
        known_s = [wait_s for wait_s in behind_s if wait_s is not None]
        is_enough = len(known_s) >= _ENOUGH
        before_s, self.behind_s = self.behind_s, median(known_s) if is_enough else 0.0
        limit_s = self.config.behind_s
        if self.is_behind:
            self.is_behind = self.behind_s >= limit_s / 2
        else:
            self.is_behind = min(before_s, self.behind_s) >= limit_s

    def rest(self) -> None:
        """Begin anew: there is no call that anything could wait for, nor one to learn from."""
        self.level, self.wait_s = 0, 0.0
        self.behind_s, self.is_behind = 0.0, False
        self._out.clear()
        self._waits_s.clear()
        self._loop_lag_s = 0.0
        self._updated_at_s = self._calm_since_s = None
        self._raised_at_s = -math.inf

    def update(self, now_s: float) -> int:
        """Judge, a few times a second; return the level."""
        wait_s = sum(self._waits_s) / len(self._waits_s) if self._waits_s else 0.0
        if self._out:  # a scorer that answers nothing at all
            oldest_s = min(self._out.values()) if not self._waits_s else now_s
            wait_s = max(wait_s, now_s - oldest_s)
        wait_s = max(wait_s, self._loop_lag_s, self.behind_s)
        self._waits_s.clear()
        self._loop_lag_s = 0.0
        if self._updated_at_s is not None:
            passed_s = max(0.0, now_s - self._updated_at_s)
            share = 1.0 - math.exp(-passed_s / self.config.average_s)
            self.wait_s += share * (wait_s - self.wait_s)
        self._updated_at_s = now_s
        if not self._raise(now_s):
            self._lower(now_s)
        return self.level

    def _raise(self, now_s: float) -> bool:
        """Go up by one, if it is time; what the level before does must have had time to show."""
        if self.level == FULL or now_s - self._raised_at_s < self.config.average_s:
            return False
        is_patience_over = (
            self.level == NEWEST
            and self.wait_s >= self.config.raise_s[0]
            and now_s - self._raised_at_s >= self.config.patience_s
        )
        if self.wait_s < self.config.raise_s[self.level] and not is_patience_over:
            return False
        self.level += 1
        self._raised_at_s = now_s
        self._calm_since_s = None
        return True

    def _lower(self, now_s: float) -> None:
        first_s = self.config.raise_s[0]
        calm_below_s = first_s / 2 if self.level == WIDENED else first_s
        if not self.level or self.wait_s >= calm_below_s:
            self._calm_since_s = None
        elif self._calm_since_s is None:
            self._calm_since_s = now_s
        elif now_s - self._calm_since_s >= self.config.calm_s:
            self.level -= 1
            self._calm_since_s = now_s
