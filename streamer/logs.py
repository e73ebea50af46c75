"""What the log says, in text or in JSON lines: one line when a call starts, one when it ends.

A line is a few words that never change and fields: ``call end session=… reason=end audio_s=12.5``.
No field holds a token, a secret, a URL's query or what was heard. Of lines that others write,
what looks like a token is cut out.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from typing import Any, Literal, TextIO, TypeAlias

LogFormat: TypeAlias = Literal["text", "json"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

_FIELDS = "ser_stream_fields"
_BARE = re.compile(r"[\w.:,;/@+*\[\]()-]+", re.ASCII)
_SECRETS = re.compile(r"(?i)([?&]token=|\bbearer,?\s+(?=\S{16}))[^\s&\"',;]+")


def write(logger: logging.Logger, level: int, words: str, /, **fields: object) -> None:
    """Write one line. Fields that are None or empty text are left out.

    Args:
        logger: whose line it is.
        level: of ``logging``.
        words: what happened, always the same words for the same thing.
        fields: JSON can hold them.
    """
    kept = {name: value for name, value in fields.items() if value is not None and value != ""}
    logger.log(level, "%s", _Line(words, kept), extra={_FIELDS: (words, kept)})


def configure(
    *, format: LogFormat = "text", level: LogLevel = "info", stream: TextIO | None = None
) -> None:
    """Send every log line of this process to a stream, standard error if none is given.

    Called once, by a command; what was configured before is replaced.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)


class TextFormatter(logging.Formatter):
    """Time in UTC, level, words, ``name=value``; a fault's traceback below."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return _without_secrets(super().format(record))


class JsonFormatter(logging.Formatter):
    """One object a line: ``time`` in UTC, ``level``, ``message``, the fields, ``traceback``.

    A field of one of these names gets an underscore behind it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._times = TextFormatter()

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        words, fields = getattr(record, _FIELDS, (record.getMessage(), {}))
        line: dict[str, Any] = {
            "time": self._times.formatTime(record),
            "level": record.levelname.lower(),
            "message": _without_secrets(words),
        }
        line |= {f"{name}_" if name in line else name: fields[name] for name in fields}
        if record.exc_info:
            line["traceback"] = _without_secrets(self.formatException(record.exc_info))
        return json.dumps(line, default=str)


class _Line:
    """Words and fields as text, made only if the line is written."""

    def __init__(self, words: str, fields: dict[str, object]) -> None:
        self._words = words
        self._fields = fields

    def __str__(self) -> str:
        words = [f"{name}={_as_text(value)}" for name, value in self._fields.items()]
        return " ".join([self._words, *words])


def _as_text(value: object) -> str:
    """Return a value without spaces or line breaks outside quotes, whoever chose it."""
    if isinstance(value, str) and _BARE.fullmatch(value):
        return value
    return json.dumps(value, default=str)


def _without_secrets(text: str) -> str:
    return _SECRETS.sub(r"\1***", text)
