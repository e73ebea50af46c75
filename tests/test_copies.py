"""Copies of utterances: what each is, and that it is the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamer.arrays import Samples
from tests.made_up_corpus import make_corpus
from train.conditions import Surroundings
from train.copies import COPIES, VOICES, copy_samples, noise_of, noise_utterances, played
from train.corpora import CorpusError, Utterance, read_samples


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    return make_corpus(tmp_path_factory.mktemp("copies"))


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Surroundings:
    """Seven noises and a room with one echo, 50 ms after the direct sound."""
    aux = tmp_path_factory.mktemp("aux")
    rng = np.random.default_rng(1)
    for folder in ("esc10", "rir"):
        (aux / folder / "flac").mkdir(parents=True)
    for number in range(7):
        noise = rng.normal(0, 0.1, 16_000)
        soundfile.write(aux / "esc10" / "flac" / f"{number}.flac", noise, 16_000)
    response = np.zeros(1_600)
    response[0], response[800] = 0.9, 0.5
    soundfile.write(aux / "rir" / "flac" / "room.flac", response, 16_000)
    return Surroundings.find(aux)


@pytest.mark.parametrize("copy", COPIES)
def test_a_copy_is_the_same_every_time(
    corpus: list[Utterance], surroundings: Surroundings, copy: str
) -> None:
    first = copy_samples(corpus[0], copy, surroundings)
    np.testing.assert_array_equal(first, copy_samples(corpus[0], copy, surroundings))
    assert first.dtype == np.float32 and np.isfinite(first).all()
    if copy != "clean":
        assert not np.array_equal(first, read_samples(corpus[0]))


@pytest.mark.parametrize(("copy", "low", "high"), [("slow", 0.86, 0.95), ("fast", 1.05, 1.16)])
def test_speed_changes_by_as_much_as_it_says(
    corpus: list[Utterance], copy: str, low: float, high: float
) -> None:
    speeds = [
        len(read_samples(item)) / len(copy_samples(item, copy, Surroundings())) for item in corpus
    ]
    # Speeds are whole percents, and what went by telephone is 2 samples longer or shorter.
    assert low - 0.006 <= min(speeds) < max(speeds) <= high + 0.006


def low_power(samples: Samples) -> float:
    power = np.abs(np.fft.rfft(samples)) ** 2
    return float(power[np.fft.rfftfreq(len(samples), 1 / 16_000) < 200].sum())


def test_only_the_public_network_takes_what_is_low(corpus: list[Utterance]) -> None:
    for item in corpus:
        telephone, voip = (
            low_power(copy_samples(item, copy, Surroundings())) / low_power(read_samples(item))
            for copy in ("telephone", "voip")
        )
        assert telephone < 0.3 and voip > 0.7


def test_speeds_go_by_either_network_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = tmp_path / "noise.wav"
    soundfile.write(path, rng.normal(0, 0.1, 16_000), 16_000)
    kinds = set()
    for number in range(60):  # draws follow from the id, so as many utterances as draws
        utterance = Utterance(
            path=path, corpus="x", speaker="y", label=None, duration_s=1.0, name=f"{number}"
        )
        power = np.abs(np.fft.rfft(copy_samples(utterance, "slow", Surroundings()))) ** 2
        hertz = np.fft.rfftfreq(len(power) * 2 - 2, 1 / 16_000)
        low, middle, high = (
            power[(hertz >= a) & (hertz < b)].mean()
            for a, b in ((0, 150), (500, 3000), (5000, 6500))
        )
        kinds.add((bool(low > 0.5 * middle), bool(high > 0.1 * middle)))
    assert kinds == {(True, True), (True, False), (False, False)}


def test_noise_is_as_loud_as_it_says(corpus: list[Utterance], surroundings: Surroundings) -> None:
    clean = read_samples(corpus[0]).astype(np.float64)
    added = copy_samples(corpus[0], "noise", surroundings).astype(np.float64) - clean
    ratio_db = 10 * np.log10((clean**2).mean() / (added**2).mean())
    # Of the active blocks alone the ratio is 5 to 25 dB; silence around them takes some away.
    assert 0.0 < ratio_db < 26.0


def test_what_is_not_there_is_asked_for(corpus: list[Utterance]) -> None:
    for copy in ("noise", "room", "underwater"):
        with pytest.raises(CorpusError, match=copy):
            copy_samples(corpus[0], copy, Surroundings())


def test_noises_are_utterances_that_test_a_fold_each(
    corpus: list[Utterance], surroundings: Surroundings
) -> None:
    noises = noise_utterances(surroundings)
    assert [item.speaker for item in noises] == ["0", "1", "2", "3", "4", "0", "1"]
    assert {item.label for item in noises} == {None}
    assert [item.path for item in noises] == list(surroundings.noises)
    assert 0 <= noise_of(corpus[0], surroundings) < 7


def test_speed_takes_pitch_along(tmp_path: Path) -> None:
    tone = np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000).astype(np.float32) * 0.5
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone, 16_000)
    utterance = Utterance(path=path, corpus="x", speaker="y", label=None, duration_s=1.0)
    fast = copy_samples(utterance, "fast", Surroundings())
    peak = np.argmax(np.abs(np.fft.rfft(fast))) * 16_000 / len(fast)
    assert 208.0 < peak < 234.0


def test_made_voices_have_pitch_and_tempo_of_their_own(tmp_path: Path) -> None:
    """Of twenty tones of 1 s, at 200 Hz, in each voice: both are drawn, and apart."""
    tone = np.sin(2 * np.pi * 200 * np.arange(16_000) / 16_000).astype(np.float32) * 0.5
    path = tmp_path / "tone.wav"
    soundfile.write(path, tone, 16_000)
    pitches, tempi = [], []
    for number in range(20):
        utterance = Utterance(
            path=path, corpus="x", speaker="y", label=None, duration_s=1.0, name=f"{number}"
        )
        for voice in VOICES:
            made = played(utterance, voice)
            spectrum = np.abs(np.fft.rfft(made * np.hanning(len(made)), 1 << 18))
            pitches.append(np.argmax(spectrum) * 16_000 / (1 << 18) / 200)
            tempi.append(16_000 / len(made))
    assert 0.77 < min(pitches) < 0.85 and 1.2 < max(pitches) < 1.29
    assert 0.79 < min(tempi) < 0.86 and 1.18 < max(tempi) < 1.31  # less than a piece is lost
    assert abs(np.corrcoef(np.log(pitches), np.log(tempi))[0, 1]) < 0.35
    assert len({round(float(pitch), 3) for pitch in pitches}) > 30, "each voice draws anew"
