"""What is published of the protocol is what the code says, and what crosses a real wire."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from docs import generate
from tests.traffic import (
    BAD,
    DOCUMENT,
    MESSAGES,
    SCHEMAS,
    VALIDATORS,
    Json,
    Traffic,
    at,
    kind_of,
    record,
)

# What is published


@pytest.mark.parametrize("name", generate.FILES)
def test_what_is_published_is_what_the_code_says(name: str) -> None:
    published = (generate.DOCS / name).read_text("utf-8")
    assert published == generate.text_of(name), "run: python docs/generate.py"


def test_schemas_are_schemas() -> None:
    protocol = generate.protocol_schema()
    for schema in (generate.event_schema(), protocol, *SCHEMAS.values()):
        jsonschema.Draft202012Validator.check_schema(schema)
    assert refs_of(protocol) <= {f"#/$defs/{name}" for name in protocol["$defs"]}


def fields(required: str, optional: str = "", **of: Json) -> Json:
    """Return the schema of an object with these fields, and of some of them."""
    names = [*required.split(), *optional.split()]
    return {
        "type": "object",
        "required": required.split(),
        "properties": {name: of.get(name, {}) for name in names},
        "patternProperties": {"^x-[a-z-]+$": {}},
        "additionalProperties": False,
    }


def named(item: Json) -> Json:
    """Return the schema of a map whose keys are fit for a component (specification, 3.0.0)."""
    return {
        "type": "object",
        "minProperties": 1,
        "propertyNames": {"pattern": r"^[A-Za-z0-9_.-]+$"},
        "additionalProperties": item,
    }


REF = fields("$ref")
SERVER = fields("host protocol", "protocolVersion pathname description title variables security")
CHANNEL = fields(
    "address messages",
    "title summary description servers parameters tags externalDocs bindings",
    address={"type": "string", "pattern": "^/"},
    messages=named(REF),
    bindings=fields("ws", ws=fields("bindingVersion", "method query headers")),
)
OPERATION = fields(
    "action channel messages",
    "title summary description security tags externalDocs bindings traits reply",
    action={"enum": ["send", "receive"]},
    channel=REF,
    messages={"type": "array", "items": REF, "minItems": 1, "uniqueItems": True},
)
MESSAGE = fields(
    "name payload",
    "headers correlationId contentType title summary description tags externalDocs bindings "
    "examples traits",
    examples={"type": "array", "items": fields("payload", "headers name summary")},
)
ROOT = fields(
    "asyncapi info servers channels operations components",
    "id defaultContentType",
    asyncapi={"const": "3.0.0"},
    info=fields("title version", "description termsOfService contact license tags externalDocs"),
    servers=named(SERVER),
    channels=named(CHANNEL),
    operations=named(OPERATION),
    components=fields("messages schemas", "securitySchemes", messages=named(MESSAGE)),
)
"""An AsyncAPI 3.0 document, as far as it has what is here."""


def refs_of(item: Any) -> set[str]:
    """Return all references of a document."""
    if isinstance(item, list):
        return {ref for part in item for ref in refs_of(part)}
    if not isinstance(item, dict):
        return set()
    own = {item["$ref"]} if isinstance(item.get("$ref"), str) else set()
    return own | {ref for part in item.values() for ref in refs_of(part)}


def test_the_document_is_asyncapi() -> None:
    jsonschema.Draft202012Validator(ROOT).validate(DOCUMENT)
    for ref in refs_of(DOCUMENT):
        at(ref)
    for operation in DOCUMENT["operations"].values():
        messages = f"{operation['channel']['$ref']}/messages/"
        assert all(ref.startswith(messages) for ref in refs_of(operation["messages"]))


def test_every_part_of_the_document_is_used() -> None:
    used = refs_of(DOCUMENT)
    for kind, parts in DOCUMENT["components"].items():
        assert {f"#/components/{kind}/{name}" for name in parts} <= used
    told = {ref for item in DOCUMENT["operations"].values() for ref in refs_of(item["messages"])}
    for name, channel in DOCUMENT["channels"].items():
        assert {f"#/channels/{name}/messages/{message}" for message in channel["messages"]} <= told


def test_examples_are_of_their_messages() -> None:
    for name, message in DOCUMENT["components"]["messages"].items():
        for example in message.get("examples", []):
            VALIDATORS[name].validate(example["payload"])


@pytest.fixture(scope="module")
def traffic(tmp_path_factory: pytest.TempPathFactory) -> Traffic:
    return record(tmp_path_factory.mktemp("kept"))


# What is said


def test_what_crosses_the_wire_is_what_is_published(traffic: Traffic) -> None:
    seen = {(operation, kind_of(operation, text)) for operation, text in traffic.messages}
    every = {(operation, name) for operation, names in MESSAGES.items() for name in names}
    assert every == seen, "every message of the document was said, either way"


@pytest.mark.parametrize("kind", ["turn", "summary", "snapshot"])
def test_a_field_that_is_not_published_would_be_seen(traffic: Traffic, kind: str) -> None:
    for operation in ("show",) if kind == "snapshot" else ("tell", "show"):
        of_kind = [message for message in traffic.told(operation) if message["type"] == kind]
        message = max(of_kind, key=lambda message: len(str(message)))
        (message.get("calls") or message.get("channels") or [message])[0]["news"] = 1
        with pytest.raises(AssertionError, match="news"):
            kind_of(operation, json.dumps(message))


@pytest.mark.parametrize("message", [*BAD[::2], '{"type":"end","now":true}', '{"type":"ready"}'])
def test_what_the_server_refuses_is_not_published(message: str) -> None:
    with pytest.raises((AssertionError, json.JSONDecodeError)):
        kind_of("hear", message)


def consts_of(name: str) -> set[str]:
    return {known["const"] for known in SCHEMAS[name]["anyOf"] if "const" in known}


def test_codes_are_published(traffic: Traffic) -> None:
    for operation, name in (("tell", "ErrorCode"), ("show", "ApiErrorCode")):
        errors = [item for item in traffic.told(operation) if item["type"] == "error"]
        own = {item["code"] for item in errors if "call" not in item}
        assert own and own <= consts_of(name)
    assert {"bad_json", "bad_audio", "bad_message", "scorer_failed"} <= {
        item["code"] for item in traffic.told("tell") if item["type"] == "error"
    }
    for channel, code, reason in traffic.closes:
        assert str(code) in DOCUMENT["channels"][channel]["x-close-codes"]
        name = "ApiErrorCode" if channel == "watch" else "ErrorCode"
        assert reason in {"", "end"} or reason in consts_of(name)
    assert {code for _, code, _ in traffic.closes} == {1000, 1007, 1008}


# Calls over HTTP


API = (generate.DOCS / "api.md").read_text("utf-8")


def shown(part: str) -> Any:
    """Return the JSON that a part of the page shows."""
    return json.loads(API.split(f"## {part}\n")[1].split("```json\n")[1].split("```")[0])


def same_shape(one: Any, other: Any) -> bool:
    """Whether two have the same fields, of the same kinds; what is empty or null may be any."""
    if not one or not other:
        return True
    if isinstance(one, dict) and isinstance(other, dict):
        return set(one) == set(other) and all(same_shape(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return same_shape(one[0], other[0])
    return type(one) is type(other)


def test_a_list_of_calls_is_as_the_page_says(traffic: Traffic) -> None:
    documented = shown("`GET /v1/calls`")
    for page in ("/v1/calls", "/v1/calls?limit=1"):
        status, body = traffic.bodies[page]
        assert status == 200 and set(body) == set(documented) and body["calls"]
        assert same_shape(body, documented)
        for call in body["calls"]:
            VALIDATORS["CallView"].validate(call)
    assert len(traffic.bodies["/v1/calls?limit=1"][1]["calls"]) == 1
    assert isinstance(traffic.bodies["/v1/calls?limit=1"][1]["next_cursor"], str)
    assert traffic.bodies["/v1/calls"][1]["next_cursor"] is None


def test_calls_with_an_uncertain_turn_are_found(traffic: Traffic) -> None:
    _, found = traffic.bodies["/v1/calls?label=uncertain"]
    with_turns = {
        call["session"]
        for call in traffic.bodies["/v1/calls"][1]["calls"]
        if traffic.bodies[f"/v1/calls/{call['session']}"][1]["turns"]
    }
    assert {call["session"] for call in found["calls"]} == with_turns and len(with_turns) >= 3
    assert {call["channels"][0]["label"] for call in found["calls"]} == {"uncertain"}
    assert traffic.bodies["/v1/calls?label=sad"][1]["calls"] == []


def test_parameters_are_those_of_the_page(traffic: Traffic) -> None:
    table = API.split("| parameter | value | default |\n")[1].split("\n\n")[0].splitlines()[1:]
    names = [row.split("`")[1] for row in table]
    status, body = traffic.bodies["/v1/calls?colour=red"]
    assert (status, body["expected"]) == (400, " or ".join(names))


def test_a_call_is_as_the_page_says(traffic: Traffic) -> None:
    documented = shown("`GET /v1/calls/{session}`")
    kinds = {"turns": "Turn", "alerts": "Alert", "gaps": "Gap", "talk_overs": "TalkOver"}
    kinds |= {"errors": "Error", "channels": "ChannelSummary"}
    seen = set()
    for call in traffic.bodies["/v1/calls"][1]["calls"]:
        status, body = traffic.bodies[f"/v1/calls/{call['session']}"]
        assert status == 200 and list(body) == list(documented)
        assert body["call"] == call
        VALIDATORS["Summary"].validate(body["summary"])
        for key, name in kinds.items():
            seen |= {key} if body[key] else set()
            for item in body[key]:
                VALIDATORS[name].validate(item)
        _, whole = traffic.bodies[f"/v1/calls/{call['session']}?events=all"]
        assert list(whole) == [*documented, "events"]
        for event in whole["events"]:
            kind_of("tell", json.dumps(event))
    assert seen == set(kinds)


@pytest.mark.parametrize(
    ("page", "status", "code"),
    [
        ("/v1/calls?limit=0", 400, "bad_parameter"),
        ("/v1/calls/unknown", 404, "unknown_call"),
        ("/v1/watch", 426, "upgrade_required"),
    ],
)
def test_errors_are_as_the_page_says(traffic: Traffic, page: str, status: int, code: str) -> None:
    found, body = traffic.bodies[page]
    assert (found, body["code"]) == (status, code)
    ((outcome, _),) = generate.api_codes()[code]
    assert outcome == str(status)
    assert same_shape(body, shown("What goes wrong"))
    VALIDATORS["WatchError"].validate(body)
