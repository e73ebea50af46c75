"""The seven laws of this house, each as tests. Read this file first.

1. Chunking never shows: any cut of the same bytes, any order of scores, gives the same events.
2. Offline is the stream fed at once: there is no second implementation.
3. An outside witness: features agree with an independent library's.
4. Time is counted in samples; a clock shows in ``lag_ms`` alone.
5. The card decides what the model was trained on; an operator cannot.
6. Nothing grows without bound, and what is skipped is told.
7. One call's fault is that call's alone.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from streamer.audio import SAMPLE_RATE, AudioFormat
from streamer.call import Call, CallConfig
from streamer.card import decode_card
from streamer.errors import CardError, ScoreError
from streamer.events import Emotion, Error, Event, Gap, Lag, Speech, Summary, Turn
from streamer.features import FeatureConfig, FeatureStream
from streamer.frontend import FrontEnd, FrontEndConfig, WindowCut
from streamer.session import Session, SessionConfig, SkipReason, Window
from streamer.smoothing import calibrate, softmax
from streamer.windows import WindowConfig
from tests.golden.synthetic import silence
from tests.laws import (
    chunk_sizes,
    conversation,
    cut_in_turn,
    formats,
    happenings,
    hear_out_of_order,
    minute,
    size_of,
    skip_where,
    words_of,
)
from tests.scorers import (
    assert_same_events,
    comparable,
    encode_audio,
    fake_logits,
    hear,
    make_card,
    of_type,
)

ROOT = Path(__file__).resolve().parents[1]
CARD = make_card()


# Law 1: chunking never shows.


@settings(max_examples=40)
@given(
    audio=formats(),
    sizes=chunk_sizes(),
    seed=st.integers(0, 2**32),
    repeats=st.sampled_from([1, 1, 3]),
    num_cut_off=st.integers(0, 3),
    analyse_agents=st.booleans(),
)
def test_any_cut_and_any_order_of_scores_give_the_same_events(
    audio: AudioFormat,
    sizes: list[int],
    seed: int,
    repeats: int,
    num_cut_off: int,
    analyse_agents: bool,
) -> None:
    roles = ("customer", "agent")[: audio.channels]
    config = CallConfig(audio=audio, roles=roles, analyse_agents=analyse_agents)
    channels = list(conversation(audio.sample_rate)[: audio.channels])
    data = encode_audio(channels, audio) * repeats
    # Bytes that end inside a sample are a fault of the source; that too must not depend on cuts.
    data = data[: len(data) - num_cut_off]
    whole = hear(Call(CARD, config), [data])
    assert of_type(whole, Turn) and of_type(whole, Emotion)
    assert [event.seq for event in whole] == list(range(len(whole)))
    assert_same_events(hear_out_of_order(Call(CARD, config), cut_in_turn(data, sizes), seed), whole)


def test_one_byte_at_a_time_is_the_same_as_ten_seconds_at_once() -> None:
    audio = AudioFormat(encoding="mulaw", sample_rate=8_000, channels=2)
    data = encode_audio(list(conversation(8_000)), audio)
    whole = hear(Call(CARD, CallConfig(audio=audio)), [data])
    by_byte = hear(Call(CARD, CallConfig(audio=audio)), (bytes([byte]) for byte in data))
    assert_same_events(by_byte, whole)


@settings(max_examples=15)
@given(
    audio=formats(),
    sizes=chunk_sizes(),
    share=st.floats(0.0, 1.0),
    num_lost=st.integers(0, 40_000),
    seed=st.integers(0, 2**32),
)
def test_a_gap_at_the_same_place_gives_the_same_events_for_any_cut(
    audio: AudioFormat, sizes: list[int], share: float, num_lost: int, seed: int
) -> None:
    data = encode_audio(list(conversation(audio.sample_rate)[: audio.channels]), audio)
    place = round(share * len(data)) // audio.bytes_per_block * audio.bytes_per_block

    def hear_with_gap(sizes: list[int]) -> list[Event]:
        call = Call(CARD, CallConfig(audio=audio))
        events = []
        for chunk in cut_in_turn(data[:place], sizes):
            call.receive(chunk, 0.0)
        call.receive_gap(num_lost, "lost")
        events += call.events_to_send(0.0)
        return events + hear_out_of_order(call, cut_in_turn(data[place:], sizes), seed)

    events = hear_with_gap(sizes)
    assert len(of_type(events, Gap)) == audio.channels
    assert_same_events(events, hear_with_gap([len(data)]))


@settings(max_examples=12)
@given(sizes=chunk_sizes(), share=st.floats(0.0, 1.0), seed=st.integers(0, 2**32))
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_bad_audio_ends_a_call_at_the_same_place_for_any_cut(
    bad: float, sizes: list[int], share: float, seed: int
) -> None:
    audio = AudioFormat(encoding="pcm_f32le", sample_rate=8_000, channels=2)
    channels = np.stack(conversation(8_000))
    channels[1, round(share * (channels.shape[1] - 1))] = bad
    data = encode_audio(list(channels), audio)
    config = CallConfig(audio=audio)
    whole = hear(Call(CARD, config), [data])
    assert [error.code for error in of_type(whole, Error) if error.fatal] == ["bad_audio"]
    assert_same_events(hear_out_of_order(Call(CARD, config), cut_in_turn(data, sizes), seed), whole)


# Law 2: offline is the stream fed at once.


def front_end_config(**changes: Any) -> FrontEndConfig:
    return FrontEndConfig(features=CARD.features, normalization=CARD.normalization, **changes)


@settings(max_examples=25)
@given(
    places=st.lists(st.integers(0, 72_000), max_size=40),
    step_s=st.sampled_from([0.1, 0.25, 1.0]),
)
def test_training_and_serving_cut_the_same_windows_to_the_bit(
    places: list[int], step_s: float
) -> None:
    samples, _ = conversation(SAMPLE_RATE)
    edges = [0, *sorted(places), len(samples)]
    chunks = [samples[start:end] for start, end in itertools.pairwise(edges)]
    config = front_end_config(step_s=step_s)
    offline, stream = happenings(config, [samples]), happenings(config, chunks)
    assert len(offline) == len(stream)
    for one, other in zip(offline, stream, strict=True):
        if isinstance(one, WindowCut):
            assert isinstance(other, WindowCut)
            assert (one.position, one.span) == (other.position, other.span)
            assert one.speech_ratio == other.speech_ratio
            assert one.features.tobytes() == other.features.tobytes()
        else:
            assert one == other


def test_a_frame_is_computed_once_and_kept_frames_are_those_that_windows_had() -> None:
    samples, _ = conversation(SAMPLE_RATE)
    front_end = FrontEnd(front_end_config(), history_frames=1_000)
    cuts = [item for item in front_end.receive(samples) if isinstance(item, WindowCut)]
    front_end.flush()
    assert front_end.num_frames_computed == (len(samples) - 640) // 160 + 1
    (full, *_) = [item for item in cuts if item.span.is_full]
    frames, is_speech = front_end.frames(full.span.start_frame, full.span.end_frame)
    assert frames.transpose(1, 2, 0).tobytes() == full.features.tobytes()
    assert full.speech_ratio == is_speech.mean()


def test_training_has_no_features_of_its_own() -> None:
    words = {path.name: words_of(path) for path in (ROOT / "train").rglob("*.py")}
    assert any("streamer.frontend" in found for found in words.values())
    forbidden = {"librosa", "torchaudio", "python_speech_features", "stft", "mfcc", "mel_filters"}
    assert {name: found & forbidden for name, found in words.items() if found & forbidden} == {}


# Law 3: an outside witness. All of it is in test_features.py; here is the one line that matters.


def test_features_agree_with_an_independent_library() -> None:
    with np.load(ROOT / "tests" / "golden" / "features.npz") as golden:
        audio, expected = golden["audio"], golden["wide"]
    stream = FeatureStream(FeatureConfig())
    parts = [stream.receive((audio / 32768.0).astype(np.float32)), stream.flush()]
    # Both are float32, of numbers to 145: right to 8e-6.
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=0, atol=1e-4)


# Law 4: time is counted in samples.


@settings(max_examples=15)
@given(readings=st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50))
def test_any_clock_changes_the_lag_alone(readings: list[float]) -> None:
    """It may stand still, jump, or run backwards."""
    audio = AudioFormat(sample_rate=8_000, channels=2)
    chunks = cut_in_turn(encode_audio(list(conversation(8_000)), audio), [1_600])
    clock = itertools.cycle(readings)
    events = hear(Call(CARD, CallConfig(audio=audio)), chunks, clock=lambda: next(clock))
    expected = hear(Call(CARD, CallConfig(audio=audio)), chunks)
    assert comparable(events) == comparable(expected)
    assert all(event.lag_ms >= 0.0 for event in events if hasattr(event, "lag_ms"))


def test_seconds_are_of_the_audio_whatever_its_rate() -> None:
    spans = []
    for rate in (8_000, 16_000, 44_100):
        audio = AudioFormat(sample_rate=rate)
        data = encode_audio([conversation(rate)[0]], audio)
        events = hear(Call(CARD, CallConfig(audio=audio)), [data])
        spans.append([(turn.start_s, turn.end_s) for turn in of_type(events, Turn)])
        assert events[-1].duration_s == pytest.approx(4.5, abs=0.001)  # type: ignore[union-attr]
    assert len(spans[0]) == 2
    # What resampling does to a block's edge may move it by a block or two of 20 ms.
    np.testing.assert_allclose(spans[0], spans[1], atol=0.0401)
    np.testing.assert_allclose(spans[2], spans[1], atol=0.0401)


# Law 5: the card decides.


def test_an_operator_can_set_nothing_that_the_model_was_trained_on() -> None:
    def fields(config: type[Any]) -> set[str]:
        return {field.name for field in dataclasses.fields(config)}

    assert fields(SessionConfig) == {"step_s", "vad", "smoothing"}
    calls = {"audio", "roles", "analyse_agents", "session", "session_id", "source", "alerts"}
    calls |= {"as_tracks", "start_sample", "first_seq"}
    assert fields(CallConfig) == calls
    assert set(inspect.signature(Call).parameters) == {"card", "config"}
    sessions = {"config", "card", "channel", "role", "analyse", "start_sample"}
    assert set(inspect.signature(Session).parameters) == sessions


def test_labels_features_window_and_temperatures_are_the_cards() -> None:
    features = FeatureConfig(mel_low_hz=60.0, mel_high_hz=3_800.0, num_ceps=13)
    labels = ("sad", "neutral", "happy")
    window = WindowConfig(num_frames=120, first_frames=60)
    card = replace(CARD, labels=labels, features=features, window=window, normalization=None)
    raw_logits: list[Any] = []

    def answer(call: Call, window: Window) -> None:
        assert window.features.shape == (3, 13, 120) == card.input_shape
        raw_logits.append(fake_logits(window.features, 3))
        call.receive_scores(window, raw_logits[-1])

    data = encode_audio([conversation(SAMPLE_RATE)[0]], AudioFormat())
    events = hear(Call(card, CallConfig()), [data], answer=answer)
    emotions, turns = of_type(events, Emotion), of_type(events, Turn)
    assert events[0].labels == labels  # type: ignore[union-attr]
    onset_s = of_type(events, Speech)[0].time_s
    # 60 frames of 10 ms; the last of them is 40 ms long.
    assert emotions[0].end_s == pytest.approx(onset_s + 0.63)
    for emotion, logits in zip(emotions, raw_logits, strict=True):
        assert tuple(emotion.raw) == tuple(emotion.scores) == labels
        by_hand = softmax(logits.astype(np.float64) / card.calibration.window)
        assert list(emotion.raw.values()) == pytest.approx(by_hand, abs=1e-6)
    # The second turn is too short to fill a window: it is its last one, at the turn's temperature.
    by_hand = calibrate(softmax(raw_logits[-1]), card.calibration.turn)
    assert turns[-1].windows == 1
    assert list(turns[-1].scores.values()) == pytest.approx(by_hand, abs=1e-6)


def test_a_model_without_a_card_is_refused() -> None:
    with pytest.raises(CardError, match="has no card"):
        decode_card(None, "model.onnx")


# Law 6: nothing grows without bound.


@pytest.mark.parametrize("analyse_agents", [True, False])
@pytest.mark.parametrize("kind", ["silence", "hiss", "monologue", "conversation"])
def test_a_call_holds_no_more_after_many_minutes_than_after_two(
    kind: str, analyse_agents: bool
) -> None:
    call = Call(CARD, CallConfig(roles=("agent",), analyse_agents=analyse_agents))
    sizes = []
    for number in range(5):
        data = encode_audio([minute(kind, number)], AudioFormat())
        for start in range(0, len(data), 1_280):
            call.receive(data[start : start + 1_280], 0.0)
            for window in call.windows_to_score():
                call.receive_scores(window, fake_logits(window.features))
            call.events_to_send(0.0)
        sizes.append(size_of(call))
    # What is held goes up and down by a step: 25 frames of 312 bytes, and the audio of more. One
    # flag kept for every 20 ms would be 24 kB a minute, a number with its time 150 kB.
    assert max(sizes[2:]) <= max(sizes[:2]) + 20_000, sizes
    assert max(sizes) < 250_000, sizes


def test_gaps_do_not_pile_up() -> None:
    call = Call(CARD, CallConfig())
    sizes = []
    for _ in range(4):
        for _ in range(50):
            call.receive(encode_audio([silence(0.1)], AudioFormat()), 0.0)
            call.receive_gap(16_000, "lost")
            call.events_to_send(0.0)
        sizes.append(size_of(call))
    assert max(sizes) <= sizes[0] + 10_000, sizes


@settings(max_examples=30)
@given(st.sets(st.integers(0, 9)), st.sampled_from(["overload", "widened"]), chunk_sizes())
def test_whatever_is_skipped_is_told_and_no_turn_is_lost(
    skipped: set[int], reason: SkipReason, sizes: list[int]
) -> None:
    events = list(skip_where(Call(CARD, CallConfig()), skipped, reason))
    assert_same_events(list(skip_where(Call(CARD, CallConfig()), skipped, reason, sizes)), events)
    full = list(skip_where(Call(CARD, CallConfig()), set()))
    num_windows = len(of_type(full, Emotion))
    assert num_windows == 9
    skipped = {number for number in skipped if number < num_windows}
    # One `lag` a run of skipped windows, at its first; a widened step, which leaves out every
    # second window, is told once, until eight in a row were scored again.
    runs = [number for number in sorted(skipped) if number - 1 not in skipped]
    if reason == "widened":
        runs = [n for n in runs if n == min(skipped) or not skipped & set(range(n - 8, n))]
    by_end = {emotion.end_s: number for number, emotion in enumerate(of_type(full, Emotion))}
    assert [by_end[lag.end_s] for lag in of_type(events, Lag)] == runs
    kept = [emotion.end_s for emotion in of_type(events, Emotion)]
    assert kept == [end_s for end_s, number in by_end.items() if number not in skipped]
    # Both turns are told: with a label if any of their windows was scored, else with an error.
    lost = [error for error in of_type(events, Error) if error.code == "turn_not_scored"]
    turns_lost = [set(range(8)) <= skipped, {8} <= skipped]
    assert len(of_type(events, Turn)) == 2 - sum(turns_lost)
    assert len(lost) == sum(turns_lost) and not any(error.fatal for error in lost)
    dropped = [event.dropped for event in events if hasattr(event, "dropped")]
    assert dropped == sorted(dropped) and dropped[-1] == len(skipped)
    summary = events[-1]
    assert isinstance(summary, Summary)
    assert summary.channels[0].dropped == len(skipped)
    assert summary.channels[0].windows_scored == num_windows - len(skipped)
    assert summary.channels[0].turns == 2


# Law 7: one call's fault is that call's alone.


@settings(max_examples=15)
@given(poisoned=st.sets(st.integers(0, 8), min_size=1), bad=st.sampled_from([np.nan, np.inf]))
def test_a_poisoned_window_leaves_the_other_channel_and_the_other_call_alone(
    poisoned: set[int], bad: float
) -> None:
    audio = AudioFormat(channels=2)
    chunks = cut_in_turn(encode_audio(list(conversation(SAMPLE_RATE)), audio), [6_400])

    def answer(call: Call, window: Window) -> None:
        logits = fake_logits(window.features)
        if call is ill and window.channel == 0 and window.number in poisoned:
            logits[1] = bad
            with pytest.raises(ScoreError, match="expected 4 finite numbers"):
                call.receive_scores(window, logits)
            call.skip(window, "scorer_failed")
        else:
            call.receive_scores(window, logits)

    ill, well = Call(CARD, CallConfig(audio=audio)), Call(CARD, CallConfig(audio=audio))
    expected = hear(Call(CARD, CallConfig(audio=audio)), chunks)
    found: dict[Call, list[Event]] = {ill: [], well: []}
    for chunk in [*chunks, None]:
        for call, events in found.items():
            if chunk is None:
                call.receive_end(0.0)
            else:
                call.receive(chunk, 0.0)
            for window in call.windows_to_score():
                answer(call, window)
            events += call.events_to_send(0.0)

    assert_same_events(found[well], expected)
    errors = of_type(found[ill], Error)
    runs = [number for number in poisoned if number - 1 not in poisoned]
    failed = [error for error in errors if error.code == "scorer_failed"]
    assert len(failed) == len(runs)
    assert all(error.channel == 0 and not error.fatal for error in errors)
    other = [replace(event, seq=0) for event in found[ill] if event.channel == 1]
    assert_same_events(other, [replace(event, seq=0) for event in expected if event.channel == 1])
