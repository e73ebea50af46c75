"""What reads words of strangers lets only its documented errors out, whatever it is given.

One table says for every parser what it is fed and which exceptions may come out of it. A few
examples run by default, the same ones every time; ``--fuzz-examples 5000`` runs as many a target,
each time others (with ``--timeout 0``: it takes minutes).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from streamer.alerts import parse_rule
from streamer.card import decode_card, encode_card
from streamer.dialects import Dialect, Handshake, PeerError, Start
from streamer.dialects.native import NativeDialect
from streamer.dialects.registry import NATIVE_PATH, PATHS, DialectSecrets, make_dialect
from streamer.errors import CardError, ConfigError
from streamer.events import Error, Event, decode_event, encode_event
from streamer.server_file import read_config
from streamer.server_options import add_options
from streamer.tokens import load_tokens
from tests import audiohook, test_exotel, test_plivo, test_signatures, test_telnyx, test_twilio
from tests.dialogues import JSON, READY, SUMMARY, TURN
from tests.scorers import make_card
from tests.test_events import EVENTS
from tests.test_vonage import CLEARED, CONNECTED, DTMF, NOTIFY

Attempt: TypeAlias = Callable[[], object]
"""Out of one of these only what is allowed may come."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A parser: what it is fed, how, and what may come out of it beside its answer.

    ``feed`` gets an input and a folder for files. ``found`` are inputs that got something else out
    of it once.
    """

    allowed: tuple[type[Exception], ...]
    inputs: st.SearchStrategy[Any]
    feed: Callable[[Any, Path], Iterator[Attempt]]
    found: tuple[Any, ...] = ()


# Documented text, broken

NASTY = [
    *("", "null", "true", "NaN", "Infinity", "1e400", "-0", "-1", "1.5", "05", "٥", '""', "[]"),
    *(
        "{}",
        '"\\ud800"',
        '"\ud800"',
        '"\\u0000"',
        '"\0"',
        '"/"',
        '"QQ"',
        '"1e5"',
        '"1_0"',
        "#",
        "=",
    ),
    *("9007199254740993", "-9223372036854775809", "18446744073709551616", '"18446744073709551616"'),
    *("1" * 400, "1" * 5000, f'"{"1" * 5000}"', f'"{"/" * 3200}"', "0x" + "f" * 5000, "1e-400"),
    *("[" * 3000, '{"a":' * 3000, '{"a":' * 3000 + "1" + "}" * 3000, "[" * 990 + "]" * 990),
    *('"PT1S"', '"PT9999999999S"', '"2024-13-41"', "2024-13-41", "1979-05-27T07:32:00Z", "inf"),
    *("\n", "\r\n", "\x0b", "\u2028", "\ufeff", "\x85", "'", "'''", '"""', "\\"),
]
_VALUE = re.compile(r'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null')


def _splice(text: str, start: int, end: int, piece: str) -> str:
    return text[: min(start, end)] + piece + text[max(start, end) :]


def broken(text: str) -> st.SearchStrategy[str]:
    """Return a text cut, with other characters in it, or with other values in the place of its."""
    place = st.integers(0, len(text))
    piece = st.sampled_from(NASTY) | st.text(st.characters(categories=None), max_size=3)
    values = [found.span() for found in _VALUE.finditer(text)] or [(0, len(text))]
    strategies = [
        place.map(lambda end: text[:end]),
        st.builds(partial(_splice, text), place, place, piece),
        st.builds(lambda at, new: _splice(text, at, at + 1, new), place, piece),
        st.builds(lambda span, new: _splice(text, *span, new), st.sampled_from(values), piece),
        st.builds(
            lambda one, two: _splice(text, *one, text[slice(*two)]),
            st.sampled_from(values),
            st.sampled_from(values),
        ),
    ]
    return st.one_of(strategies)


def texts(documented: Sequence[str]) -> st.SearchStrategy[str]:
    """Return documented texts as they are, broken once or twice, or anything."""
    good = st.sampled_from(documented)
    anything = st.text(st.characters(categories=None), max_size=30) | st.sampled_from(NASTY)
    return st.one_of(
        good,
        good.flatmap(broken),
        good.flatmap(broken).flatmap(broken),
        anything,
        JSON.map(json.dumps),
    )


def as_bytes(text: str) -> st.SearchStrategy[bytes]:
    """Return a text's bytes, perhaps with one that is no UTF-8."""
    data = text.encode(errors="surrogatepass")
    return st.just(data) | st.integers(0, len(data)).map(
        lambda place: data[:place] + b"\xff" + data[place:]
    )


# Dialects

Step: TypeAlias = str | bytes | Event
_PAIRS = st.tuples(
    st.sampled_from(
        [
            *("encoding", "sample_rate", "rate", "channels", "roles", "step_ms", "call_id"),
            *("tracks", "l16", "sample-rate", "text", "token", ""),
        ]
    ),
    st.sampled_from(
        [
            *("mulaw", "8000", "16000", "2", "customer", "agent,customer", "both", "500", "label"),
            *("little", "0", "1" * 5000, "²", "\0", "\ud800", "null", "1e3", ",", "x" * 200),
        ]
    )
    | st.text(st.characters(categories=None), max_size=20),
)
_QUERIES = st.just(()) | st.lists(_PAIRS, max_size=3).map(tuple)
_EVENTS = st.sampled_from([READY, TURN, SUMMARY, Error(code="x", message="y", fatal=True)])


def conversations(documented: Sequence[str]) -> st.SearchStrategy[Any]:
    """Return a URL's query and what is said: some as documented, then the next broken, then any."""

    def said(num_fine: int) -> st.SearchStrategy[list[Step]]:
        fine: list[Step] = list(documented[:num_fine])
        following = broken(documented[min(num_fine, len(documented) - 1)])
        step = texts(documented) | st.binary(max_size=9) | _EVENTS
        return st.tuples(following | step, st.lists(step, max_size=5)).map(
            lambda parts: [*fine, parts[0], *parts[1]]
        )

    return st.tuples(_QUERIES, st.integers(0, len(documented)).flatmap(said))


def _converse(path: str, conversation: Any, _: Path) -> Iterator[Attempt]:
    query, steps = conversation
    made: list[Any] = []
    yield lambda: made.append(
        make_dialect(Handshake(path=path, query=query), min_step_ms=100, secrets=DialectSecrets())
    )
    for dialect in made:
        for step in steps:  # a server goes on after a fault, to hear of the last acknowledgements
            if isinstance(step, str | bytes):
                yield partial(_hear, dialect, step)
            else:
                dialect.receive_event(step)
            for message in dialect.messages_to_send():
                assert isinstance(json.loads(message), dict)


def _hear(dialect: Dialect, step: str | bytes) -> None:
    """Take a message; what it says of the call can be logged and told."""
    is_text = isinstance(step, str)
    for item in dialect.receive_text(step) if is_text else dialect.receive_bytes(step):
        if isinstance(item, Start):
            assert item.call_id.isprintable() and len(item.call_id) <= 128


def dialect_target(path: str, documented: Sequence[dict[str, Any]], *found: Any) -> Target:
    return Target(
        found=found,
        allowed=(PeerError,),
        inputs=conversations([json.dumps(message, ensure_ascii=False) for message in documented]),
        feed=partial(_converse, path),
    )


def _native_query(query: Any, _: Path) -> Iterator[Attempt]:
    yield lambda: NativeDialect(Handshake(path=NATIVE_PATH, query=query))


SECRETS = DialectSecrets(
    twilio_auth_token="12345",
    telnyx_auth_token="12345",
    genesys_api_key=test_signatures.API_KEY,
    genesys_client_secret=test_signatures.CLIENT_SECRET,
    vonage_signature_secret="s" * 32,
)
_JWT = "Bearer eyJhbGciOiJIUzI1NiJ9.eyJpYXQiOjE3MDAwMDAwMDB9.AAAA"
_HEADERS = {
    **test_signatures.DOCUMENTED,
    "authorization": _JWT,
    "x-twilio-signature": "RSOYDt4T1cUTdK1PDd93/VVr8B8=",
    "x-telnyx-streaming-auth-token": "12345",
}


def _headers() -> st.SearchStrategy[tuple[tuple[str, str], ...]]:
    """Return the documented headers, of which some are missing or broken."""
    one = [
        st.none() | st.just((name, value)) | broken(value).map(lambda new, name=name: (name, new))
        for name, value in _HEADERS.items()
    ]
    return st.tuples(*one).map(lambda found: tuple(pair for pair in found if pair))


def _handshake(said: Any, _: Path) -> Iterator[Attempt]:
    path, query, headers = said
    handshake = Handshake(path=path, query=query, headers=headers)
    yield lambda: make_dialect(handshake, min_step_ms=100, secrets=SECRETS)


# Files

SERVER_FILE = """\
port = 9000
max-calls = 50
idle-timeout-s = 30.5
retention-days = 7
step-ms = 500
analyse-agents = false
no-store = true
provider = "cpu"
origin = ["https://desk.example.org"]
[[alert]]
name = "angry10"
label = "angry"
probability = 0.7
duration = 10
[[webhook]]
url = "https://desk.example.org/hooks/emotion"
secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
events = ["alert", "summary"]
[secrets]
twilio-auth-token = "12345"
genesys-api-key = { file = "key" }
"""
RULE = "name=angry10 label=angry probability=0.7 duration=10 role=customer pause=5 cooldown=60"
TOKENS = f"# desk\npbx send sha256:{'a' * 64}\ndesk-1 send,watch,admin sha256:{'b' * 64}\n"


_SETTINGS = st.lists(
    st.builds(
        "{} = {}".format,
        st.sampled_from(
            [*re.findall(r"^([\w-]+) =", SERVER_FILE, re.MULTILINE), "store", "tokens"]
        ),
        st.sampled_from(['"a"', "1", "[1]", "{ file = 1 }", '{ file = "\\u0000" }', *NASTY]),
    )
    | st.sampled_from(["[[alert]]", "[[webhook]]", "[secrets]", "[alert]", "secrets = []"]),
    max_size=4,
).map("\n".join)


def _server_file(content: bytes, folder: Path) -> Iterator[Attempt]:
    path = folder / "server.toml"
    path.write_bytes(content)
    yield lambda: read_config(path, add_options)


def _tokens_file(content: bytes, folder: Path) -> Iterator[Attempt]:
    path = folder / "tokens"
    path.write_bytes(content)
    yield lambda: load_tokens(path)


_RULE = {"name": "angry10", "label": "angry", "probability": 0.7, "duration": 10}
_TABLES = st.dictionaries(
    st.sampled_from([*_RULE, "role", "pause", "cooldown", "x"]),
    JSON | st.sampled_from(["angry", "0.7", "any", 16**5000, -(16**5000), 1e308, float("nan")]),
    max_size=3,
).map(lambda changes: _RULE | changes)


TARGETS = {
    "native": dialect_target(
        NATIVE_PATH,
        [
            {
                "type": "start",
                "audio": {"encoding": "mulaw", "sample_rate": 8000, "channels": 2},
                "roles": ["customer", "agent"],
                "call_id": "2024-17",
                "step_ms": 250,
            },
            {"type": "ack", "seq": 17},
            {"type": "end"},
            {"type": "resume", "session": "b94368e9965b61f8", "seq": 17, "samples": 112000},
        ],
    ),
    "twilio": dialect_target("/twilio", test_twilio.DOCUMENTED),
    "telnyx": dialect_target("/telnyx", test_telnyx.DOCUMENTED),
    "plivo": dialect_target("/plivo", test_plivo.DOCUMENTED),
    "exotel": dialect_target(
        "/exotel",
        test_exotel.DOCUMENTED,
        ((("sample-rate", "\ud800"),), [json.dumps(test_exotel.START)]),
    ),
    "vonage": dialect_target(
        "/vonage",
        [{**CONNECTED, "call_id": "x", "roles": "agent", "step_ms": 500}, DTMF, NOTIFY, CLEARED],
    ),
    "genesys": dialect_target("/genesys", audiohook.documented()),
    "vosk": dialect_target(
        "/vosk", [{"config": {"sample_rate": 16000, "phrase_list": ["a"]}}, {"eof": 1}]
    ),
    "query of the native protocol": Target(
        allowed=(PeerError,), inputs=_QUERIES, feed=_native_query
    ),
    "signed handshakes": Target(
        allowed=(PeerError,),
        inputs=st.tuples(st.sampled_from(PATHS), _QUERIES, _headers()),
        feed=_handshake,
        found=tuple((path, (("encoding", "\ud800"),), ()) for path in PATHS),
    ),
    "server's file": Target(
        allowed=(ConfigError,),
        inputs=(texts([SERVER_FILE]) | _SETTINGS).flatmap(as_bytes),
        feed=_server_file,
        found=(
            *(b"port = " + piece for piece in (b"1" * 5000, b"0x" + b"f" * 5000, b"[" * 3000)),
            b"[[webhook]]\nurl = 'x'\nsecret = 'x'\nevents = 0x" + b"f" * 5000,
        ),
    ),
    "tokens file": Target(
        allowed=(ConfigError,), inputs=texts([TOKENS]).flatmap(as_bytes), feed=_tokens_file
    ),
    "alert rule": Target(
        allowed=(ConfigError,),
        inputs=texts([RULE]) | _TABLES,
        feed=lambda rule, _: iter([lambda: parse_rule(rule)]),
        found=(*({**_RULE, key: 16**5000} for key in _RULE), 'name="\ud800" label=angry'),
    ),
    "event": Target(
        allowed=(msgspec.DecodeError,),
        inputs=texts([encode_event(event).decode() for event in EVENTS]).flatmap(
            lambda text: st.just(text) | as_bytes(text)
        ),
        feed=lambda line, _: iter([lambda: decode_event(line)]),
        found=('{"a":' * 3000, "\ud800"),
    ),
    "card": Target(
        allowed=(CardError,),
        inputs=texts([encode_card(make_card())]),
        feed=lambda text, _: iter([lambda: decode_card(text, "can.onnx")]),
        found=('{"a":' * 3000,),
    ),
}


def test_every_dialect_is_here() -> None:
    names = {"native" if path == NATIVE_PATH else path[1:] for path in PATHS}
    assert names <= set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_only_documented_errors_come_out(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    target = TARGETS[name]
    num_examples: int | None = request.config.getoption("--fuzz-examples")

    @settings(
        max_examples=num_examples or 40,
        derandomize=num_examples is None,
        database=None,
        phases=[Phase.explicit, Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(target.inputs)
    def feed(item: Any) -> None:
        for attempt in target.feed(item, tmp_path):
            try:
                attempt()
            except target.allowed as error:
                str(error).encode()  # it is logged, or sent

    for item in target.found:
        feed = example(item)(feed)
    feed()
