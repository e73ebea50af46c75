"""Alert rules: a label that scores high for so long, in audio time. Sans-I/O.

A rule is met when the smoothed score of its label has been at least its probability for its
duration. Pauses between turns do not break the stretch, unless they are longer than the rule's;
audio that never arrived does, because nobody knows what was said in it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from streamer.errors import ConfigError, quoted
from streamer.events import ROLES, Alert, ChannelEvent, Emotion, Gap

MAX_TIME_S = 3600.0
"""The longest duration, pause or cool-down of a rule."""

_TEXTS = ("name", "label", "role")
_NUMBERS = ("probability", "duration", "pause", "cooldown")
_KEYS = (*_TEXTS, *_NUMBERS)
_NEEDED = ("name", "label", "probability", "duration")
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class AlertRule:
    """When to tell: ``label`` scores ``probability`` or more for ``duration_s`` of audio.

    The stretch is timed from its first such ``emotion`` to its newest, pauses included; one of more
    than ``pause_s`` without any scored audio ends it. ``role`` is whose, None anybody's whose
    emotion is inferred. A rule is met once a stretch, and on one channel not again within
    ``cooldown_s`` of audio: a stretch that lasts longer is told after that.

    Raises:
        ConfigError: a name, a role or a number outside its range.
    """

    name: str
    label: str
    probability: float
    duration_s: float
    role: str | None = "customer"
    pause_s: float = 5.0
    cooldown_s: float = 60.0

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"an alert named {self.name!r}: expected 1 to 64 letters, digits, '_', '.' or '-'"
            )
        if not self.label:
            raise ConfigError(f"alert {self.name}: no label: expected one of the model's")
        if not 0 < self.probability <= 1:
            raise ConfigError(
                f"alert {self.name}: a probability of {self.probability:g}: expected more than 0, "
                "at most 1"
            )
        times = {"duration": self.duration_s, "pause": self.pause_s, "cool-down": self.cooldown_s}
        for what, time_s in times.items():
            if not 0 <= time_s <= MAX_TIME_S:
                raise ConfigError(
                    f"alert {self.name}: a {what} of {time_s:g} s: expected 0 to {MAX_TIME_S:g} s"
                )
        if self.role is not None and self.role not in ROLES:
            raise ConfigError(
                f"alert {self.name}: role {self.role!r}: expected one of {', '.join(ROLES)}, any"
            )


def check_rules(rules: Iterable[AlertRule], *, analyse_agents: bool) -> None:
    """Refuse rules that cannot stand together, or can never be met.

    Raises:
        ConfigError: two rules of one name, or a rule for agents where these are not analysed.
    """
    names: set[str] = set()
    for rule in rules:
        if rule.name in names:
            raise ConfigError(f"two alerts named {rule.name}: expected a name of its own for each")
        names.add(rule.name)
        if rule.role == "agent" and not analyse_agents:
            raise ConfigError(
                f"alert {rule.name} is for the role agent, whose emotion is not inferred: expected "
                "role customer or any, or that agents are analysed (--analyse-agents)"
            )


def check_labels(rules: Iterable[AlertRule], labels: tuple[str, ...]) -> None:
    """Refuse a rule for a label that the model does not have.

    Raises:
        ConfigError: there is one.
    """
    for rule in rules:
        if rule.label not in labels:
            raise ConfigError(
                f"alert {rule.name}: label {rule.label!r}: expected one of {', '.join(labels)}"
            )


def parse_rule(source: str | Mapping[str, object]) -> AlertRule:
    """Return the rule that a command line's words or a table of a configuration file tell.

    ``name=angry10 label=angry probability=0.7 duration=10 role=customer``: keys ``name``,
    ``label``, ``probability`` and ``duration``, and if wished ``role`` (``any`` for everybody),
    ``pause`` and ``cooldown``; times in seconds.

    Raises:
        ConfigError: a key that is unknown, missing or there twice, or a value that cannot be.
    """
    fields = _fields_of(source) if isinstance(source, str) else dict(source)
    name = fields.get("name")
    what = f"alert {name}" if isinstance(name, str) and name.isprintable() else "an alert"
    unknown = sorted(str(key) for key in fields if key not in _KEYS)
    missing = sorted(key for key in _NEEDED if key not in fields)
    if unknown:
        raise ConfigError(f"{what}: key {unknown[0]!r}: expected {', '.join(_KEYS)}")
    if missing:
        raise ConfigError(
            f"{what} without {', '.join(missing)}: expected, for example, "
            "name=angry10 label=angry probability=0.7 duration=10"
        )
    texts = {key: _text(f"{what}: {key}", fields[key]) for key in _TEXTS if key in fields}
    numbers = {key: _number(f"{what}: {key}", fields[key]) for key in _NUMBERS if key in fields}
    role = texts.get("role", AlertRule.role)
    return AlertRule(
        name=texts["name"],
        label=texts["label"],
        probability=numbers.pop("probability"),
        role=None if role == "any" else role,
        **{f"{key}_s": time_s for key, time_s in numbers.items()},
    )


def _fields_of(text: str) -> dict[str, object]:
    fields: dict[str, object] = {}
    for word in text.split():
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"an alert with {word!r}: expected words such as label=angry")
        if key in fields:
            raise ConfigError(f"an alert with two of {key!r}: expected one")
        fields[key] = value
    return fields


def _text(what: str, value: object) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"{what} is {quoted(value)}: expected text")
    return value


def _number(what: str, value: object) -> float:
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise ConfigError(f"{what} is {quoted(value)}: expected a number")


class AlertWatch:
    """One channel's rules, updated by its events in their order.

    Windows that are warming up count: their scores are smoothed like all others, and somebody who
    shouts in turns of less than two seconds has no others. Windows that were not scored count as a
    pause.
    """

    def __init__(self, rules: Iterable[AlertRule]) -> None:
        self._stretches = [_Stretch(rule) for rule in rules]

    def receive(self, event: ChannelEvent) -> list[Alert]:
        """Take the channel's next event; return the alerts that it fires, in the rules' order."""
        if isinstance(event, Gap):
            for stretch in self._stretches:
                stretch.end()
        if not isinstance(event, Emotion):
            return []
        return [
            Alert(
                channel=event.channel,
                role=event.role,
                lag_ms=event.lag_ms,
                dropped=event.dropped,
                rule=stretch.rule.name,
                label=stretch.rule.label,
                probability=stretch.probability,
                start_s=stretch.start_s,
                end_s=event.end_s,
            )
            for stretch in self._stretches
            if stretch.is_met_by(event)
        ]


class _Stretch:
    """For how long a rule's condition has held on a channel."""

    def __init__(self, rule: AlertRule) -> None:
        self.rule = rule
        self.start_s = 0.0
        self._end_s = 0.0
        self._total = 0.0
        self._count = 0
        self._was_told = False
        self._told_s = -math.inf

    @property
    def probability(self) -> float:
        """Mean of the label's scores in the stretch."""
        return round(self._total / self._count, 6)

    def end(self) -> None:
        self._count, self._total, self._was_told = 0, 0.0, False

    def is_met_by(self, event: Emotion) -> bool:
        """Take the next emotion; tell whether an alert is due with it."""
        rule, score = self.rule, event.scores[self.rule.label]
        if self._count and round(event.start_s - self._end_s, 3) > rule.pause_s:
            self.end()
        if score < rule.probability:
            self.end()
            return False
        if not self._count:
            self.start_s = event.end_s
        self._end_s = event.end_s
        self._total += score
        self._count += 1
        if (
            self._was_told
            or round(event.end_s - self.start_s, 3) < rule.duration_s
            or round(event.end_s - self._told_s, 3) < rule.cooldown_s
        ):
            return False
        self._was_told, self._told_s = True, event.end_s
        return True
