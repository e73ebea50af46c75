"""What the tests of the seven laws work with: a conversation, ways to cut it, a pair of scales."""

from __future__ import annotations

import ast
import inspect
import itertools
import random
import sys
import typing
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from streamer.arrays import Samples
from streamer.audio import SAMPLE_RATE, AudioFormat, Encoding, Resampler
from streamer.call import Call
from streamer.events import Event
from streamer.frontend import FrontEnd, FrontEndConfig, Happening
from streamer.session import SkipReason, Window
from tests.golden.synthetic import hiss, silence, voice
from tests.scorers import encode_audio, fake_logits, hear, tone_speech


@lru_cache(maxsize=16)
def conversation(rate: int) -> tuple[Samples, Samples]:
    """Return 4.5 s of two people: a long turn and a short one, and one that talks across."""
    left = [silence(0.3), tone_speech(2.6, 1), silence(0.8), tone_speech(0.5, 2), silence(0.3)]
    right = [silence(1.1), tone_speech(1.4, 3), silence(0.9), hiss(1.1, -50.0)]
    resamplers = [Resampler(SAMPLE_RATE, rate) for _ in range(2)]
    channels = [
        np.concatenate([resampler.receive(np.concatenate(parts)), resampler.flush()])
        for resampler, parts in zip(resamplers, (left, right), strict=True)
    ]
    return channels[0], channels[1]


def cut_in_turn(data: bytes, sizes: list[int]) -> list[bytes]:
    """Return bytes cut into chunks of these sizes, in turn; after 300 of them the rest at once."""
    chunks = []
    for size in itertools.islice(itertools.cycle(sizes), 300):
        chunks.append(data[:size])
        data = data[size:]
    return [*chunks, data]


def formats() -> st.SearchStrategy[AudioFormat]:
    rates = [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 23_456]
    return st.builds(
        AudioFormat,
        encoding=st.sampled_from(typing.get_args(Encoding)),
        sample_rate=st.sampled_from(rates),
        channels=st.sampled_from([1, 2]),
    )


def chunk_sizes() -> st.SearchStrategy[list[int]]:
    """From single bytes to more than ten seconds of any format."""
    size = st.one_of(st.integers(1, 3), st.integers(1, 5_000), st.integers(1, 4_000_000))
    return st.lists(size, min_size=1, max_size=20)


def hear_out_of_order(call: Call, chunks: list[bytes], seed: int) -> list[Event]:
    """Return the events of a call whose windows are answered late and in any order."""
    order = random.Random(seed)
    patience = order.choice([0.1, 0.5, 0.9])
    events: list[Event] = []
    waiting: list[Window] = []
    for chunk in chunks:
        call.receive(chunk, 0.0)
        waiting += call.windows_to_score()
        order.shuffle(waiting)
        while waiting and order.random() > patience:
            window = waiting.pop()
            call.receive_scores(window, fake_logits(window.features))
            if order.random() < 0.5:
                events += call.events_to_send(0.0)
    call.receive_end(0.0)
    waiting += call.windows_to_score()
    order.shuffle(waiting)
    for window in waiting:
        events += call.events_to_send(0.0)
        call.receive_scores(window, fake_logits(window.features))
    return events + call.events_to_send(0.0)


def happenings(config: FrontEndConfig, chunks: list[Samples]) -> list[Happening]:
    """Return what a front end finds in audio that comes in these chunks."""
    front_end = FrontEnd(config)
    found = [happening for chunk in chunks for happening in front_end.receive(chunk)]
    return found + front_end.flush()


def skip_where(
    call: Call, skipped: set[int], reason: SkipReason = "overload", sizes: Sequence[int] = ()
) -> Iterator[Event]:
    """Hear a call of its one channel, cut like this, with the windows of these numbers skipped."""

    def answer(call: Call, window: Window) -> None:
        if window.number in skipped:
            call.skip(window, reason)
        else:
            call.receive_scores(window, fake_logits(window.features))

    data = encode_audio([conversation(SAMPLE_RATE)[0]], AudioFormat())
    chunks = cut_in_turn(data, list(sizes)) if sizes else [data]
    yield from hear(call, chunks, answer=answer)


def size_of(item: object, seen: set[int] | None = None) -> int:
    """Return the bytes that an object holds, and all that it reaches."""
    seen = set() if seen is None else seen
    if id(item) in seen or isinstance(item, type) or inspect.isroutine(item):
        return 0
    seen.add(id(item))
    total = sys.getsizeof(item)
    if isinstance(item, np.ndarray):
        owner = item if item.base is None else item.base
        total += getattr(owner, "nbytes", 0) if item.base is not None else 0
    elif isinstance(item, dict):
        total += sum(size_of(part, seen) for pair in item.items() for part in pair)
    elif isinstance(item, (list, tuple, set)) or type(item).__name__ == "deque":
        total += sum(size_of(part, seen) for part in typing.cast("list[Any]", item))
    total += size_of(getattr(item, "__dict__", None), seen) if hasattr(item, "__dict__") else 0
    for name in getattr(type(item), "__struct_fields__", ()):
        total += size_of(getattr(item, name), seen)
    return total


def minute(kind: str, number: int) -> Samples:
    """Return a minute of something, a little shorter than 60 s so that minutes are no multiples."""
    match kind:
        case "silence":
            return silence(59.9)
        case "hiss":
            return hiss(59.9, -40.0, seed=number)
        case "monologue":
            return np.tile(voice(5.99), 10)
        case _:
            return np.tile(np.concatenate([voice(3.7), silence(0.7), hiss(1.59, -50.0)]), 10)


def words_of(path: Path) -> set[str]:
    """Return all names, attributes and modules that a source file uses."""
    words: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.alias(name=word):
                words |= {word, *word.split(".")}
            case ast.ImportFrom(module=str(word)):
                words |= {word, *word.split(".")}
    return words
