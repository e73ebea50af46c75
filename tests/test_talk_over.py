from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.audio import AudioFormat
from streamer.call import Call, CallConfig
from streamer.events import ChannelEvent, Emotion, Event, Speech, Summary, TalkOver, Turn
from streamer.talk_over import TALK_OVER_MIN_S, TalkOverWatch
from streamer.vad import VadConfig
from tests.golden.synthetic import silence
from tests.laws import chunk_sizes, cut_in_turn, hear_out_of_order
from tests.scorers import assert_same_events, encode_audio, hear, make_card, of_type, tone_speech

HANG_OVER_S = 0.5
STEREO = AudioFormat(channels=2)
LEFT = np.concatenate([silence(0.5), tone_speech(3.0, 1), silence(2.5)])
RIGHT = np.concatenate([silence(2.5), tone_speech(2.0, 2), silence(1.5)])


def watch() -> TalkOverWatch:
    return TalkOverWatch(VadConfig(hang_over_s=HANG_OVER_S))


def begin(channel: int, time_s: float) -> tuple[float, Speech]:
    return time_s + 0.1, Speech(channel=channel, active=True, time_s=time_s)


def end(channel: int, time_s: float, *, due_s: float | None = None) -> tuple[float, Speech]:
    """A turn's end, told a hang-over later unless said otherwise."""
    due_s = time_s + HANG_OVER_S if due_s is None else due_s
    return due_s, Speech(channel=channel, active=False, time_s=time_s)


def spans(watch: TalkOverWatch, *told: tuple[float, ChannelEvent]) -> list[tuple[float, float]]:
    """Return what these settle; they are given in the order they are due, as in a call."""
    assert [due_s for due_s, _ in told] == sorted(due_s for due_s, _ in told)
    found = [event for due_s, item in told for event in watch.receive(item, due_s)]
    return [(event.start_s, event.end_s) for event in found]


def test_two_turns_at_once_are_told_when_the_first_is_over() -> None:
    new = watch()
    assert spans(new, begin(0, 1.0), begin(1, 2.0)) == []
    assert spans(new, end(0, 3.0)) == [(2.0, 3.0)]
    assert spans(new, end(1, 4.0)) == []
    assert new.total_s == 1.0


def test_one_turn_may_be_interrupted_twice() -> None:
    told = (begin(0, 1.0), begin(1, 2.0), end(1, 3.0), begin(1, 5.0), end(1, 5.4), end(0, 8.0))
    new = watch()
    assert spans(new, *told) == [(2.0, 3.0), (5.0, 5.4)]
    assert new.total_s == pytest.approx(1.4)


def test_one_channel_after_the_other_is_none() -> None:
    # The second begins before the first is known to be over.
    assert spans(watch(), begin(0, 1.0), begin(1, 3.1), end(0, 3.0), end(1, 5.0)) == []


@pytest.mark.parametrize(
    ("end_s", "expected"),
    [(2.0 + TALK_OVER_MIN_S, [(2.0, 2.0 + TALK_OVER_MIN_S)]), (1.98 + TALK_OVER_MIN_S, [])],
)
def test_a_short_overlap_is_not_told(end_s: float, expected: list[Any]) -> None:
    new = watch()
    assert spans(new, begin(0, 1.0), begin(1, 2.0), end(0, end_s), end(1, 9.0)) == expected
    assert new.total_s == pytest.approx(TALK_OVER_MIN_S if expected else 0.0)


def test_the_turn_that_ended_first_may_be_told_last() -> None:
    """At the end of the audio all open turns are told at once, channel by channel."""
    told = (begin(0, 1.0), begin(1, 2.0), end(0, 5.0, due_s=5.1), end(1, 4.7, due_s=5.1))
    assert spans(watch(), *told) == [(2.0, 4.7)]


def test_an_overlap_before_a_gap_waits_until_the_other_is_known_to_have_gone_on() -> None:
    new = watch()
    assert spans(new, begin(0, 1.0), begin(1, 2.0), end(0, 5.0, due_s=5.1)) == []
    emotion = Emotion(
        channel=1, start_s=3.5, end_s=5.5, label="", scores={}, raw={}, speech=1, warming_up=False
    )
    assert spans(new, (5.4, emotion)) == []
    assert spans(new, (5.5, emotion)) == [(2.0, 5.0)]
    assert spans(new, end(1, 9.0)) == []


def test_a_turn_may_be_told_after_the_end_of_one_that_it_overlapped() -> None:
    # A long onset, a short hang-over.
    new = TalkOverWatch(VadConfig(onset_s=1.0, hang_over_s=0.2))
    told = ((2.0, begin(0, 1.0)[1]), end(0, 5.0, due_s=5.2), (5.5, begin(1, 4.5)[1]))
    assert spans(new, *told) == [(4.5, 5.0)]


turns = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), max_size=8)


@given(first=turns, second=turns)
def test_what_is_told_are_the_overlaps_of_all_turns(
    first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    """Against the definition, with pauses and turns in steps of 20 ms as a detector tells them."""
    told: list[tuple[float, int, Speech]] = []
    intervals: list[list[tuple[float, float]]] = [[], []]
    for channel, lengths in enumerate((first, second)):
        block = 0
        for pause, length in lengths:
            # The detector needs a hang-over between turns and an onset in each.
            start, stop = block + 25 + pause, block + 25 + pause + 5 + length
            block = stop
            told.append((start / 50 + 0.1, channel, begin(channel, start / 50)[1]))
            told.append((stop / 50 + HANG_OVER_S, channel, end(channel, stop / 50)[1]))
            intervals[channel].append((start / 50, stop / 50))
    told.sort(key=lambda item: item[:2])
    expected = [
        (max(a[0], b[0]), min(a[1], b[1]))
        for a in intervals[0]
        for b in intervals[1]
        if round(min(a[1], b[1]) - max(a[0], b[0]), 3) >= TALK_OVER_MIN_S
    ]
    new = watch()
    assert spans(new, *((due_s, event) for due_s, _, event in told)) == sorted(expected)
    assert new.total_s == pytest.approx(math.fsum(b - a for a, b in expected))


# In a call


def stereo(num_samples: int | None = None) -> bytes:
    return encode_audio([LEFT[:num_samples], RIGHT[:num_samples]], STEREO)


def speech_times(events: list[Event], channel: int) -> list[float]:
    return [event.time_s for event in of_type(events, Speech) if event.channel == channel]


def test_a_call_tells_the_times_of_its_speech_events() -> None:
    events = hear(Call(make_card(), CallConfig(audio=STEREO)), [stereo()])
    (left_start, left_end), (right_start, right_end) = (speech_times(events, i) for i in (0, 1))
    assert left_start < right_start < left_end < right_end, "the test needs an overlap"
    (talk_over,) = of_type(events, TalkOver)
    assert (talk_over.start_s, talk_over.end_s) == (right_start, left_end)
    assert (talk_over.channel, talk_over.role) == (None, None)
    assert [event.seq for event in events] == list(range(len(events)))
    before = events[events.index(talk_over) - 1]
    assert isinstance(before, Speech) and not before.active and before.channel == 0
    (summary,) = of_type(events, Summary)
    assert summary.talk_over_s == pytest.approx(left_end - right_start)


def test_an_agent_who_is_not_analysed_talks_over_all_the_same() -> None:
    config = CallConfig(audio=STEREO, roles=("customer", "agent"))
    events = hear(Call(make_card(), config), [stereo()])
    assert len(of_type(events, TalkOver)) == 1
    assert {turn.role for turn in of_type(events, Turn)} == {"customer"}


def test_a_call_that_ends_in_an_overlap_tells_it() -> None:
    end_sample = 3 * 16_000 + 1_000
    events = hear(Call(make_card(), CallConfig(audio=STEREO)), [stereo(end_sample)])
    (talk_over,) = of_type(events, TalkOver)
    assert talk_over.start_s == speech_times(events, 1)[0]
    assert talk_over.end_s == min(speech_times(events, 0)[1], speech_times(events, 1)[1])


@pytest.mark.parametrize("lost", [None, 0, 1])
def test_a_gap_ends_an_overlap(lost: int | None) -> None:
    config = CallConfig(audio=STEREO, as_tracks=True)
    call = Call(make_card(), config)
    end_sample = 3 * 16_000 + 1_000
    for channel, samples in enumerate((LEFT, RIGHT)):
        call.receive(encode_audio([samples[:end_sample]], AudioFormat()), 0.0, channel)
    call.receive_gap(1_000, "lost", lost)
    events = hear_out_of_order(call, [], seed=1)
    (talk_over,) = of_type(events, TalkOver)
    ends = [speech_times(events, channel)[1] for channel in (0, 1)]
    assert talk_over.end_s == min(ends)
    assert talk_over.end_s == pytest.approx(end_sample / 16_000, abs=HANG_OVER_S)


@settings(max_examples=20, deadline=None)
@given(sizes=chunk_sizes(), seed=st.integers(0, 1_000), num_samples=st.integers(40_000, 96_000))
def test_chunking_does_not_show(sizes: list[int], seed: int, num_samples: int) -> None:
    data = stereo(num_samples)
    expected = hear(Call(make_card(), CallConfig(audio=STEREO)), [data])
    call = Call(make_card(), CallConfig(audio=STEREO))
    assert_same_events(hear_out_of_order(call, cut_in_turn(data, sizes), seed), expected)


def test_one_channel_never_talks_over() -> None:
    data = encode_audio([LEFT], AudioFormat())
    events = hear(Call(make_card(), CallConfig()), [data])
    assert not of_type(events, TalkOver)
    assert of_type(events, Summary)[0].talk_over_s == 0.0
