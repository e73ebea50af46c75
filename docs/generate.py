"""Write what these pages have that is made from the code: run `python docs/generate.py`.

- `events.schema.json`: JSON Schema of the events, the same as `ser-stream --schema` prints;
- `protocol.schema.json`: JSON Schema of every message, either way, of `/v1/stream` and `/v1/watch`;
- `asyncapi.json`: the same as AsyncAPI 3.0, with addresses, query, errors and closes.

Messages come from the types that read and write them. Error codes, their closes and the examples
come from the tables and the JSON of `protocol.md`, `api.md` and `operations.md`.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias, get_args

import msgspec
from msgspec import UNSET, Struct

import streamer
from streamer import audio, dialects
from streamer.call import ROLES
from streamer.call_views import CallView, ChannelView
from streamer.dialects import CloseCode, native
from streamer.dialects.registry import NATIVE_PATH
from streamer.events import (
    SCHEMA_VERSION,
    ChannelSummary,
    Emotion,
    Event,
    ReadyChannel,
    Turn,
    event_schema,
)
from streamer.server import ServerConfig

DOCS = Path(__file__).resolve().parent
WATCH_PATH = "/v1/watch"

Schema: TypeAlias = dict[str, Any]

CLIENT = get_args(native.Message)
EVENTS = get_args(Event)


class Whose(Struct, frozen=True, kw_only=True):
    """What a watched event has before its own fields: the session, and the peer's own name."""

    call: str
    call_id: str


class WatchedCall(Struct, frozen=True, kw_only=True):
    """A call that goes on: the newest ``emotion`` and ``turn`` of each channel."""

    call: CallView
    emotions: tuple[Emotion, ...]
    turns: tuple[Turn, ...]


class Snapshot(Struct, frozen=True, kw_only=True, tag_field="type", tag="snapshot"):
    """The calls that go on; what a watcher knew before is out of date."""

    calls: tuple[WatchedCall, ...]


class WatchError(Struct, frozen=True, kw_only=True, tag_field="type", tag="error"):
    """Why a watcher is sent away; close 1008 follows, with the code as its reason."""

    code: str
    message: str
    found: str
    expected: str


_SENT = (*EVENTS, native.Arrived, Snapshot, WatchError, Whose, WatchedCall)
_PARTS = (ReadyChannel, ChannelSummary, CallView, ChannelView)


# What is said


def definitions(ref: str) -> dict[str, Schema]:
    """Return the schema of every message and part by its name; ``ref`` is where others find it."""
    _, found = msgspec.json.schema_components([*CLIENT, *_SENT], ref_template=ref)
    for kind in (*_SENT, *_PARTS):
        _as_sent(found[kind.__name__], kind)
    for schema in found.values():
        schema["description"] = _plain(schema["description"])
    found["Error"]["properties"]["code"] = {"$ref": ref.format(name="ErrorCode")}
    found["WatchError"]["properties"]["code"] = {"$ref": ref.format(name="ApiErrorCode")}
    found["ErrorCode"] = _codes("`code` of an `error` event", stream_codes())
    found["ApiErrorCode"] = _codes("`code` of the calls' HTTP and of `/v1/watch`", api_codes())
    whose = {"$ref": ref.format(name="Whose")}
    for kind in EVENTS:
        found[f"Watched{kind.__name__}"] = {
            "title": f"Watched{kind.__name__}",
            "description": f"`{_tag(kind)}` of a call that is watched.",
            "allOf": [whose, {"$ref": ref.format(name=kind.__name__)}],
        }
    return dict(sorted(found.items()))


def unions() -> dict[str, tuple[str, list[str]]]:
    """Return what each side may say: a description, and the definitions' names."""
    events = [kind.__name__ for kind in EVENTS]
    return {
        "ClientMessage": (
            f"Text that a client sends to `{NATIVE_PATH}`; its binary messages are audio.",
            [kind.__name__ for kind in CLIENT],
        ),
        "ServerMessage": (f"What `{NATIVE_PATH}` sends.", ["Arrived", *events]),
        "WatchMessage": (
            f"What `{WATCH_PATH}` sends.",
            ["Snapshot", "WatchError", *(f"Watched{name}" for name in events)],
        ),
    }


def protocol_schema() -> Schema:
    """Return the JSON Schema (2020-12) of all messages; the three unions are definitions, too."""
    sides = {
        name: {"description": text, "anyOf": [{"$ref": f"#/$defs/{kind}"} for kind in kinds]}
        for name, (text, kinds) in unions().items()
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ser-stream protocol",
        "description": (
            f"Every text message of {NATIVE_PATH} and {WATCH_PATH}, schema version "
            f"{SCHEMA_VERSION}. New fields and types may come within a version."
        ),
        "anyOf": [{"$ref": f"#/$defs/{name}"} for name in sides],
        "$defs": {**sides, **definitions("#/$defs/{name}")},
    }


def _as_sent(schema: Schema, kind: type[Struct]) -> None:
    """Tell that the server leaves no field out, whatever its default."""
    given = [item.encode_name for item in msgspec.structs.fields(kind) if item.default is not UNSET]
    schema["required"] = [*(["type"] if "type" in schema["properties"] else []), *given]
    for value in schema["properties"].values():
        value.pop("default", None)


def _plain(text: str) -> str:
    """Return a docstring as Markdown."""
    text = re.sub(r":\w+:`(?:[\w.]*\.)?(\w+)`", r"`\1`", inspect.cleandoc(text))
    return text.replace("``", "`")


def _tag(kind: type[Struct]) -> str:
    return str(kind.__struct_config__.tag)


# What goes wrong


def stream_codes() -> dict[str, list[tuple[str, str]]]:
    """Return the codes of ``error`` events, each with its closes and why."""
    page = _page("protocol.md")
    found = _table(page, "`code` | close | why")
    for code, why in re.findall(
        r"`(\w+)`, ([^;.]+)", page.split("\nNot fatal:")[1].split("\n\n")[0]
    ):
        found.setdefault(code, []).append(("none, the call goes on", " ".join(why.split())))
    return found


def api_codes() -> dict[str, list[tuple[str, str]]]:
    """Return the codes of the calls' HTTP, each with its status and why; empty: WebSocket alone."""
    return _table(_page("api.md"), "`code` | HTTP | why")


def refusals() -> dict[str, list[tuple[str, str]]]:
    """Return the codes with which a handshake is refused, with status and what helps."""
    rows = re.findall(r"^\| (4\d\d) \| `(\w+)` \| (.+) \|$", _page("operations.md"), re.MULTILINE)
    return {code: [(status, why)] for status, code, why in rows}


def close_codes() -> dict[str, str]:
    """Return what each close code of ours says, from the remarks beside them."""
    (tree,) = ast.parse(inspect.getsource(CloseCode)).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for value, remark in zip(tree.body[1::2], tree.body[2::2], strict=True):
        assert isinstance(value, ast.Assign) and isinstance(value.value, ast.Constant)
        assert isinstance(remark, ast.Expr) and isinstance(remark.value, ast.Constant)
        found[str(value.value.value)] = str(remark.value.value)
    assert set(found) == {str(code.value) for code in dialects.CloseCode}
    return found


def _page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def _table(page: str, head: str) -> dict[str, list[tuple[str, str]]]:
    """Return a table of codes: of each all its rows' other cells."""
    rows = page.split(f"| {head} |\n")[1].split("\n\n")[0].splitlines()[1:]
    found: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        codes, outcome, why = (cell.strip() for cell in row.strip("|").split("|"))
        for code in re.findall(r"`(\w+)`", codes):
            found.setdefault(code, []).append((outcome, why))
    return found


def _codes(title: str, codes: dict[str, list[tuple[str, str]]]) -> Schema:
    """Return the schema of a code: those there are, and that others may come."""
    known = [
        {"const": code, "description": "; ".join(_outcome(*row) for row in rows)}
        for code, rows in codes.items()
    ]
    return {
        "title": title,
        "description": "New ones may come within a schema version.",
        "type": "string",
        "anyOf": [*known, {"type": "string"}],
    }


def _outcome(outcome: str, why: str) -> str:
    return f"{outcome}: {why}" if outcome else why


# AsyncAPI


def asyncapi() -> Schema:
    """Return the AsyncAPI 3.0 document, as the server sees it: it receives what clients send."""
    schemas = definitions("#/components/schemas/{name}")
    sides = {name: kinds for name, (_, kinds) in unions().items()}
    stream = [*sides["ClientMessage"], "Audio", *sides["ServerMessage"]]
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "ser-stream",
            "version": streamer.__version__,
            "description": (
                "Speech emotion recognition: audio in, timed emotion events out. "
                "docs/protocol.md and docs/api.md say in words what is here in types."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "servers": _servers(),
        "channels": {
            "stream": _channel(NATIVE_PATH, "One WebSocket is one call.", stream, _stream_query()),
            "watch": _channel(
                WATCH_PATH,
                "Calls as they go on: a snapshot, then events. A watcher has nothing to say.",
                sides["WatchMessage"],
                {"call": {"type": "string", "description": "The session of one that goes on."}},
            ),
        },
        "operations": {
            "hear": _operation("receive", "stream", [*sides["ClientMessage"], "Audio"]),
            "tell": _operation("send", "stream", sides["ServerMessage"]),
            "show": _operation("send", "watch", sides["WatchMessage"]),
        },
        "components": {
            "messages": _messages(schemas, {*stream, *sides["WatchMessage"]}),
            "schemas": schemas,
            "securitySchemes": _security(),
        },
    }


def _servers() -> Schema:
    variables = {
        "host": {"default": ServerConfig.host},
        "port": {"default": str(ServerConfig.port)},
    }
    security = [{"$ref": f"#/components/securitySchemes/{name}"} for name in _security()]
    return {
        "loopback": {
            "host": "{host}:{port}",
            "protocol": "ws",
            "description": "On one machine; without tokens nobody else may come.",
            "variables": variables,
        },
        "tls": {
            "host": "{host}:{port}",
            "protocol": "wss",
            "description": "With a certificate and tokens.",
            "variables": variables,
            "security": security,
        },
    }


def _security() -> Schema:
    return {
        "bearer": {
            "type": "http",
            "scheme": "bearer",
            "description": "Scope `send` for calls, `watch` for watchers.",
        },
        "query": {
            "type": "httpApiKey",
            "name": "token",
            "in": "query",
            "description": "Opens `send` alone, because URLs are logged.",
        },
        "browser": {
            "type": "httpApiKey",
            "name": "Sec-WebSocket-Protocol",
            "in": "header",
            "description": "`bearer, TOKEN`; the server answers `bearer`.",
        },
    }


def _channel(address: str, text: str, messages: Iterable[str], query: Schema) -> Schema:
    return {
        "address": address,
        "description": text,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {
            "ws": {
                "method": "GET",
                "query": {"type": "object", "properties": query, "additionalProperties": False},
                "bindingVersion": "0.1.0",
            }
        },
        "x-close-codes": close_codes(),
        "x-refusals": {
            code: {"status": int(status), "remedy": why}
            for code, ((status, why),) in refusals().items()
        },
    }


def _stream_query() -> Schema:
    """Return the native query: its names and ranges are those that the dialect checks."""
    values: dict[str, Schema] = {
        "encoding": {"enum": list(get_args(audio.Encoding))},
        "sample_rate": {
            "type": "integer",
            "minimum": audio.SAMPLE_RATE_MIN,
            "maximum": audio.SAMPLE_RATE_MAX,
        },
        "channels": {"enum": [1, 2]},
        "roles": {"type": "string", "description": f"{' or '.join(ROLES)}, one a channel"},
        "step_ms": {
            "type": "integer",
            "minimum": round(ServerConfig.min_step_s * 1000),
            "maximum": native._MAX_STEP_MS,
            "multipleOf": native._SHIFT_MS,
        },
        "call_id": {"type": "string", "minLength": 1, "maxLength": native._MAX_CALL_ID},
    }
    return {name: values[field] for name, field in native._PARAMETERS.items()}


def _operation(action: str, channel: str, messages: Iterable[str]) -> Schema:
    at = f"#/channels/{channel}"
    return {
        "action": action,
        "channel": {"$ref": at},
        "messages": [{"$ref": f"{at}/messages/{name}"} for name in messages],
    }


def _messages(schemas: dict[str, Schema], names: set[str]) -> Schema:
    examples = documented()
    found: Schema = {}
    for name in sorted(names):
        if name == "Audio":
            found[name] = {
                "name": "audio",
                "title": "audio",
                "summary": "A binary message: the call's audio, cut anywhere.",
                "contentType": "application/octet-stream",
                "payload": {"type": "string", "format": "binary"},
            }
            continue
        text = schemas[name]["description"]
        found[name] = {
            "name": name,
            "title": name,
            "summary": text.split("\n\n")[0].replace("\n", " "),
            "payload": {"$ref": f"#/components/schemas/{name}"},
        }
        if name in examples:
            found[name]["examples"] = [{"payload": payload} for payload in examples[name]]
    return found


def documented() -> dict[str, list[Schema]]:
    """Return the messages that `protocol.md` shows, by their definitions' names."""
    blocks = re.findall(r"^```json\n(.*?)^```$", _page("protocol.md"), re.MULTILINE | re.DOTALL)
    kinds = {_tag(kind): kind.__name__ for kind in (*CLIENT, *EVENTS)}
    found: dict[str, list[Schema]] = {}
    for line in "".join(blocks).splitlines():
        message = json.loads(line)
        is_servers = message["type"] == "ack" and "session" in message
        name = "Arrived" if is_servers else kinds[message["type"]]
        found.setdefault(name, []).append(message)
    return found


FILES: dict[str, Callable[[], Schema]] = {
    "events.schema.json": event_schema,
    "protocol.schema.json": protocol_schema,
    "asyncapi.json": asyncapi,
}


def text_of(name: str) -> str:
    """Return what a file is to hold."""
    return json.dumps(FILES[name](), indent=2, ensure_ascii=name == "events.schema.json") + "\n"


if __name__ == "__main__":
    for name in FILES:
        (DOCS / name).write_text(text_of(name), "utf-8")
