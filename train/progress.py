"""What is done of a whole whose parts know of themselves alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Advance: TypeAlias = Callable[[float], None]
"""Gets the share that is done, 0 to 1, as it grows."""


def part_of(advance: Advance, begin: float, end: float) -> Advance:
    """Return what a part gets that goes from the share ``begin`` of the whole to ``end``."""

    def advance_part(share: float) -> None:
        advance(begin + (end - begin) * share)

    return advance_part
