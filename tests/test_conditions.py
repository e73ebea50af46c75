from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.golden.synthetic import SAMPLE_RATE, hiss, silence, voice
from tests.made_up_corpus import make_corpus
from train.conditions import (
    CONDITIONS,
    SNR_DB,
    Surroundings,
    active_power,
    by_telephone,
    condition_samples,
    in_noise,
    in_room,
)
from train.corpora import CorpusError

VOICE = np.concatenate([silence(0.5), voice(1.5), silence(1.0)])


def write_aux(folder: Path, num_noises: int = 10) -> Path:
    """Write noises and a room of our own making, as evaluation looks for them."""
    for name in ("esc10", "rir"):
        (folder / name / "flac").mkdir(parents=True)
    for number in range(num_noises):
        path = folder / "esc10" / "flac" / f"{number:02d}.flac"
        soundfile.write(path, hiss(1.0, -20.0, seed=number), SAMPLE_RATE)
    decay = np.exp(-np.arange(2000) / 300.0) * np.random.default_rng(0).normal(0, 0.1, 2000)
    decay[40] = 0.9
    soundfile.write(folder / "rir" / "flac" / "room.flac", decay, SAMPLE_RATE)
    return folder


def power_db(samples: np.ndarray, low_hz: float, high_hz: float) -> float:
    spectrum = np.abs(np.fft.rfft(samples)) ** 2
    hz = np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE)
    return 10 * np.log10(spectrum[(hz >= low_hz) & (hz < high_hz)].sum() + 1e-12)


def test_a_fold_has_the_noises_of_its_own_place_in_the_list(tmp_path: Path) -> None:
    found = Surroundings.find(write_aux(tmp_path / "aux"))
    assert [path.stem for path in found.noises_of(1)] == ["01", "06"]
    together = sorted(path for fold in range(5) for path in found.noises_of(fold))
    assert tuple(together) == found.noises == found.noises_of(None)


def test_a_telephone_passes_300_to_3400_hz() -> None:
    noise = hiss(2.0, -20.0)
    heard = by_telephone(noise, 0)
    assert abs(len(heard) - len(noise)) <= 2
    assert power_db(heard, 500, 3000) == pytest.approx(power_db(noise, 500, 3000), abs=1.0)
    # Half an octave below the band 4th-order skirts leave 20 dB; G.711's own noise is at -38 dB.
    assert power_db(heard, 100, 170) < power_db(noise, 100, 170) - 20
    assert power_db(heard, 4200, 8000) < power_db(noise, 4200, 8000) - 25


@pytest.mark.parametrize("snr_db", [20.0, 0.0])
def test_noise_is_so_far_below_the_speech_itself(snr_db: float) -> None:
    noisy = in_noise(VOICE, hiss(1.0, -30.0), snr_db, seed=5)
    gain = noisy[9000:20000] @ VOICE[9000:20000] / (VOICE[9000:20000] @ VOICE[9000:20000])
    added = noisy / gain - VOICE
    found = 10 * np.log10(active_power(VOICE) / np.mean(added**2))
    # The stretch of noise is louder or softer than its whole clip by some hundredths of a dB.
    assert found == pytest.approx(snr_db, abs=0.3)
    assert np.abs(noisy).max() <= 1.0


def test_a_room_keeps_loudness_and_the_time_of_the_direct_sound() -> None:
    click = np.zeros(4000, np.float32)
    click[1000] = 0.5
    response = np.zeros(800, np.float32)
    response[[40, 500]] = 0.9, 0.4
    wet = in_room(click, response)
    assert int(np.argmax(np.abs(wet))) == 1000
    assert np.flatnonzero(np.abs(wet) > 1e-4).tolist() == [1000, 1460]
    assert active_power(in_room(VOICE, response)) == pytest.approx(active_power(VOICE), rel=0.05)


def test_an_utterance_sounds_the_same_every_time(tmp_path: Path) -> None:
    utterance = make_corpus(tmp_path / "corpus", num_speakers=1, seconds=(0.5,))[0]
    surroundings = Surroundings.find(write_aux(tmp_path / "aux"))
    clean = condition_samples(utterance, "clean")
    for condition in CONDITIONS:
        once, again = (condition_samples(utterance, condition, surroundings, 2) for _ in range(2))
        assert np.array_equal(once, again)
        assert once.dtype == np.float32
        assert np.array_equal(once, clean) == (condition == "clean")


def test_without_sounds_there_is_no_noise_and_no_room(tmp_path: Path) -> None:
    utterance = make_corpus(tmp_path / "corpus", num_speakers=1, seconds=(0.5,))[0]
    nothing = Surroundings.find(tmp_path)
    assert [name for name in CONDITIONS if nothing.allow(name)] == ["clean", "telephone"]
    for condition in (*SNR_DB, "room", "underwater"):
        with pytest.raises(CorpusError, match=f"{condition}.*expected the sounds"):
            condition_samples(utterance, condition, nothing)
