"""Whether a model became better for one's own speech: what may be claimed, and what may not."""

from __future__ import annotations

from dataclasses import dataclass

_FAMILY = 8  # below so many speakers an interval over them is a rough one


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """UAR of held-out speakers before and after; ``interval`` is of the difference, 95 %.

    ``heard_before`` are corpora that the model was trained on, perhaps with these very speakers.
    """

    before: float
    after: float
    interval: tuple[float, float]
    speakers: int
    utterances: int
    heard_before: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        """``better`` or ``worse`` where the interval leaves no doubt, else ``undecided``."""
        low, high = self.interval
        return "better" if low > 0 else "worse" if high < 0 else "undecided"

    def sentence(self) -> str:
        """Say what was found, and no more than that."""
        points = 100 * (self.after - self.before)
        low, high = (100 * value for value in self.interval)
        found = (
            f"on {self.utterances} utterances of {self.speakers} speakers held out of the adapting "
            f"UAR went from {self.before:.3f} to {self.after:.3f}: {points:+.1f} points, 95 % "
            f"interval {low:+.1f} to {high:+.1f}"
        )
        rough = f"; with {self.speakers} speakers the interval is rough"
        few = rough if self.speakers < _FAMILY else ""
        claim = {
            "better": "it became better",
            "worse": "it became worse",
            "undecided": "that it became better cannot be claimed, the interval contains 0",
        }
        sentence = f"{found}{few}. So {claim[self.word]}."
        if self.heard_before:
            sentence += (
                f" {', '.join(self.heard_before)} had trained the model before: if these speakers "
                "were among them, neither figure is of people whom it never heard."
            )
        return sentence
