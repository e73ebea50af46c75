"""What is left out when scoring falls behind: graded, in words, and never what a turn needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import numpy as np
import pytest

from streamer.audio import AudioFormat
from streamer.drivers import converse
from streamer.events import Emotion, Event, Lag, Turn
from streamer.pressure import NEWEST, WIDENED, Pressure
from tests.golden.synthetic import silence
from tests.scorers import (
    FakeScorer,
    assert_same_events,
    cut,
    encode_audio,
    hear,
    make_card,
    new_call,
    of_type,
    tone_speech,
)

CARD = make_card()
TURNS = [tone_speech(2.6, 1), silence(0.8), tone_speech(0.5, 2), silence(0.8), tone_speech(1.5, 3)]
AUDIO = encode_audio([np.concatenate([*TURNS, silence(0.8)])], AudioFormat())
UNDISTURBED = hear(new_call(), [AUDIO])


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


async def listen(
    scorer: FakeScorer,
    pressure: Pressure,
    *,
    is_paced: bool = True,
    answer_every: int = 0,
    max_out: int = 40,
) -> list[Event]:
    """Hear AUDIO in 20 ms chunks; a held scorer answers one window every so many of them."""

    is_over = False

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal is_over
        for number, chunk in enumerate(cut(AUDIO, 640)):
            yield chunk
            await settle()
            if answer_every and number % answer_every == 0:
                scorer.release(1)
        is_over = True

    async def release() -> None:
        while True:
            await settle()
            assert scorer.num_held <= max_out
            if not answer_every or is_over:
                scorer.release(1)

    releasing = asyncio.create_task(release())
    conversation = converse(
        new_call(), chunks(), scorer, pressure=pressure, is_paced=lambda: is_paced
    )
    events = [event async for event in conversation]
    assert not releasing.done()
    releasing.cancel()
    assert pressure.num_out == 0
    return events


def at_level(level: int) -> Pressure:
    pressure = Pressure()
    pressure.level, pressure.wait_s = level, 0.5 * level
    return pressure


def test_without_pressure_nothing_is_left_out() -> None:
    async def test() -> None:
        scorer = FakeScorer(CARD, answer="held")
        assert_same_events(await listen(scorer, at_level(0)), UNDISTURBED)

    run(test())


@pytest.mark.parametrize("level", [WIDENED, NEWEST, 3])
def test_a_file_is_never_skipped(level: int) -> None:
    async def test() -> None:
        scorer = FakeScorer(CARD, answer="held")
        events = await listen(scorer, at_level(level), is_paced=False)
        assert_same_events(events, UNDISTURBED)

    run(test())


def test_at_first_every_second_window_is_left_out() -> None:
    async def test() -> None:
        scorer = FakeScorer(CARD, answer="held")
        events = await listen(scorer, at_level(WIDENED))
        (lag,) = of_type(events, Lag)
        assert lag.reason == "widened", "told once"
        all_emotions, emotions = of_type(UNDISTURBED, Emotion), of_type(events, Emotion)
        dropped = events[-1].channels[0].dropped  # type: ignore[union-attr]
        assert len(emotions) + dropped == len(all_emotions)
        assert len(all_emotions) / 3 <= dropped <= len(all_emotions) / 2
        check_turns(events, emotions, all_emotions)

    run(test())


def check_turns(events: list[Event], emotions: list[Emotion], whole: list[Emotion]) -> None:
    """Every turn has its answer, and its newest window was scored."""
    turns, expected = of_type(events, Turn), of_type(UNDISTURBED, Turn)
    assert [(turn.start_s, turn.end_s) for turn in turns] == [
        (turn.start_s, turn.end_s) for turn in expected
    ]
    for turn in turns:
        newest = max(item.end_s for item in whole if turn.start_s < item.end_s <= turn.end_s + 0.7)
        assert newest in [item.end_s for item in emotions]


def test_then_all_but_the_newest() -> None:
    async def test() -> None:
        scorer = FakeScorer(CARD, answer="held")
        # One window a channel is out: each has its turn, however many calls there are.
        events = await listen(scorer, at_level(NEWEST), answer_every=50, max_out=1)
        emotions = of_type(events, Emotion)
        assert {lag.reason for lag in of_type(events, Lag)} == {"overload"}
        check_turns(events, emotions, of_type(UNDISTURBED, Emotion))
        assert len(emotions) < len(of_type(UNDISTURBED, Emotion))

    run(test())
