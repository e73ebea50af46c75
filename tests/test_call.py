from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.arrays import Samples
from streamer.audio import AudioFormat
from streamer.call import NOTICE, Call, CallConfig
from streamer.errors import ConfigError, ModelError, ScoreError, SourceError
from streamer.events import Emotion, Error, Event, Ready, Speech, Summary, TalkOver, Turn
from streamer.session import SessionConfig, Window
from streamer.vad import VadConfig
from tests.golden.synthetic import silence
from tests.scorers import (
    LABELS,
    assert_same_events,
    encode_audio,
    fake_logits,
    hear,
    make_card,
    tone_speech,
)

CARD = make_card()
STEREO = AudioFormat(channels=2)
LEFT = np.concatenate([silence(0.5), tone_speech(2.6, 1), silence(0.9)])
RIGHT = np.concatenate([silence(1.0), tone_speech(2.0, 2), silence(1.0)])


def of_type(events: list[Event], kind: type[Any]) -> list[Any]:
    return [event for event in events if isinstance(event, kind)]


def pcm(*channels: Samples) -> bytes:
    return encode_audio(list(channels), AudioFormat(channels=len(channels)))


def chunks_of(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def feed(call: Call, chunk: bytes, at_s: float) -> list[Window]:
    call.receive(chunk, at_s)
    return call.windows_to_score()


def answer_all(call: Call, windows: list[Window]) -> None:
    for window in windows:
        call.receive_scores(window, fake_logits(window.features))


# What a call begins and ends with


def test_the_first_event_says_what_listens() -> None:
    config = CallConfig(
        audio=AudioFormat(encoding="mulaw", sample_rate=8_000, channels=2),
        roles=("customer", "agent"),
        session=SessionConfig(step_s=0.5, vad=VadConfig(hang_over_s=0.7)),
        session_id="call-1",
    )
    call = Call(CARD, config)
    (ready,) = call.events_to_send(0.0)
    assert isinstance(ready, Ready)
    assert call.events_to_send(0.0) == [], "it is sent once"
    assert (ready.seq, ready.session, ready.model, ready.labels) == (0, "call-1", "fake", LABELS)
    assert (ready.encoding, ready.sample_rate, ready.step_ms) == ("mulaw", 8_000, 500)
    assert [(item.channel, item.role, item.analysed) for item in ready.channels] == [
        (0, "customer", True),
        (1, "agent", False),
    ]
    # 100 frames, 30 ms that the last one is longer than its shift, 40 ms of look-ahead.
    assert ready.first_score_s == pytest.approx(1.07)
    assert ready.hang_over_s == 0.7
    assert ready.notice == NOTICE


def test_the_last_event_is_the_summary() -> None:
    call = Call(CARD, CallConfig(audio=STEREO, roles=("customer", "agent"), source="call.wav"))
    events = hear(call, [pcm(LEFT, RIGHT)])
    (summary,) = of_type(events, Summary)
    assert summary is events[-1]
    assert (summary.duration_s, summary.max_lag_ms) == (4.0, 0.0)
    customer, agent = summary.channels
    assert (customer.channel, customer.role, customer.analysed) == (0, "customer", True)
    assert (agent.channel, agent.role, agent.analysed) == (1, "agent", False)
    assert customer.emotions == len(of_type(events, Emotion)) and agent.emotions == 0
    assert agent.frames_computed == 0 and agent.speech_s > 1.9
    assert [event.seq for event in events] == list(range(len(events)))
    assert {event.source for event in events} == {"call.wav"}
    assert call.is_finished and call.has_ended
    assert call.events_to_send(0.0) == []


def test_a_call_without_audio_is_ready_and_over() -> None:
    call = Call(CARD, CallConfig(audio=STEREO))
    assert not call.has_ended
    assert [type(event) for event in hear(call, [])] == [Ready, Summary]


def test_the_summary_waits_for_the_last_score() -> None:
    call = Call(CARD, CallConfig())
    windows = feed(call, pcm(LEFT), 0.0)
    call.receive_end(0.0)
    windows += call.windows_to_score()
    assert call.windows_to_score() == []
    for num_left in range(len(windows), 0, -1):
        assert call.num_outstanding == num_left
        assert not of_type(call.events_to_send(0.0), Summary)
        assert call.has_ended and not call.is_finished
        answer_all(call, [windows.pop()])
    assert isinstance(call.events_to_send(0.0)[-1], Summary)
    assert call.is_finished


def test_nothing_is_taken_after_the_end() -> None:
    call = Call(CARD, CallConfig())
    events = hear(call, [pcm(LEFT)])
    num_samples = call.num_samples
    call.receive(pcm(LEFT), 0.0)
    call.receive_gap(100, "lost")
    call.receive_end(0.0)
    call.fail(SourceError("the file broke"), 0.0)
    assert call.num_samples == num_samples == len(LEFT)
    assert call.windows_to_score() == [] and call.events_to_send(0.0) == []
    assert not of_type(events, Error)


# Roles


def test_channels_without_a_role_are_customers() -> None:
    events = hear(Call(CARD, CallConfig(audio=STEREO)), [pcm(LEFT, RIGHT)])
    assert {event.role for event in of_type(events, Emotion)} == {"customer"}
    assert {event.channel for event in of_type(events, Emotion)} == {0, 1}


@pytest.mark.parametrize("analyse_agents", [False, True])
def test_an_agents_emotion_is_inferred_only_where_asked_for(analyse_agents: bool) -> None:
    config = CallConfig(audio=STEREO, roles=("customer", "agent"), analyse_agents=analyse_agents)
    events = hear(Call(CARD, config), [pcm(LEFT, RIGHT)])
    of_agent = [event for event in events if event.role == "agent"]
    assert len(of_type(of_agent, Speech)) == 2
    assert bool(of_type(of_agent, Emotion) and of_type(of_agent, Turn)) == analyse_agents
    assert len(of_type(of_agent, Speech)) == len(of_agent) or analyse_agents


def test_a_channel_hears_nothing_of_the_other() -> None:
    def without_seq(events: list[Event], channel: int) -> list[dict[str, Any]]:
        chosen = [event for event in events if event.channel == channel]
        return [
            {name: getattr(event, name) for name in event.__struct_fields__ if name != "seq"}
            for event in chosen
        ]

    both = hear(Call(CARD, CallConfig(audio=STEREO)), [pcm(LEFT, RIGHT)])
    alone = hear(Call(CARD, CallConfig(audio=STEREO)), [pcm(LEFT, silence(4.0))])
    assert without_seq(both, 0) == without_seq(alone, 0)
    assert without_seq(both, 1) and not without_seq(alone, 1)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        (("boss",), "role 'boss': expected one of customer, agent"),
        (("customer", "agent"), "2 roles .* of 1 channel:"),
    ],
)
def test_wrong_roles_are_refused(roles: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CallConfig(roles=roles)


# The merge of two channels


def test_two_channels_merge_in_the_order_of_the_audio() -> None:
    last: set[tuple[int, float]] = set()

    def answer(call: Call, window: Window) -> None:
        call.receive_scores(window, fake_logits(window.features))
        if window.is_last:
            last.add((window.channel, window.end_s))

    call = Call(CARD, CallConfig(audio=STEREO))
    emotions = of_type(hear(call, [pcm(LEFT, RIGHT)], answer=answer), Emotion)
    assert {emotion.channel for emotion in emotions} == {0, 1}
    # A turn's last window ends with its speech, and is due when that has been over for 0.5 s.
    ends = [item.end_s for item in emotions if (item.channel, item.end_s) not in last]
    assert len(ends) > 10 and ends == sorted(ends)


@settings(max_examples=30)
@given(order=st.randoms(use_true_random=False), late=st.sampled_from([0, 1]))
def test_one_channels_late_scores_do_not_change_the_order(order: Any, late: int) -> None:
    expected = hear(Call(CARD, CallConfig(audio=STEREO)), [pcm(LEFT, RIGHT)])
    call = Call(CARD, CallConfig(audio=STEREO))
    events: list[Event] = []
    waiting: list[Window] = []
    for chunk in chunks_of(pcm(LEFT, RIGHT), 12_800):
        for window in feed(call, chunk, 0.0):
            if window.channel == late:
                waiting.append(window)
            else:
                answer_all(call, [window])
        events += call.events_to_send(0.0)
    call.receive_end(0.0)
    waiting += call.windows_to_score()
    order.shuffle(waiting)
    for window in waiting:
        events += call.events_to_send(0.0)
        answer_all(call, [window])
    events += call.events_to_send(0.0)
    assert_same_events(events, expected)


def test_the_same_on_both_channels_comes_by_channel() -> None:
    events = hear(Call(CARD, CallConfig(audio=STEREO)), [pcm(LEFT, LEFT)])[1:-1]
    assert [event.channel for event in events[:4]] == [0, 1, 0, 1]
    assert [type(event) for event in events[:4]] == [Speech, Speech, Emotion, Emotion]
    # What comes of one moment stays together: the end of speech, and its turn.
    ends = [(channel, kind) for channel in (0, 1) for kind in (Speech, Turn)]
    ends.insert(1, (None, TalkOver))
    assert [(event.channel, type(event)) for event in events[-5:]] == ends


def test_an_answer_for_a_window_of_another_call_is_refused() -> None:
    stereo, mono = Call(CARD, CallConfig(audio=STEREO)), Call(CARD, CallConfig())
    windows = feed(stereo, pcm(LEFT, RIGHT), 0.0)
    feed(mono, pcm(LEFT), 0.0)
    for window in windows:
        with pytest.raises(ScoreError, match="handed out here"):
            mono.receive_scores(window, [0, 0, 0, 0])
        with pytest.raises(ScoreError, match="handed out here"):
            mono.skip(window, "overload")


# Faults in the audio


def test_what_came_before_bad_audio_counts() -> None:
    audio = AudioFormat(encoding="pcm_f32le")
    samples = np.concatenate([LEFT[: 2 * 16_000], LEFT[:100]])
    samples[32_000] = np.nan
    call = Call(CARD, CallConfig(audio=audio))
    events = hear(call, chunks_of(encode_audio([samples], audio), 1_000))
    error, summary = events[-2:]
    assert isinstance(error, Error) and isinstance(summary, Summary)
    assert (error.code, error.fatal, error.channel) == ("bad_audio", True, None)
    assert "sample 32000 of channel 0 is nan" in error.message
    assert summary.duration_s == 2.0
    assert_same_events(
        events[1:-2],
        hear(Call(CARD, CallConfig(audio=audio)), [encode_audio([samples[:32_000]], audio)])[1:-1],
    )
    assert len(of_type(events, Turn)) == 1
    assert call.has_ended and call.is_finished


def test_audio_that_ends_inside_a_sample_is_a_fault_after_all_else() -> None:
    call = Call(CARD, CallConfig(audio=STEREO))
    events = hear(call, [pcm(LEFT, RIGHT) + b"abc"])
    expected = hear(Call(CARD, CallConfig(audio=STEREO)), [pcm(LEFT, RIGHT)])
    assert_same_events(events[:-2], expected[:-1])
    error = events[-2]
    assert isinstance(error, Error) and error.fatal
    assert "3 bytes left over" in error.message


def test_a_source_that_breaks_ends_the_call_with_its_own_error() -> None:
    call = Call(CARD, CallConfig())
    answer_all(call, feed(call, pcm(LEFT[:30_000]), 0.0))
    call.fail(SourceError("the file broke off"), 0.0)
    answer_all(call, call.windows_to_score())
    events = call.events_to_send(0.0)
    assert len(of_type(events, Turn)) == 1
    error = events[-2]
    assert isinstance(error, Error)
    assert (error.code, error.message, error.fatal) == ("bad_source", "the file broke off", True)


def test_the_first_fault_is_the_one_that_is_told() -> None:
    call = Call(CARD, CallConfig())
    windows = feed(call, pcm(LEFT) + b"a", 0.0)
    call.fail(SourceError("the file broke off"), 0.0)
    call.fail(ModelError("and so did all else"), 0.0)
    windows += call.windows_to_score()
    assert windows and not of_type(call.events_to_send(0.0), Error)
    answer_all(call, windows)
    errors = of_type(call.events_to_send(0.0), Error)
    assert [error.code for error in errors] == ["bad_source"]


# Lag


def test_lag_counts_from_the_arrival_of_the_last_sample_that_was_needed() -> None:
    """Chunks of 100 ms arrive at 0.1, 0.2, ... s; a window that they complete is scored later."""
    call = Call(CARD, CallConfig())
    call.events_to_send(0.0)
    due: list[tuple[float, Window]] = []
    for number, chunk in enumerate(chunks_of(pcm(LEFT), 3_200), start=1):
        arrived_s = number / 10
        due += [(arrived_s, window) for window in feed(call, chunk, arrived_s)]
    end_s = arrived_s + 0.5
    call.receive_end(end_s)
    due += [(end_s, window) for window in call.windows_to_score()]
    speech, *none = call.events_to_send(10.0)
    assert none == []
    # Voice is heard from 0.5 s; the sixth chunk holds the onset's 100 ms, or else the seventh.
    assert isinstance(speech, Speech)
    assert speech.lag_ms in (pytest.approx(9_400.0), pytest.approx(9_300.0))
    lags = []
    for number, (arrived_s, window) in enumerate(due):
        call.receive_scores(window, fake_logits(window.features))
        (emotion, *_) = call.events_to_send(20.0 + number)
        assert isinstance(emotion, Emotion)
        lags.append(emotion.lag_ms)
        assert emotion.lag_ms == pytest.approx((20.0 + number - arrived_s) * 1000, abs=0.11)
    summary = call.events_to_send(60.0)
    assert summary == [] and call.is_finished


def test_the_summary_holds_the_largest_lag() -> None:
    readings = itertools.chain([1.0, 2.5], itertools.repeat(3.0))
    events = hear(Call(CARD, CallConfig()), [pcm(LEFT)], clock=lambda: next(readings))
    lags = [event.lag_ms for event in events if hasattr(event, "lag_ms")]
    summary = events[-1]
    assert isinstance(summary, Summary)
    assert summary.max_lag_ms == max(lags) == 1_500.0


def test_bytes_that_complete_nothing_do_not_make_an_event_younger() -> None:
    call = Call(CARD, CallConfig())
    end = 79 * 320  # A block's last sample; one window has become due.
    windows = feed(call, pcm(LEFT[:end]), 1.0)
    assert windows, "the test needs a window that is due"
    assert feed(call, pcm(LEFT[end : end + 100]), 9.0) == []
    call.events_to_send(9.0)
    answer_all(call, windows)
    (emotion,) = call.events_to_send(10.0)
    assert isinstance(emotion, Emotion)
    assert emotion.lag_ms == 9_000.0


@pytest.mark.parametrize("now_s", [-5.0, 0.0])
def test_a_clock_that_runs_backwards_makes_no_negative_lag(now_s: float) -> None:
    call = Call(CARD, CallConfig())
    answer_all(call, feed(call, pcm(LEFT), 7.0))
    assert all(event.lag_ms == 0.0 for event in call.events_to_send(now_s)[1:])  # type: ignore[union-attr]


# Faults of scorers


def test_skipped_windows_are_told_on_their_channel() -> None:
    def answer(call: Call, window: Window) -> None:
        if window.channel == 1:
            call.skip(window, "scorer_failed")
        else:
            call.receive_scores(window, fake_logits(window.features))

    events = hear(Call(CARD, CallConfig(audio=STEREO)), [pcm(LEFT, RIGHT)], answer=answer)
    errors = of_type(events, Error)
    assert [error.code for error in errors] == ["scorer_failed", "turn_not_scored"]
    assert {error.channel for error in errors} == {1}
    assert [turn.channel for turn in of_type(events, Turn)] == [0]
    summary = events[-1]
    assert isinstance(summary, Summary)
    assert [channel.dropped > 0 for channel in summary.channels] == [False, True]
