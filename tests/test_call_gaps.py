"""Audio of a call that never arrived: where it is missing, and what was before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamer.audio import AudioFormat
from streamer.call import Call, CallConfig
from streamer.events import Event, Gap, Turn
from tests.golden.synthetic import silence
from tests.scorers import encode_audio, fake_logits, make_card, tone_speech

CARD = make_card()
STEREO = AudioFormat(channels=2)
LEFT = np.concatenate([silence(0.5), tone_speech(2.6, 1), silence(0.9)])
RIGHT = np.concatenate([silence(1.0), tone_speech(2.0, 2), silence(1.0)])


def of_type(events: list[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def answer_all(call: Call) -> None:
    for window in call.windows_to_score():
        call.receive_scores(window, fake_logits(window.features))


def test_a_gap_is_told_on_every_channel() -> None:
    call = Call(CARD, CallConfig(audio=STEREO))
    call.receive(encode_audio([LEFT[:32_000], RIGHT[:32_000]], STEREO), 1.0)
    answer_all(call)
    call.receive_gap(8_000, "lost")
    answer_all(call)
    events = call.events_to_send(2.0)
    gaps = of_type(events, Gap)
    assert [(gap.channel, gap.start_s, gap.end_s) for gap in gaps] == [(0, 2.0, 2.5), (1, 2.0, 2.5)]
    assert len(of_type(events, Turn)) == 2
    call.receive_end(2.0)
    assert call.events_to_send(2.0)[-1].duration_s == 2.5  # type: ignore[union-attr]


def test_audio_may_begin_with_a_gap() -> None:
    call = Call(CARD, CallConfig())
    call.receive_gap(1_600, "lost")
    _, gap = call.events_to_send(5.0)
    assert isinstance(gap, Gap)
    # Nothing had arrived that it could be late for.
    assert (gap.start_s, gap.end_s, gap.lag_ms) == (0.0, 0.1, 0.0)


@pytest.mark.parametrize("rate", [8000, 11_025, 48_000])
def test_what_the_resampler_held_back_comes_before_the_gap(rate: int) -> None:
    audio = AudioFormat(sample_rate=rate)
    call = Call(CARD, CallConfig(audio=audio))
    chunk = encode_audio([tone_speech(1.0, 1, rate)], audio)
    for _ in range(3):
        call.receive(chunk, 1.0)
        call.receive_gap(8000, "lost")
    call.receive_end(1.0)
    answer_all(call)
    events = call.events_to_send(2.0)
    gaps = [(gap.start_s, gap.end_s) for gap in of_type(events, Gap)]
    assert gaps == [(1.0, 1.5), (2.5, 3.0), (4.0, 4.5)], "to the sample"
    assert all(gap.lag_ms == 1000.0 for gap in of_type(events, Gap)), "it came with the bytes"
    assert events[-1].duration_s == 4.5  # type: ignore[union-attr]


def test_a_sample_that_a_gap_cut_in_two_does_not_shift_the_rest() -> None:
    audio = AudioFormat(sample_rate=8000)
    whole, cut = (Call(CARD, CallConfig(audio=audio)) for _ in range(2))
    pcm = encode_audio([tone_speech(3.0, 1, 8000)], audio)
    for call, rest in ((whole, b""), (cut, b"\x7f")):
        call.receive(pcm + rest, 1.0)
        call.receive_gap(8000, "lost")
        call.receive(pcm, 2.0)
        call.receive_end(2.0)
        answer_all(call)
    assert whole.events_to_send(2.0) == cut.events_to_send(2.0)


def test_a_gap_of_one_track_leaves_the_other_alone() -> None:
    audio = AudioFormat(sample_rate=8000, channels=2)
    call = Call(CARD, CallConfig(audio=audio, as_tracks=True))
    pcm = encode_audio([tone_speech(1.0, 1, 8000)], AudioFormat(sample_rate=8000))
    for channel in (0, 1):
        call.receive(pcm, 1.0, channel)
    before = call.sessions[0].num_samples
    call.receive_gap(8000, "lost", 1)
    assert [session.num_samples for session in call.sessions] == [before, 24_000]
