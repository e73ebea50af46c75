"""What the tests of the telephone platforms share: made-up callers, replays, broken messages."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
from hypothesis import strategies as st

from streamer.arrays import Samples
from streamer.audio import AudioFormat
from streamer.call import Call, CallConfig, Lost, TrackChunk
from streamer.dialects import Dialect, End, Handshake, Input, PeerError, Start
from streamer.dialects.tracks import MAX_GAP_MS, MAX_LOST_MS
from streamer.events import Event
from tests.golden.synthetic import silence
from tests.scorers import (
    assert_same_events,
    cut,
    encode_audio,
    fake_logits,
    hear,
    make_card,
    tone_speech,
)

JsonMessage: TypeAlias = dict[str, Any]

HANDSHAKE = Handshake(path="/", headers=(("host", "ser.example.com"),))


def handshake(**query: str) -> Handshake:
    return Handshake(path="/", query=tuple(query.items()), headers=HANDSHAKE.headers)


def customer(rate: int = 8000) -> Samples:
    """Return 6 s at any rate: a turn of 2.5 s, then one of 1.5 s."""
    return _speech(rate, (0.5, 2.5, 1.0, 1.5, 0.5), seed=1)


def agent(rate: int = 8000) -> Samples:
    """Return 6 s at any rate: one turn of 2 s, which begins while the customer speaks."""
    return _speech(rate, (2.0, 2.0, 2.0), seed=3)


def _speech(rate: int, seconds: tuple[float, ...], seed: int) -> Samples:
    """Return silence and speech by turns, silence first."""
    parts = [
        tone_speech(length, seed + place, rate) if place % 2 else silence(length * rate / 16_000)
        for place, length in enumerate(seconds)
    ]
    samples: Samples = np.concatenate(parts)
    return samples[: 6 * rate // 1600 * 1600]


def payloads(samples: Samples, audio: AudioFormat, piece_ms: int = 20) -> list[str]:
    """Return one track's audio as base64, piece by piece."""
    track = AudioFormat(encoding=audio.encoding, sample_rate=audio.sample_rate)
    size = track.bytes_per_sample * audio.sample_rate * piece_ms // 1000
    return [base64.b64encode(piece).decode() for piece in cut(encode_audio([samples], track), size)]


def talk(dialect: Dialect, messages: Iterable[JsonMessage]) -> list[Input]:
    """Return what a dialect makes of messages, in which nothing is wrong; it answers none."""
    inputs: list[Input] = []
    for message in messages:
        inputs += dialect.receive_text(json.dumps(message))
        assert dialect.messages_to_send() == []
    return inputs


def events_of(inputs: Iterable[Input], *, config: CallConfig | None = None) -> list[Event]:
    """Return all events of a call that hears what a dialect made of a conversation."""
    start, *rest = inputs
    assert isinstance(start, Start)
    call = Call(make_card(), config or config_of(start))
    events: list[Event] = []
    for item in [*rest, End()]:
        if isinstance(item, TrackChunk):
            call.receive(item.data, 0.0, item.channel)
        elif isinstance(item, Lost):
            call.receive_gap(*item)
        else:
            assert isinstance(item, End)
            call.receive_end(0.0)
        for window in call.windows_to_score():
            call.receive_scores(window, fake_logits(window.features))
        events += call.events_to_send(0.0)
    return events


def config_of(start: Start, *, as_tracks: bool = True) -> CallConfig:
    return CallConfig(
        audio=start.audio, roles=start.roles, analyse_agents=True, as_tracks=as_tracks
    )


def assert_heard_as(inputs: list[Input], channels: list[Samples]) -> None:
    """Compare a conversation with the same audio, given to a call directly and interleaved."""
    start = inputs[0]
    assert isinstance(start, Start)
    audio = encode_audio(channels, start.audio)
    direct = Call(make_card(), config_of(start, as_tracks=False))
    expected = hear(direct, cut(audio, 4000))
    found = events_of(inputs)
    assert_same_events(found, expected)
    kinds = [str(event.__struct_config__.tag) for event in expected]
    assert {"ready", "emotion", "turn", "summary"} <= set(kinds) and "gap" not in kinds


def heard(inputs: Iterable[Input], channel: int = 0) -> bytes:
    """Return the audio of one channel."""
    return b"".join(item.data for item in of_track(inputs) if item.channel == channel)


def of_track(inputs: Iterable[Any]) -> list[TrackChunk]:
    return [item for item in inputs if isinstance(item, TrackChunk)]


def gaps(inputs: Iterable[Any]) -> list[Lost]:
    return [item for item in inputs if isinstance(item, Lost)]


def refusal(dialect: Dialect, *messages: JsonMessage | str | bytes) -> PeerError:
    """Return the fault of the last message; those before it are fine."""
    *fine, bad = messages
    for message in fine:
        _receive(dialect, message)
    try:
        _receive(dialect, bad)
    except PeerError as fault:
        return fault
    raise AssertionError(f"not refused: {bad!r}")


def _receive(dialect: Dialect, message: JsonMessage | str | bytes) -> list[Input]:
    if isinstance(message, bytes):
        return dialect.receive_bytes(message)
    return dialect.receive_text(message if isinstance(message, str) else json.dumps(message))


def changed(message: JsonMessage, path: str, value: Any) -> JsonMessage:
    """Return a message with another value at ``a.b``; without it, if the value is ``...``."""
    result = copy.deepcopy(message)
    *parents, name = path.split(".")
    place = result
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[name]
    else:
        place[name] = value
    return result


def _paths(message: JsonMessage, prefix: str = "") -> list[str]:
    found = []
    for name, value in message.items():
        found.append(f"{prefix}{name}")
        if isinstance(value, dict):
            found += _paths(value, f"{prefix}{name}.")
    return found


_VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=0, max_value=200).map(str)
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(
        [
            *("", "null", "NaN", "1e400", "-1", "05", "1" * 30, "1" * 5000, "٥", 2**53, 10**400),
            *(10**13, 3_600_001, "3600001", "inbound", "outbound", "start", "media", "stop"),
            *("QQ", "QQ==", "QUJD-_==", "/" * 3200, [], {}, [[]], ["inbound"], {"roles": 3}, ...),
        ]
    )
    | st.lists(st.text(max_size=8), max_size=3)
    | st.dictionaries(
        st.sampled_from(["roles", "tracks", "step_ms", "call_id", "l16"]), st.text(max_size=5)
    )
)


def conversations(documented: list[JsonMessage]) -> st.SearchStrategy[list[str | bytes]]:
    """Return conversations in which messages are as documented, broken, or anything, in any order.

    Most begin with the first two of the documented messages, so that the rest is not all refused.
    """

    def broken(message: JsonMessage) -> st.SearchStrategy[JsonMessage]:
        return st.builds(changed, st.just(message), st.sampled_from(_paths(message)), _VALUES)

    message = st.sampled_from(documented)
    sent = (message | message.flatmap(broken)).map(json.dumps)
    anything = st.text(max_size=40) | st.binary(max_size=8) | st.sampled_from(["[" * 3000, '{"'])
    opening = [json.dumps(item) for item in documented[:2]]
    return st.tuples(
        st.sampled_from([opening, opening, []]), st.lists(sent | sent | sent | anything, max_size=8)
    ).map(lambda parts: [*parts[0], *parts[1]])


def assert_only_peer_errors(make: Callable[[], Dialect], messages: list[str | bytes]) -> None:
    """Check that nothing but a PeerError gets out, and what may come before it."""
    inputs: list[Input] = []
    dialect = make()
    for message in messages:
        try:
            inputs += _receive(dialect, message)
        except PeerError as fault:  # a server would close here; what comes after it is bounded, too
            assert 0 < len(str(fault)) <= 400
    kinds = [type(item) for item in inputs]
    assert kinds.count(Start) <= 1 and kinds.count(End) <= 1
    assert not kinds or kinds[0] is Start
    assert End not in kinds[:-1]
    if kinds:
        start = inputs[0]
        assert isinstance(start, Start)
        config_of(start)  # roles and channels agree
        rest = [item for item in inputs[1:] if isinstance(item, TrackChunk | Lost)]
        assert all(item.channel in range(start.audio.channels) for item in rest)
        assert all(len(item.data) % start.audio.bytes_per_sample == 0 for item in of_track(rest))
        lost = [item.num_samples for item in gaps(rest)]
        assert all(0 < num_samples <= MAX_GAP_MS * 16 for num_samples in lost)
        assert sum(lost) <= 2 * MAX_LOST_MS * 16
        events_of(inputs)
