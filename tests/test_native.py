"""The native protocol: what it takes, what it refuses, and that it refuses in one way only."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamer.audio import AudioFormat
from streamer.dialects import Acknowledge, CloseCode, Dialect, End, Handshake, PeerError, Start
from streamer.dialects.native import NativeDialect, ResumeFrom
from streamer.events import Turn, decode_event

START = '{"type":"start"}'
END = '{"type":"end"}'


def native(query: Iterable[tuple[str, str]] = ()) -> NativeDialect:
    return NativeDialect(Handshake(path="/v1/stream", query=tuple(query)))


def refusal(*messages: str | bytes, query: dict[str, str] | None = None) -> PeerError:
    """Return the fault of the last message; those before it are fine."""
    *fine, bad = messages
    if query is not None:
        with pytest.raises(PeerError) as caught:
            native(query.items())
        return caught.value
    dialect = native()
    for message in fine:
        receive(dialect, message)
    with pytest.raises(PeerError) as caught:
        receive(dialect, bad)
    return caught.value


def receive(dialect: Dialect, message: str | bytes) -> list[Any]:
    if isinstance(message, str):
        return dialect.receive_text(message)
    return dialect.receive_bytes(message)


def test_a_documented_conversation() -> None:
    dialect = native()
    start = {
        "type": "start",
        "audio": {"encoding": "mulaw", "sample_rate": 8000, "channels": 2},
        "roles": ["customer", "agent"],
        "call_id": "CA 17",
        "step_ms": 500,
    }
    assert dialect.receive_text(json.dumps(start)) == [
        Start(
            audio=AudioFormat(encoding="mulaw", sample_rate=8000, channels=2),
            roles=("customer", "agent"),
            step_s=0.5,
            call_id="CA 17",
        )
    ]
    assert dialect.receive_bytes(b"\x00\x01") == [b"\x00\x01"]
    assert dialect.receive_text(END) == [End()]


def test_every_field_of_start_is_optional() -> None:
    assert native().receive_text(START) == [Start()]
    assert Start().audio == AudioFormat(encoding="pcm_s16le", sample_rate=16000, channels=1)


def test_audio_at_once_starts_a_call_with_the_defaults() -> None:
    dialect = native()
    assert dialect.receive_bytes(b"\x00") == [Start(), b"\x00"]
    assert dialect.receive_bytes(b"\x01") == [b"\x01"]


def test_audio_at_once_is_what_the_url_says() -> None:
    query = [("encoding", "alaw"), ("rate", "8000"), ("channels", "2")]
    query += [("roles", "agent,customer"), ("step_ms", "1000"), ("call_id", "x")]
    (start, _) = native(query).receive_bytes(b"\x00")
    assert start == Start(
        audio=AudioFormat(encoding="alaw", sample_rate=8000, channels=2),
        roles=("agent", "customer"),
        step_s=1.0,
        call_id="x",
    )


def test_the_url_fills_what_start_leaves_out() -> None:
    dialect = native([("rate", "8000")])
    (start,) = dialect.receive_text('{"type":"start","audio":{"encoding":"mulaw"}}')
    assert start == Start(audio=AudioFormat(encoding="mulaw", sample_rate=8000))


def test_start_may_not_contradict_the_url() -> None:
    dialect = native([("rate", "8000")])
    with pytest.raises(PeerError, match="sample_rate is 16000 in the start message but 8000 in"):
        dialect.receive_text('{"type":"start","audio":{"sample_rate":16000}}')


def test_an_end_without_audio_is_an_empty_call() -> None:
    assert native().receive_text(END) == [Start(), End()]


def test_an_event_is_json_text() -> None:
    turn = Turn(start_s=0.0, end_s=1.0, label="sad", scores={"sad": 1.0}, windows=1)
    dialect = native()
    dialect.receive_event(turn)
    (text,) = dialect.messages_to_send()
    assert json.loads(text)["type"] == "turn"
    assert decode_event(text) == turn
    assert dialect.messages_to_send() == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[]", "Expected `object`, got `array`"),
        ("{}", "missing required field `type`"),
        ("null", "Expected `object`, got `null`"),
        ('{"type":"begin"}', "Invalid value 'begin' - at `$.type`"),
        ('{"type":"start","rate":8000}', "unknown field `rate`"),
        ('{"type":"start","audio":{"rate":8000}}', "unknown field `rate` - at `$.audio`"),
        ('{"type":"start","audio":{"sample_rate":"8000"}}', "Expected `int`, got `str`"),
        ('{"type":"start","audio":{"sample_rate":8000.5}}', "Expected `int`, got `float`"),
        ('{"type":"start","audio":{"sample_rate":true}}', "Expected `int`, got `bool`"),
        ('{"type":"start","audio":{"sample_rate":1' + "0" * 4000 + "}}", "sample_rate"),
        ('{"type":"start","step_ms":1e400}', "step_ms"),
        ('{"type":"start","step_ms":-1}', "step_ms"),
        ('{"type":"start","audio":null}', "Expected `object`, got `null`"),
        ('{"type":"start","roles":"agent"}', "Expected `array`, got `str`"),
        ('{"type":"start","call_id":"a\\nb"}', "printable"),
        ('{"type":"start","call_id":"' + "x" * 129 + '"}', "129 characters"),
        ('{"type":"end","now":true}', "unknown field `now`"),
    ],
)
def test_what_is_no_message_is_refused(text: str, sentence: str) -> None:
    fault = refusal(text)
    assert sentence in str(fault)
    assert (fault.code, fault.close_code) == ("bad_message", CloseCode.POLICY)


@pytest.mark.parametrize(
    "text", ["", "nope", '{"type":', END + "x", '{"type":"\ud800"}', '{"x":NaN}']
)
def test_what_is_no_json_is_refused(text: str) -> None:
    fault = refusal(text)
    assert (fault.code, fault.close_code) == ("bad_json", CloseCode.INVALID_DATA)


@pytest.mark.parametrize(
    ("audio", "sentence"),
    [
        ('{"sample_rate":96000}', "96000, expected"),
        ('{"sample_rate":7999}', "7999, expected"),
        ('{"sample_rate":2147483647}', "2147483647, expected"),
        ('{"channels":3}', "channels is 3, expected 1 or 2"),
        ('{"encoding":"mp3"}', "encoding is 'mp3', expected one of pcm_s16le"),
    ],
)
def test_what_is_no_format_is_refused(audio: str, sentence: str) -> None:
    fault = refusal(f'{{"type":"start","audio":{audio}}}')
    assert sentence in str(fault)
    assert (fault.code, fault.close_code) == ("bad_audio", CloseCode.POLICY)


@pytest.mark.parametrize("step_ms", [0, 1, 15, 90, 99, 255, 10_005, 10_010, 2**31 - 1])
def test_a_step_out_of_range_is_refused_in_the_same_words(step_ms: int) -> None:
    sentence = f"step of {step_ms} ms: expected 100 to 10000 ms, a multiple of 10 ms"
    fault = refusal(json.dumps({"type": "start", "step_ms": step_ms}))
    assert (str(fault), fault.code, fault.close_code) == (sentence, "bad_config", CloseCode.POLICY)
    with pytest.raises(PeerError, match=sentence):
        native([("step_ms", str(step_ms))]).receive_bytes(b"")


@pytest.mark.parametrize("step_ms", [100, 110, 250, 10_000])
def test_a_step_in_range(step_ms: int) -> None:
    (start,) = native().receive_text(json.dumps({"type": "start", "step_ms": step_ms}))
    assert start == Start(step_s=step_ms / 1000)


def test_the_shortest_step_is_the_servers_to_say() -> None:
    dialect = NativeDialect(Handshake(path="/v1/stream"), min_step_ms=10)
    (start,) = dialect.receive_text('{"type":"start","step_ms":10}')
    assert start == Start(step_s=0.01)


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"rat": "8000"}, "'rat' is unknown, expected one of encoding, sample_rate, rate"),
        ({"rate": "8000", "sample_rate": "8000"}, "sample_rate is given twice"),
        ({"rate": "fast"}, "sample_rate is 'fast', expected a whole number in digits"),
        ({"rate": "16000.0"}, "sample_rate is '16000.0', expected a whole number in digits"),
        ({"channels": "1e0"}, "channels is '1e0', expected"),
        ({"channels": "١"}, "channels is '١', expected"),
        ({"channels": "²"}, "channels is '²', expected"),
        ({"step_ms": "+250"}, "step_ms is '+250', expected"),
        ({"step_ms": " 250"}, "step_ms is ' 250', expected"),
        ({"step_ms": "2_50"}, "step_ms is '2_50', expected"),
        ({"step_ms": "null"}, "step_ms is 'null', expected"),
        ({"rate": "9" * 8000}, "sample_rate"),
        ({"channels": ""}, "channels"),
        ({"step_ms": "1.5"}, "step_ms"),
    ],
)
def test_what_the_url_may_not_say(query: dict[str, str], sentence: str) -> None:
    assert sentence in str(refusal(b"", query=query))


@pytest.mark.parametrize(
    "messages",
    [(START, START), (b"\x00\x00", START), (START, END, END), (END, START), (END, b"\x00")],
)
def test_nothing_comes_twice_or_after_the_end(messages: tuple[str | bytes, ...]) -> None:
    fault = refusal(*messages)
    assert (fault.code, fault.close_code) == ("bad_message", CloseCode.POLICY)


RESUME = '{"type":"resume","session":"x","seq":3}'


def test_who_comes_back_says_what_it_has() -> None:
    dialect = native()
    assert dialect.receive_text(RESUME) == [ResumeFrom(session="x", seq=3)]
    assert dialect.receive_bytes(b"\x00") == [b"\x00"]
    assert dialect.receive_text('{"type":"ack","seq":7}') == [Acknowledge(seq=7)]
    assert dialect.receive_text(END) == [End()]
    assert dialect.receive_text('{"type":"ack","seq":9}') == [Acknowledge(seq=9)], "after the end"


def test_who_comes_back_may_say_from_where_it_can_send() -> None:
    text = '{"type":"resume","session":"x","seq":3,"samples":9000}'
    assert native().receive_text(text) == [ResumeFrom(session="x", seq=3, samples=9000)]


def test_the_server_tells_what_has_arrived() -> None:
    dialect = native()
    dialect.receive_progress("x", 16000, 4)
    (text,) = dialect.messages_to_send()
    assert json.loads(text) == {"type": "ack", "session": "x", "samples": 16000, "seq": 4}


@pytest.mark.parametrize(
    "messages",
    [
        ('{"type":"resume"}',),
        ('{"type":"resume","session":"x"}',),
        ('{"type":"resume","session":"x","seq":-1}',),
        ('{"type":"resume","session":"x","seq":3,"more":true}',),
        ('{"type":"resume","session":"x","seq":3,"samples":-1}',),
        ('{"type":"resume","session":7,"seq":"3"}',),
        ('{"type":"resume","session":"' + "x" * 65 + '","seq":3}',),
        ('{"type":"ack","seq":3}',),
        (START, '{"type":"ack"}'),
        (START, '{"type":"ack","seq":-1}'),
        (START, '{"type":"ack","seq":3,"session":null}'),
        (START, RESUME),
        (b"\x00\x00", RESUME),
        (RESUME, RESUME),
        (RESUME, START),
        (RESUME, END, RESUME),
    ],
)
def test_what_does_not_resume(messages: tuple[str | bytes, ...]) -> None:
    fault = refusal(*messages)
    assert (fault.code, fault.close_code) == ("bad_message", CloseCode.POLICY)
    assert "expected" in str(fault)


def test_text_is_short() -> None:
    fault = refusal("[" * 1_000_000)
    assert (fault.code, fault.close_code) == ("too_big", CloseCode.TOO_BIG)
    assert len(str(refusal('{"type":"' + "x" * 4000 + '"}'))) <= 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["type", "audio", "roles", "sample_rate", "step_ms", "call_id", "seq", ""]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
TYPED = st.dictionaries(
    st.sampled_from(["audio", "roles", "step_ms", "call_id", "session", "seq"]), JSON, max_size=4
).flatmap(
    lambda fields: st.sampled_from(["start", "end", "resume", "ack", "x"]).map(
        lambda kind: json.dumps({"type": kind, **fields})
    )
)
MESSAGES = st.text() | JSON.map(json.dumps) | TYPED | st.binary(max_size=20)


@given(
    st.lists(st.tuples(st.text(max_size=12), st.text(max_size=30)), max_size=3),
    st.lists(MESSAGES, max_size=5),
)
@example([], ["[" * 4000])
@example([], ['{"type":"start","audio":' + "[" * 4000])
@example([], ['{"type":"start","roles":' + "[" * 4000])
@example([("channels", "١")], [b""])
def test_only_peer_errors_come_out(
    query: list[tuple[str, str]], messages: list[str | bytes]
) -> None:
    inputs: list[Any] = []
    try:
        dialect = native(query)
        for message in messages:
            inputs += receive(dialect, message)
    except PeerError as fault:
        assert str(fault).isprintable() or "\n" not in str(fault)
        str(fault).encode(errors="surrogatepass")
    # What came out is one start, audio, one end: a server need not check it again.
    kinds = [type(item) for item in inputs if not isinstance(item, Acknowledge)]
    assert kinds.count(Start) + kinds.count(ResumeFrom) <= 1 and kinds.count(End) <= 1
    assert not kinds or kinds[0] in (Start, ResumeFrom)
    assert End not in kinds[:-1]
