"""What the tests of dialects that answer share: a peer, its dialect and a call, in step."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeAlias

import pytest
from hypothesis import strategies as st

from streamer.call import Call, CallConfig, Lost
from streamer.dialects import Dialect, End, Input, PeerError, Start
from streamer.events import Event, Ready, Summary, Turn
from tests.scorers import fake_logits, make_card

Message: TypeAlias = dict[str, Any] | str | bytes


class Dialogue:
    """A peer's conversation with a server whose scorer answers at once.

    Attributes:
        call: None until the dialect has started one.
        inputs: What the peer's messages meant.
        events: Of the call.
        sent: What the peer got, each message as JSON.
    """

    def __init__(self, dialect: Dialect, *, analyse_agents: bool = True) -> None:
        self.dialect = dialect
        self.call: Call | None = None
        self.inputs: list[Any] = []
        self.events: list[Event] = []
        self.sent: list[Any] = []
        self._analyse_agents = analyse_agents

    def say(self, message: Message) -> list[Any]:
        """Return what the peer gets for a message: at once, and when the call has heard it."""
        if isinstance(message, dict):
            message = json.dumps(message)
        receive: Callable[[Any], list[Input]] = self.dialect.receive_text
        if isinstance(message, bytes):
            receive = self.dialect.receive_bytes
        inputs = receive(message)
        self.inputs += inputs
        return self._fetch() + [answer for item in inputs for answer in self._take(item)]

    def end(self) -> list[Any]:
        """Return what the peer gets when the server ends the call."""
        return self._take(End())

    def refusal(self, message: Message) -> PeerError:
        """Return the fault of a message."""
        with pytest.raises(PeerError) as caught:
            self.say(message)
        assert 0 < len(str(caught.value)) <= 400
        self._fetch()
        return caught.value

    def _take(self, item: Input) -> list[Any]:
        if isinstance(item, Start):
            config = CallConfig(
                audio=item.audio, roles=item.roles, analyse_agents=self._analyse_agents
            )
            self.call = Call(make_card(), config)
        assert self.call is not None
        if isinstance(item, bytes):
            self.call.receive(item, 0.0)
        elif isinstance(item, Lost):
            self.call.receive_gap(*item)
        elif isinstance(item, End):
            self.call.receive_end(0.0)
        for window in self.call.windows_to_score():
            self.call.receive_scores(window, fake_logits(window.features))
        events = self.call.events_to_send(0.0)
        self.events += events
        for event in events:
            self.dialect.receive_event(event)
        return self._fetch()

    def _fetch(self) -> list[Any]:
        messages = [json.loads(text) for text in self.dialect.messages_to_send()]
        self.sent += messages
        return messages


TURN = Turn(channel=0, role="customer", start_s=0.5, end_s=2.0, label="sad", scores={}, windows=3)
SUMMARY = Summary(duration_s=1.0, max_lag_ms=0.0, channels=())
READY = Ready(
    session="s",
    model="m",
    labels=("sad",),
    encoding="mulaw",
    sample_rate=8000,
    channels=(),
    step_ms=250,
    first_score_s=2.0,
    hang_over_s=0.5,
    notice="n",
)

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**30, -1, 8000, 10**400])
    | st.floats(allow_nan=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def mutations(documented: list[dict[str, Any]]) -> st.SearchStrategy[str]:
    """Return documented messages in which one field, at any depth, is missing or anything."""

    @st.composite
    def mutated(draw: st.DrawFn) -> str:
        message: Any = json.loads(json.dumps(draw(st.sampled_from(documented))))
        place: Any = message
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and draw(st.booleans()):
                place = place[key]
                continue
            if draw(st.integers(0, 4)) == 0:
                del place[key]
            else:
                place[key] = draw(JSON)
            break
        return json.dumps(message)

    return mutated()


def check_only_peer_errors(dialect: Dialect, steps: list[str | bytes | Event]) -> None:
    """Check that nothing but a PeerError gets out, and that inputs come in their order."""
    inputs: list[Input] = []
    for step in steps:
        try:
            if isinstance(step, str):
                inputs += dialect.receive_text(step)
            elif isinstance(step, bytes):
                inputs += dialect.receive_bytes(step)
            else:
                dialect.receive_event(step)
        except PeerError as fault:
            assert 0 < len(str(fault)) <= 400
        for text in dialect.messages_to_send():
            assert isinstance(json.loads(text), dict)
    kinds = [type(item) for item in inputs]
    assert kinds.count(Start) <= 1 and kinds.count(End) <= 1
    assert not kinds or kinds[0] is Start
    assert End not in kinds[:-1]
