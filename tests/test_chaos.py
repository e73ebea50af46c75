"""A server's worst day, as `bench/chaos.py` has it, but shorter; and that a fault would be told."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from bench.chaos import ChaosConfig, live_through, slope
from bench.load_callers import Caller, Said, most_at_once
from bench.load_faults import spoil_model
from bench.load_peers import NATIVE_PATH, TWILIO_PATH
from bench.load_speech import FLOATS, FORMATS, conversation, encoded, undisturbed
from streamer.batching import Batcher
from streamer.call import Call, CallConfig
from streamer.drivers import converse
from streamer.errors import ModelError
from streamer.events import Emotion, Error, Event, Gap, Lag, Ready, Speech, Summary, Turn
from streamer.model import Model, shipped_models
from streamer.pressure import WIDENED, Pressure
from tests.models import tiny_model
from tests.scorers import FakeScorer, make_card
from tests.serving import DEADLINE_S, serving

DAY = ChaosConfig(
    calls=52,
    seconds=6.0,
    poisoned=2,
    handshakes=1000,
    frames=68,
    vanishing=8,
    stalling=2,
    storms=3,
    warm_storms=1,
    max_slope_mib=16.0,  # of one difference: allocators move by some; calls that stay are 50 MiB
)


@pytest.mark.slow
@pytest.mark.timeout(900)  # 75 s on two cores
def test_a_day_of_faults(capfd: pytest.CaptureFixture[str]) -> None:
    """All else that it checks, it checks itself: each call, slots, tasks, files, the log."""
    found = live_through(DAY)
    *storms, kill = found["phases"]
    assert [storm["name"] for storm in storms] == ["storm"] * DAY.storms
    for storm in storms:
        assert storm["live"] >= 50
        assert storm["equal"] + storm["overloaded"] == DAY.calls + DAY.poisoned
        assert not storm["ended"] and not storm["resumed"]
    assert kill["name"] == "kill -9" and kill["live"] >= 50
    assert kill["ended"] == kill["resumed"] == DAY.calls // 2
    gaps_s = found["gap_s"]
    assert len(gaps_s) == kill["resumed"] and gaps_s[0] == 0.0 < gaps_s[-1]
    assert sum(found["answers_to_broken_handshakes"].values()) == DAY.handshakes * DAY.storms
    assert sum(found["closes_after_broken_frames"].values()) == DAY.frames * DAY.storms
    assert f"{found['rss_slope_mib_per_storm']:+.2f} MiB a storm, " in capfd.readouterr().out


def test_a_flood_of_connections_is_taken_in_few_turns() -> None:
    """Else whoever comes after it waits for as many turns as there are connections before."""
    num_peers, num_turns = 64, 0
    with serving(FakeScorer(make_card())) as running, ExitStack() as peers:
        process = running.process
        assert process is not None
        loop = process.servers[0].get_loop()
        is_blocked, may_go_on, is_over = (threading.Event() for _ in range(3))

        def block() -> None:
            is_blocked.set()
            assert may_go_on.wait(DEADLINE_S)
            turn()

        def turn() -> None:
            nonlocal num_turns
            num_turns += 1
            if len(process.server_state.connections) < num_peers:
                loop.call_soon(turn)
            else:
                is_over.set()

        loop.call_soon_threadsafe(block)
        assert is_blocked.wait(DEADLINE_S)
        for _ in range(num_peers):
            address = "127.0.0.1", running.port
            peers.enter_context(socket.create_connection(address, DEADLINE_S))
        may_go_on.set()
        assert is_over.wait(DEADLINE_S)
    assert num_turns < num_peers / 4, num_turns


# That a fault would be told


@pytest.fixture(scope="module")
def said() -> Said:
    """Return 8 s with two turns, and what comes of them."""
    audio = FORMATS["mulaw"]
    data = encoded(conversation(8.0, 0), audio)
    with Batcher(Model.load(None, provider="cpu"), num_workers=1) as scorer:
        return Said(audio, data, undisturbed(data, audio, scorer, 250))


def ended(said: Said, events: list[Event], *, told: list[Event] | None = None) -> Caller:
    """Return a caller of whose call this is kept, and of which it was told that."""
    caller = Caller("a", NATIVE_PATH, said, 250, events=events if told is None else told)
    caller.kept, caller.close_code, caller.end_reason = events, 1000, "end"
    return caller


def index_of(events: list[Event], kind: type[Event], number: int = 0) -> int:
    return [at for at, event in enumerate(events) if isinstance(event, kind)][number]


def without(events: list[Event], at: int) -> list[Event]:
    return events[:at] + events[at + 1 :]


def with_one(events: list[Event], at: int, **changes: Any) -> list[Event]:
    return [*events[:at], replace(events[at], **changes), *events[at + 1 :]]  # type: ignore[type-var]


def test_a_call_that_is_whole_passes(said: Said) -> None:
    ended(said, said.expected).check()


@pytest.mark.parametrize("kind", [Emotion, Turn, Speech, Summary])
def test_a_call_that_lost_an_event_does_not(said: Said, kind: type[Event]) -> None:
    events = without(said.expected, index_of(said.expected, kind))
    with pytest.raises(AssertionError):
        ended(said, events).check()
    with pytest.raises(AssertionError):
        ended(said, said.expected, told=events).check()
    with pytest.raises((AssertionError, KeyError)):
        ended(said, events, told=said.expected).check()


def test_nor_one_that_was_closed_otherwise(said: Said) -> None:
    for name, value in (("close_code", 1011), ("end_reason", "internal")):
        caller = ended(said, said.expected)
        setattr(caller, name, value)
        with pytest.raises(AssertionError):
            caller.check()


def overloaded(said: Said) -> list[Event]:
    """Return the events of a call two windows of which were left out."""
    at = index_of(said.expected, Emotion, 2)
    first, second = said.expected[at : at + 2]
    assert isinstance(first, Emotion) and isinstance(second, Emotion)
    lag = Lag(
        seq=first.seq,
        channel=0,
        role="customer",
        start_s=first.start_s,
        end_s=first.end_s,
        reason="widened",
        dropped=1,
    )
    rest = [
        replace(event, dropped=2) if hasattr(event, "dropped") else event
        for event in said.expected[at + 2 :]
    ]
    summary = rest[-1]
    assert isinstance(summary, Summary)
    (channel,) = summary.channels
    channel = replace(channel, dropped=2, emotions=channel.emotions - 2)
    return [*said.expected[:at], lag, *rest[:-1], replace(summary, channels=(channel,))]


def test_an_overloaded_call_must_have_all_else(said: Said) -> None:
    events = overloaded(said)
    ended(said, events).check()
    turn, emotion = index_of(events, Turn), index_of(events, Emotion, -1)
    score = events[emotion].raw  # type: ignore[union-attr]
    label = next(iter(score))
    for damaged in (
        without(events, turn),
        without(events, emotion),
        without(events, index_of(events, Speech)),
        with_one(events, turn, end_s=7.5),
        with_one(events, emotion, raw={**score, label: score[label] + 0.01}),
    ):
        with pytest.raises(AssertionError):
            ended(said, damaged).check()


def test_a_call_that_is_thinned_out_passes(said: Said) -> None:
    pressure = Pressure()
    pressure.level = WIDENED  # and nobody updates it

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(said.data), 160):
            yield said.data[start : start + 160]

    async def hear() -> list[Event]:
        with Batcher(Model.load(None, provider="cpu"), num_workers=1) as scorer:
            call = Call(scorer.card, CallConfig(audio=said.audio))
            return [event async for event in converse(call, chunks(), scorer, pressure=pressure)]

    caller = ended(said, asyncio.run(hear()))
    assert caller.is_overloaded
    caller.check()
    assert caller.num_dropped > 3


def resumed(said: Said, gap_s: tuple[float, float], num_before: int) -> Caller:
    """Return a caller who came back: between two of its turns, if all is well."""
    before = said.expected[:num_before]
    after = [
        event
        for event in said.expected
        if getattr(event, "start_s", getattr(event, "time_s", 99.0)) >= gap_s[1]
        and not isinstance(event, Ready)
    ]
    gap = Gap(start_s=gap_s[0], end_s=gap_s[1], reason="server_restart")
    events = [
        replace(event, seq=seq) for seq, event in enumerate([*before, before[0], gap, *after])
    ]
    caller = ended(said, events)
    caller.was_cut_off, caller.resumed_at_s = True, gap_s[1]
    return caller


def test_who_came_back_must_be_told_what_is_missing(said: Said) -> None:
    first, second = (event for event in said.expected if isinstance(event, Turn))
    num_before = index_of(said.expected, Turn) + 1
    at_s = first.end_s + 0.5, second.start_s - 0.01
    assert resumed(said, at_s, num_before).check_resumed().end_s == at_s[1]
    # Nothing says that the first turn is missing; the second was not heard, but for its end.
    with pytest.raises(AssertionError):
        resumed(said, at_s, 2).check_resumed()
    silent = resumed(said, at_s, num_before)
    silent.events = silent.kept = [
        replace(event, seq=seq)
        for seq, event in enumerate(without(silent.events, index_of(silent.events, Turn, -1)))
    ]
    with pytest.raises(AssertionError):
        silent.check_resumed()
    elsewhere = resumed(said, at_s, num_before)
    elsewhere.resumed_at_s += 0.5
    with pytest.raises(AssertionError):
        elsewhere.check_resumed()


def test_a_telephone_that_was_killed_keeps_its_beginning(said: Said) -> None:
    caller = Caller("a", TWILIO_PATH, said, 250, end_reason="server_restart")
    caller.kept = said.expected[:7]
    caller.check_ended()
    caller.kept = said.expected[1:7]
    with pytest.raises(AssertionError):
        caller.check_ended()


def test_calls_at_once(said: Said) -> None:
    times_s = [(0.0, 5.0), (1.0, 2.0), (3.0, 6.0), (5.5, 7.0)]
    callers = [
        Caller("a", NATIVE_PATH, said, 250, begin_s=begin_s, end_s=end_s)
        for begin_s, end_s in times_s
    ]
    assert most_at_once(callers) == 2


def test_slope() -> None:
    assert slope([60.0, 62.0, 64.0]) == pytest.approx(2.0)
    assert slope([60.0]) == 0.0


# The poison


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Model, Model]]:
    """Return a model, and the same spoilt."""
    folder = tmp_path_factory.mktemp("model")
    sound = tiny_model(folder)
    spoil_model(sound.read_bytes(), folder / "spoilt.onnx")
    yield Model.load(sound, provider="cpu"), Model.load(folder / "spoilt.onnx", provider="cpu")


def test_a_spoilt_model_is_what_it_was_but_for_loud_windows(
    spoilt: tuple[Model, Model], capfd: pytest.CaptureFixture[str]
) -> None:
    sound, bad = spoilt
    windows = np.random.default_rng(0).normal(size=(3, *sound.card.input_shape)).astype(np.float32)
    assert (bad.score(windows).logits == sound.score(windows).logits).all()
    windows[1, 0, 0, 7] = 20.0
    logits = bad.score(windows).logits
    assert np.isnan(logits[1]).all()
    assert (logits[[0, 2]] == sound.score(windows).logits[[0, 2]]).all()
    windows[1, 0, 0, 7] = 50.0
    with pytest.raises(ModelError, match="failed to score 3 windows"):
        bad.score(windows)
    # What is raised is logged by whoever catches it; ONNX Runtime's own line is not in our format.
    assert capfd.readouterr().err == ""


def test_poison_is_its_callers_alone(spoilt: tuple[Model, Model]) -> None:
    """A batch that fails is scored window by window."""
    sound, bad = spoilt
    shape = sound.card.input_shape
    windows = np.random.default_rng(0).normal(size=(8, *shape)).astype(np.float32)
    expected = sound.score(windows).logits
    windows[3, 0, 0, 7], windows[5, 0, 0, 7] = 50.0, 20.0
    with Batcher(bad, num_workers=1) as scorer:
        answers = [scorer.submit(window) for window in windows]
        failed = [number for number, answer in enumerate(answers) if answer.exception(60.0)]
        assert failed == [3, 5]
        for number in {*range(8)} - {3, 5}:
            assert answers[number].result() == pytest.approx(expected[number], abs=1e-4)


def test_loud_speech_is_poison_and_speech_is_none(tmp_path: Path) -> None:
    spoil_model(shipped_models()["can"].read_bytes(), tmp_path / "spoilt.onnx")
    with Batcher(Model.load(tmp_path / "spoilt.onnx", provider="cpu"), num_workers=1) as scorer:
        for gain, expected in (
            (1.0, set()),
            (10.0, {"scorer_failed", "turn_not_scored"}),
            (100.0, {"scorer_failed", "turn_not_scored"}),
        ):
            data = encoded(np.float32(gain) * conversation(6.0, 0), FLOATS)
            events = undisturbed(data, FLOATS, scorer, 250)
            assert {event.code for event in events if isinstance(event, Error)} == expected
