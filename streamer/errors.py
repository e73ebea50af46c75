"""The one exception tree: every error that this package raises on purpose.

A message says what was found and what was expected. ``code`` is what a peer gets on the wire.
"""

from __future__ import annotations


class SerStreamError(Exception):
    """Root of everything that ser-stream raises on purpose."""

    code = "internal"


class AudioError(SerStreamError):
    """Audio that cannot be taken: its format, its rate, its bytes, its values."""

    code = "bad_audio"


class ConfigError(SerStreamError):
    """A setting outside its range, or settings that contradict each other."""

    code = "bad_config"


class CardError(SerStreamError):
    """A model card that is missing, unreadable, or describes another kind of model."""

    code = "bad_model"


class ModelError(SerStreamError):
    """A model that cannot be loaded, does not reproduce its golden vectors, or failed to score."""

    code = "bad_model"


class ProviderError(SerStreamError):
    """The asked-for execution provider is not there."""

    code = "bad_provider"


class ScoreError(SerStreamError):
    """Scores that do not belong to a window, or are not finite."""

    code = "bad_scores"


class SourceError(SerStreamError):
    """An audio source that cannot be opened or breaks while it is read."""

    code = "bad_source"


class ProtocolError(SerStreamError):
    """A peer said something that the protocol does not allow."""

    code = "bad_message"


class SessionClosedError(SerStreamError):
    """Audio or scores for a session that has already ended."""

    code = "closed"


def quoted(value: object, most: int = 200) -> str:
    """Return any value as a message can say it: as Python writes it, in ``most`` characters."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an int of more than 4300 digits; lists in lists
        return f"{type(value).__name__} too long to be said"
    return text if len(text) <= most else f"{text[: most - 1]}…"
