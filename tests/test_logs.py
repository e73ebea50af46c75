"""The log: text a person reads, JSON a program reads, and never a token."""

from __future__ import annotations

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest

from streamer.logs import LogFormat, configure, write

INFO = logging.INFO
LOGGER = logging.getLogger("streamer.test_logs")


@pytest.fixture
def root() -> Iterator[None]:
    """Let a test configure the log of the process, and put it back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []  # what pytest put there is not to be closed
    yield
    root.handlers, root.level = handlers, level


def lines(format: LogFormat, *writes: Any) -> list[str]:
    stream = io.StringIO()
    configure(format=format, stream=stream)
    for one in writes:
        one()
    return stream.getvalue().splitlines()


def start() -> None:
    write(
        LOGGER,
        INFO,
        "call start",
        session="5e55",
        peer="[::1]:4711",
        call_id='a b"\n',
        rate=8000,
        x="",
    )


def test_text_is_one_line_of_words_and_fields(root: None) -> None:
    (line,) = lines("text", start)
    time, rest = line.split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    assert rest == r'INFO call start session=5e55 peer=[::1]:4711 call_id="a b\"\n" rate=8000'


def test_json_is_one_object_a_line(root: None) -> None:
    (line,) = lines("json", start)
    fields = json.loads(line)
    assert fields.pop("time").endswith("Z")
    assert fields == {
        "level": "info",
        "message": "call start",
        "session": "5e55",
        "peer": "[::1]:4711",
        "call_id": 'a b"\n',
        "rate": 8000,
    }


def test_a_field_cannot_pretend_to_be_the_lines_own(root: None) -> None:
    (line,) = lines("json", lambda: write(LOGGER, INFO, "pressure", level=2, calls=2))
    fields = json.loads(line)
    assert (fields["level"], fields["level_"], fields["calls"]) == ("info", 2, 2)


@pytest.mark.parametrize("format", ["text", "json"])
def test_a_line_of_others_keeps_no_token(format: LogFormat, root: None) -> None:
    def others() -> None:
        LOGGER.info("GET %s HTTP/1.1", "/twilio?token=ser_secret&rate=8000")
        LOGGER.error("header authorization: Bearer ser_secret_of_many_letters")
        LOGGER.error("sec-websocket-protocol: bearer, ser_secret_of_many_letters")
        try:
            raise ValueError("/v1/stream?token=ser_secret")
        except ValueError:
            LOGGER.exception("call failed")

    text = "\n".join(lines(format, others))
    assert "ser_secret" not in text
    assert "token=***&rate=8000" in text and "Bearer ***" in text and "bearer, ***" in text
    assert "ValueError" in text


def test_levels(root: None) -> None:
    stream = io.StringIO()
    configure(level="warning", stream=stream)
    write(LOGGER, INFO, "call start")
    write(LOGGER, logging.WARNING, "drain", calls_left=1)
    assert stream.getvalue().endswith(" WARNING drain calls_left=1\n")
    assert stream.getvalue().count("\n") == 1
