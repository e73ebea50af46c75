from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import train.dataset
from streamer.arrays import Samples
from streamer.card import Calibration, Card
from streamer.features import FeatureConfig
from streamer.frontend import FrontEndConfig
from streamer.normalization import CausalNormalizer, NormalizationConfig
from streamer.session import Session, SessionConfig, Window
from streamer.windows import WindowConfig
from tests.made_up_corpus import make_corpus, silence_file
from train.conditions import Surroundings
from train.copies import copy_samples
from train.corpora import LABELS, CorpusError, Utterance, load_corpus, read_samples
from train.dataset import (
    Clip,
    cache_clips,
    extract,
    feature_statistics,
    load_clips,
    normalize_clips,
    speech_mean,
)
from train.telephone import telephone

FEATURES = FeatureConfig()
WINDOW = WindowConfig()
PLAIN = FrontEndConfig(features=FEATURES, normalization=None, window=WINDOW)
NORMALIZATION = NormalizationConfig(mean=tuple(float(x) for x in np.linspace(-60.0, 5.0, 26)))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    return make_corpus(tmp_path_factory.mktemp("made-up"), seconds=(0.6, 3.1))


@pytest.fixture(scope="module")
def clips(corpus: list[Utterance]) -> list[Clip]:
    return [extract(utterance, "clean", PLAIN) for utterance in corpus]


def windows_served(samples: Samples, normalization: NormalizationConfig | None) -> list[Window]:
    """Return what a session hands out for these samples, heard in odd chunks."""
    card = Card(
        name="test",
        description="",
        labels=LABELS,
        features=FEATURES,
        normalization=normalization,
        window=WINDOW,
        calibration=Calibration(),
        data=(),
        licence="",
    )
    session = Session(SessionConfig(), card)
    for start in range(0, len(samples), 1237):
        session.receive_audio(samples[start : start + 1237])
    session.receive_end()
    return session.windows_to_score()


def assert_served(utterance: Utterance, condition: str) -> None:
    """Assert that training has exactly the windows of serving: law 2."""
    clip = extract(utterance, condition, PLAIN)
    served = windows_served(copy_samples(utterance, condition, Surroundings()), None)
    (trained,) = normalize_clips([clip], None, "cold", seed=1)
    assert len(served) == len(trained.spans) > 0
    assert [window.is_full for window in served] == trained.is_full.tolist()
    for index, window in enumerate(served):
        start, end = clip.spans[index]
        assert window.start_s == pytest.approx(start * 0.01, abs=1e-9)
        assert window.end_s == pytest.approx(end * 0.01 + 0.03, abs=1e-9)
        # The cache keeps float16: but for that rounding, to the bit.
        expected = window.features.astype(np.float16).astype(np.float32)
        assert np.array_equal(trained.window(index, WINDOW.num_frames), expected)


@pytest.mark.parametrize("condition", ["clean", "telephone", "slow", "fast"])
def test_windows_are_those_that_a_session_hands_out(
    corpus: list[Utterance], condition: str
) -> None:
    for utterance in corpus[:4]:
        assert_served(utterance, condition)


@pytest.mark.parametrize("name", ["banglaser", "emodb", "nemo", "ravdess"])
def test_windows_of_real_speech_are_those_that_a_session_hands_out(
    speech_data: Path, name: str
) -> None:
    utterances = load_corpus(speech_data / name)
    assert_served(utterances[0], "clean")
    assert_served(utterances[-1], "telephone")


def test_normalised_windows_are_those_that_a_session_hands_out(corpus: list[Utterance]) -> None:
    for utterance in corpus[:4]:
        served = windows_served(read_samples(utterance), NORMALIZATION)
        clip = extract(utterance, "clean", PLAIN)
        (trained,) = normalize_clips([clip], NORMALIZATION, "cold", seed=1)
        # Here float16 rounds before the mean as well as after it: half a unit each time, and at
        # most as much in the mean itself.
        tolerance = 3 * 2.0**-11 * float(np.abs(clip.frames).max())
        for index, window in enumerate(served):
            ours = trained.window(index, WINDOW.num_frames)
            assert np.abs(ours - window.features).max() < tolerance


def test_telephone_is_a_telephone(corpus: list[Utterance]) -> None:
    samples = read_samples(corpus[1])
    for seed in (0, 1):
        narrow = telephone(samples, seed)
        assert abs(len(narrow) - len(samples)) <= 2
        power = np.abs(np.fft.rfft(narrow)) ** 2
        hertz = np.fft.rfftfreq(len(narrow), 1 / 16000)
        assert power[hertz > 4200].sum() < 1e-4 * power.sum()


def test_cache_is_used_again(
    corpus: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advanced = []

    def fill() -> None:
        cache_clips(
            corpus, "telephone", FEATURES, WINDOW, tmp_path, lambda: advanced.append(corpus)
        )

    fill()
    assert len(advanced) == len(corpus)
    first = [extract(utterance, "telephone", PLAIN) for utterance in corpus]
    monkeypatch.setattr(train.dataset, "extract", lambda *_: pytest.fail("computed again"))
    with monkeypatch.context() as patch:
        patch.setattr(np, "load", lambda *_: pytest.fail("read for nothing"))
        fill()
    assert len(advanced) == 2 * len(corpus)
    again = load_clips(corpus, "telephone", FEATURES, WINDOW, tmp_path)
    for one, other in zip(first, again, strict=True):
        assert one.utterance == other.utterance
        for name in ("frames", "is_speech", "spans", "is_full"):
            assert getattr(one, name).dtype == getattr(other, name).dtype
            assert np.array_equal(getattr(one, name), getattr(other, name))


def test_cache_of_something_else_is_not_used(corpus: list[Utterance], tmp_path: Path) -> None:
    some = corpus[:3]

    def num_files(
        utterances: list[Utterance], condition: str, features: FeatureConfig, window: WindowConfig
    ) -> int:
        loaded = load_clips(utterances, condition, features, window, tmp_path)
        assert [clip.utterance for clip in loaded] == utterances
        return len(list(tmp_path.iterdir()))

    assert num_files(some, "clean", FEATURES, WINDOW) == 1
    assert num_files(some, "telephone", FEATURES, WINDOW) == 2
    assert num_files(some, "clean", FeatureConfig(mel_high_hz=3800.0), WINDOW) == 3
    assert num_files(some, "clean", FEATURES, WindowConfig(first_frames=50)) == 4
    assert num_files(some[:2], "clean", FEATURES, WINDOW) == 5
    assert num_files(some, "clean", FEATURES, WINDOW) == 5
    part = replace(some[0], start_s=0.1, duration_s=some[0].duration_s - 0.1)
    assert num_files([part, *some[1:]], "clean", FEATURES, WINDOW) == 6


def test_audio_that_was_replaced_is_heard_anew(tmp_path: Path) -> None:
    utterances = make_corpus(tmp_path / "corpus", seconds=(0.6,))[:2]

    def num_windows() -> list[int]:
        loaded = load_clips(utterances, "clean", FEATURES, WINDOW, tmp_path / "cache")
        return [len(clip.spans) for clip in loaded]

    one, other = num_windows()
    assert one > 0 and other > 0
    before = utterances[0].path.stat()
    silence_file(utterances[0])
    after = utterances[0].path.stat()
    assert after.st_size == before.st_size, "the test is of the time of change"
    os.utime(utterances[0].path, ns=(after.st_atime_ns, before.st_mtime_ns + 1))
    assert num_windows() == [0, other]
    assert len(list((tmp_path / "cache").iterdir())) == 2
    utterances[1].path.unlink()
    with pytest.raises(CorpusError, match="expected an audio file"):
        num_windows()


def test_cold_normalisation_begins_with_the_utterance(clips: list[Clip]) -> None:
    for clip, normalized in zip(
        clips, normalize_clips(clips, NORMALIZATION, "cold", seed=1), strict=True
    ):
        expected = CausalNormalizer(NORMALIZATION).normalize(
            clip.frames.astype(np.float32), clip.is_speech
        )
        assert np.array_equal(normalized.frames, expected.astype(np.float16))
        assert normalized.label == LABELS.index(clip.utterance.label or "")


def test_warm_normalisation_has_heard_the_speaker_before(clips: list[Clip]) -> None:
    cold = normalize_clips(clips, NORMALIZATION, "cold", seed=1)
    warm = normalize_clips(clips, NORMALIZATION, "warm", seed=1)
    again = normalize_clips(clips, NORMALIZATION, "warm", seed=1)
    for one, other, same in zip(cold, warm, again, strict=True):
        assert np.array_equal(other.frames, same.frames)
        # Only the MFCCs have a mean to lose, and it is another one from the first frame on.
        assert np.array_equal(one.frames[:, 1:], other.frames[:, 1:])
        assert not np.array_equal(one.frames[0, 0], other.frames[0, 0])


def test_without_normalisation_frames_stay_as_they_are(clips: list[Clip]) -> None:
    for start in ("cold", "warm"):
        for clip, normalized in zip(clips, normalize_clips(clips, None, start, 1), strict=True):
            assert np.array_equal(normalized.frames, clip.frames)


def test_statistics_are_those_of_the_frames_in_windows(clips: list[Clip]) -> None:
    normalized = normalize_clips(clips, None, "cold", seed=1)
    frames = np.concatenate(
        [clip.frames_of(index) for clip in normalized for index in range(len(clip.spans))]
    ).astype(np.float64)
    mean, deviation = feature_statistics(normalized)
    assert mean.shape == deviation.shape == (3, 26, 1)
    assert mean[:, :, 0] == pytest.approx(frames.mean(axis=0), rel=1e-4, abs=1e-4)
    assert deviation[:, :, 0] == pytest.approx(frames.std(axis=0), rel=1e-4, abs=1e-4)


def test_speech_mean_is_over_speech_alone(clips: list[Clip]) -> None:
    speech = np.concatenate([clip.frames[clip.is_speech, 0] for clip in clips])
    expected = speech.astype(np.float64).mean(axis=0)
    assert speech_mean(clips) == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_answers_are_the_full_windows_or_else_the_last(clips: list[Clip]) -> None:
    normalized = normalize_clips(clips, None, "cold", seed=1)
    assert {bool(clip.is_full.any()) for clip in normalized} == {True, False}
    for clip in normalized:
        if clip.is_full.any():
            assert clip.answers.tolist() == np.flatnonzero(clip.is_full).tolist()
        else:
            assert clip.answers.tolist() == [len(clip.spans) - 1]


def test_audio_too_short_for_a_frame_is_refused(corpus: list[Utterance]) -> None:
    blink = replace(corpus[0], start_s=0.0, end_s=0.03, duration_s=0.03)
    with pytest.raises(CorpusError, match="expected 640"):
        extract(blink, "clean", PLAIN)
