from __future__ import annotations

import csv
import itertools
import tracemalloc
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streamer.arrays import Frames, Samples
from streamer.errors import ConfigError
from streamer.features import FeatureConfig, FeatureStream
from streamer.frontend import FrontEnd, FrontEndConfig, Happening, SpeechEnd, SpeechStart, WindowCut
from streamer.normalization import CausalNormalizer, NormalizationConfig
from streamer.vad import VadConfig, VoiceDetector
from streamer.windows import cut_window
from tests.golden.synthetic import hiss, silence, voice

FEATURES = FeatureConfig()
CARD_MEAN = tuple(float(value) for value in np.linspace(-60.0, 5.0, 26))
NORMALIZATION = NormalizationConfig(mean=CARD_MEAN)
PLAIN = FrontEndConfig(features=FEATURES, normalization=None)
NORMALIZED = FrontEndConfig(features=FEATURES, normalization=NORMALIZATION)
BLOCK = 320


def play(config: FrontEndConfig, chunks: list[Samples]) -> tuple[list[Happening], FrontEnd]:
    front_end = FrontEnd(config)
    happenings = [happening for chunk in chunks for happening in front_end.receive(chunk)]
    return happenings + front_end.flush(), front_end


def bits(happenings: list[Happening]) -> list[Any]:
    """Return happenings as values that compare to the bit."""
    return [
        (one.position, one.span, one.speech_ratio, one.features.tobytes())
        if isinstance(one, WindowCut)
        else one
        for one in happenings
    ]


def turns_of(happenings: list[Happening]) -> list[tuple[SpeechStart, list[WindowCut], SpeechEnd]]:
    """Return happenings by turns; fails unless each is a start, its windows and an end."""
    turns, rest = [], list(happenings)
    while rest:
        start = rest.pop(0)
        assert isinstance(start, SpeechStart)
        cuts = []
        while rest and isinstance(rest[0], WindowCut):
            cuts.append(rest.pop(0))
        assert rest, "a turn has no end"
        end = rest.pop(0)
        assert isinstance(end, SpeechEnd)
        assert end.start_sample == start.start_sample
        turns.append((start, cuts, end))
    return turns


def decide(audio: Samples) -> list[bool]:
    """Return the decision on each block, the last one padded."""
    detector = VoiceDetector(VadConfig())
    padded = np.concatenate([audio, np.zeros(-len(audio) % BLOCK, np.float32)])
    return [detector.is_speech(block) for block in padded.reshape(-1, BLOCK)]


def offline(audio: Samples, config: FrontEndConfig) -> tuple[Frames, NDArray[np.bool_]]:
    """Return all frames of the audio and which are speech: the blocks at their centres decide."""
    stream = FeatureStream(config.features)
    frames = np.concatenate([stream.receive(audio), stream.flush()])
    flags = decide(audio)
    is_speech = np.array([flags[(160 * i + 320) // BLOCK] for i in range(len(frames))], np.bool_)
    if config.normalization:
        frames = CausalNormalizer(config.normalization).normalize(frames, is_speech)
    return frames, is_speech


@lru_cache(maxsize=1)
def call() -> Samples:
    """Two turns, the first with a pause in it, the last cut off by the end of the audio."""
    parts = [silence(0.4), voice(2.7), silence(0.3), voice(0.8, -40.0), silence(1.0)]
    return np.concatenate([*parts, hiss(0.35, -70.0), voice(0.72, -20.0, seed=1)[:-77]])


@lru_cache(maxsize=1)
def sounds() -> dict[str, Samples]:
    return {"voice": voice(3.0), "hiss": hiss(3.0, -70.0), "silence": silence(3.0)}


# Laws 1 and 2: chunking never shows, and offline is the stream fed at once.


@settings(max_examples=40)
@given(
    segments=st.lists(
        st.tuples(st.sampled_from(["voice", "hiss", "silence"]), st.integers(1, 30_000)),
        max_size=5,
    ),
    places=st.lists(st.integers(0, 100_000), max_size=25),
    step_s=st.sampled_from([0.05, 0.25, 0.5]),
    normalization=st.sampled_from([None, NORMALIZATION]),
    analyse=st.booleans(),
)
def test_any_cut_gives_the_same_happenings(
    segments: list[tuple[str, int]],
    places: list[int],
    step_s: float,
    normalization: NormalizationConfig | None,
    analyse: bool,
) -> None:
    parts = [sounds()[kind][:num_samples] for kind, num_samples in segments]
    audio = np.concatenate([np.zeros(0, np.float32), *parts])
    edges = [0, *sorted(min(place, len(audio)) for place in places), len(audio)]
    config = FrontEndConfig(
        features=FEATURES, normalization=normalization, step_s=step_s, analyse=analyse
    )
    whole, once = play(config, [audio])
    chunked, cut = play(config, [audio[start:end] for start, end in itertools.pairwise(edges)])
    assert bits(chunked) == bits(whole)
    assert cut.num_samples == once.num_samples == len(audio)
    held = max(0, (len(audio) - 640) // 160 + 1) if analyse else 0
    assert cut.num_frames_computed == once.num_frames_computed == held, "each frame once"


@pytest.mark.parametrize("num_samples", [1, 319, 321, 160_000])
def test_regular_chunks_give_the_same_happenings(num_samples: int) -> None:
    audio = call()[:24_000] if num_samples == 1 else call()
    chunks = [audio[start : start + num_samples] for start in range(0, len(audio), num_samples)]
    assert bits(play(NORMALIZED, chunks)[0]) == bits(play(NORMALIZED, [audio])[0])


def test_a_chunk_may_be_overwritten_once_it_is_received() -> None:
    audio, buffer = call()[:90_000], np.zeros(500, np.float32)
    expected, _ = play(PLAIN, [audio])
    front_end = FrontEnd(PLAIN)
    happenings = []
    for start in range(0, len(audio), 500):
        buffer[:] = audio[start : start + 500]
        happenings += front_end.receive(buffer)
    assert bits(happenings + front_end.flush()) == bits(expected)


@pytest.mark.parametrize("config", [PLAIN, NORMALIZED], ids=["plain", "normalized"])
def test_windows_are_cut_from_the_frames_of_the_whole_audio(config: FrontEndConfig) -> None:
    audio = call()
    happenings, _ = play(config, [audio])
    frames, is_speech = offline(audio, config)
    cuts = [one for one in happenings if isinstance(one, WindowCut)]
    assert len(cuts) > 10
    for cut in cuts:
        span = slice(cut.span.start_frame, cut.span.end_frame)
        assert np.array_equal(cut.features, cut_window(frames[span], 200))
        assert cut.speech_ratio == pytest.approx(is_speech[span].mean())


def test_history_holds_all_frames_for_training() -> None:
    audio = call()
    front_end = FrontEnd(NORMALIZED, history_frames=10_000)
    front_end.receive(audio)
    front_end.flush()
    frames, is_speech = offline(audio, NORMALIZED)
    kept, kept_speech = front_end.frames(0, len(frames))
    assert np.array_equal(kept, frames)
    assert np.array_equal(kept_speech, is_speech)
    with pytest.raises(IndexError, match=rf"expected within 0-{len(frames)}"):
        front_end.frames(0, len(frames) + 1)


def test_deltas_wait_for_no_more_than_their_look_ahead() -> None:
    front_end = FrontEnd(PLAIN)
    audio = call()
    num_cuts = 0
    for start in range(0, 57_600, BLOCK):
        for one in front_end.receive(audio[start : start + BLOCK]):
            if isinstance(one, WindowCut):
                num_cuts += 1
                # Three shifts are a frame's overlap, 40 ms the look-ahead, 20 ms the block.
                late = one.position - 160 * one.span.end_frame
                assert 480 + 640 <= late < 480 + 640 + BLOCK
    assert num_cuts > 5


# Turns and windows


def test_what_happens_in_a_call() -> None:
    happenings, _ = play(PLAIN, [call()])
    (start, cuts, end), (last_start, last_cuts, last_end) = turns_of(happenings)
    # Blocks of 20 ms; the onset needs five of speech.
    assert abs(start.start_sample - 6_400) <= BLOCK
    assert start.position == start.start_sample + 5 * BLOCK
    assert abs(end.end_sample - 67_200) <= 3 * BLOCK
    assert end.position == end.end_sample + 8_000, "the hang-over"
    onset = start.start_sample // 160
    ends = [cut.span.end_frame for cut in cuts]
    assert ends[0] == onset + 100
    grid = set(range(onset + 100, end.end_sample // 160 + 21, 25))
    passed_over = grid - set(ends)
    assert passed_over <= set(range(onset + 290, onset + 310)), "only in the pause"
    assert [cut.span.start_frame for cut in cuts] == [max(onset - 20, e - 200) for e in ends]
    assert [cut.span.is_full for cut in cuts] == [e >= onset + 180 for e in ends]
    (last,) = last_cuts
    assert last.span.is_last and not last.span.is_full
    assert last.span.end_frame == (len(call()) - 640) // 160 + 1
    assert last_end.end_sample == last_end.position == len(call())
    assert last_start.start_sample > end.position


def test_the_state_of_a_turn() -> None:
    front_end = FrontEnd(PLAIN)
    assert not front_end.is_speaking
    front_end.receive(np.concatenate([silence(0.2), voice(0.6)]))
    assert front_end.is_speaking
    front_end.flush()
    assert not front_end.is_speaking
    assert front_end.num_samples == 12_800


@pytest.mark.parametrize("onset_s", [0.06, 0.1])  # with 0.04 a turn may end before any frame of it
@pytest.mark.parametrize("num_samples", [321, 641, 961, 1_281, 1_500, 4_000])
def test_every_turn_gets_a_window_however_soon_the_audio_ends(
    onset_s: float, num_samples: int
) -> None:
    vad = VadConfig(onset_s=onset_s)
    config = FrontEndConfig(features=FEATURES, normalization=None, vad=vad)
    audio = np.concatenate([silence(0.2), voice(1.0)[4_800 : 4_800 + num_samples]])
    happenings, _ = play(config, [audio])
    turns = turns_of(happenings)
    assert len(turns) == (num_samples > (onset_s - 0.02) * 16_000)
    for _, cuts, _ in turns:
        assert len(cuts) == 1


@pytest.mark.parametrize("num_after", range(5))
def test_the_grid_goes_on_to_the_last_frame(num_after: int) -> None:
    whole, _ = play(PLAIN, [voice(2.7)])
    grid_end = next(
        one.span.end_frame for one in whole if isinstance(one, WindowCut) and one.span.is_full
    )
    # The audio ends with so few frames after a grid point that its deltas' look-ahead is missing.
    audio = voice(2.7)[: 160 * (grid_end + num_after - 1) + 640]
    ((_, cuts, _),) = turns_of(play(PLAIN, [audio])[0])
    ends = [cut.span.end_frame for cut in cuts]
    assert grid_end in ends
    assert ends[-1] == grid_end + num_after


@pytest.mark.parametrize("audio", [silence(0.0), silence(3.0), hiss(3.0, -70.0)], ids=len)
def test_nothing_happens_in_silence(audio: Samples) -> None:
    happenings, front_end = play(PLAIN, [audio])
    assert happenings == []
    assert front_end.num_frames_computed == max(0, (len(audio) - 640) // 160 + 1)


def test_without_analysis_speech_is_told_and_nothing_computed() -> None:
    config = FrontEndConfig(features=FEATURES, normalization=None, analyse=False)
    happenings, front_end = play(config, [call()])
    analysed, _ = play(PLAIN, [call()])
    assert happenings == [one for one in analysed if not isinstance(one, WindowCut)]
    assert front_end.num_frames_computed == 0


@pytest.mark.parametrize("kind", ["noise", "voice", "muted"])
def test_memory_stays_bounded(kind: str) -> None:
    config = FrontEndConfig(features=FEATURES, normalization=NORMALIZATION, analyse=kind != "muted")
    audio = voice(4.0) if kind == "voice" else hiss(4.0, -30.0)
    front_end = FrontEnd(config)
    sizes = []
    tracemalloc.start()
    try:
        for _ in range(15):
            for start in range(0, len(audio), 4_000):
                front_end.receive(audio[start : start + 4_000])
            sizes.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    # The store is full after 3 s. The 40 s compared bring 4000 frames of 312 bytes and 2000 blocks.
    assert sizes[-1] - sizes[4] < 10_000


# Real speech


@pytest.mark.parametrize("corpus", ["ravdess", "emodb", "nemo", "banglaser"])
def test_every_utterance_has_a_turn_and_a_score_within_a_second(
    speech_data: Path, corpus: str
) -> None:
    with (speech_data / corpus / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["label"]]
    num_prompt = 0
    for row in rows[:: len(rows) // 10]:
        audio, sample_rate = soundfile.read(speech_data / corpus / row["path"], dtype="float32")
        assert sample_rate == FEATURES.sample_rate
        happenings, _ = play(NORMALIZED, [audio])
        turns = turns_of(happenings)
        assert turns, row["path"]
        flags = decide(audio)
        for start, cuts, end in turns:
            assert cuts, row["path"]
            assert all(np.isfinite(cut.features).all() for cut in cuts)
            onset_block = start.start_sample // BLOCK
            goes_on = end.end_sample - start.start_sample > 0.8 * sample_rate
            if goes_on and any(flags[onset_block + 40 : onset_block + 50]):
                num_prompt += 1
                assert cuts[0].position - start.start_sample <= 1.1 * sample_rate
    assert num_prompt >= 5


# What is refused


@pytest.mark.parametrize("step_s", [0.0, -0.25, 0.005, 0.255, 10.01, float("nan"), float("inf")])
def test_a_step_out_of_range_is_refused(step_s: float) -> None:
    with pytest.raises(ConfigError, match=f"step of {step_s:g} s: expected 0.01 to 10 s"):
        FrontEndConfig(features=FEATURES, normalization=None, step_s=step_s)


@pytest.mark.parametrize("frame_shift", [200, 400])
def test_frames_that_do_not_fit_the_blocks_are_refused(frame_shift: int) -> None:
    features = FeatureConfig(frame_shift=frame_shift)
    with pytest.raises(ConfigError, match=f"frame shift of {frame_shift} samples: expected"):
        FrontEndConfig(features=features, normalization=None, step_s=0.25)


def test_a_mean_longer_than_the_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="mean of 27 coefficients: expected at most 26"):
        FrontEndConfig(features=FEATURES, normalization=NormalizationConfig(mean=(0.0,) * 27))


@pytest.mark.parametrize("frame_length", [160, 320, 400])
def test_shorter_frames_are_speech_by_the_block_at_their_centre(frame_length: int) -> None:
    features = FeatureConfig(frame_length=frame_length, fft_length=1024)
    audio = call()[:16_000]
    front_end = FrontEnd(FrontEndConfig(features=features, normalization=None))
    front_end.receive(audio)
    front_end.flush()
    flags = decide(audio)
    num_frames = (len(audio) - frame_length) // 160 + 1
    _, is_speech = front_end.frames(0, num_frames)
    centres = 160 * np.arange(num_frames) + frame_length // 2
    assert is_speech.tolist() == [flags[centre // BLOCK] for centre in centres]
