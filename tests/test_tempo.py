"""Another tempo, the same voice."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.golden.synthetic import voice
from train.tempo import change_tempo

RATE = 16_000


def tone(hertz: float, seconds: float = 2.0) -> NDArray[np.float32]:
    t = np.arange(round(seconds * RATE)) / RATE
    return (0.4 * np.sin(2 * np.pi * hertz * t)).astype(np.float32)


def loudest_hertz(samples: NDArray[np.float32]) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 18))
    return float(np.argmax(spectrum)) * RATE / (1 << 18)


@pytest.mark.parametrize("tempo", [0.6, 0.8, 1.25, 1.6])
@pytest.mark.parametrize("hertz", [80.0, 233.0, 1_000.0])
def test_pitch_and_level_stay(tempo: float, hertz: float) -> None:
    played = change_tempo(tone(hertz), tempo)
    assert played.dtype == np.float32
    assert len(played) == pytest.approx(2 * RATE / tempo, abs=640)
    assert loudest_hertz(played) == pytest.approx(hertz, rel=0.01)
    middle = played[3_200:-3_200]
    assert np.sqrt((middle**2).mean()) == pytest.approx(0.4 / 2**0.5, rel=0.1)


def test_events_move_by_the_tempo() -> None:
    rng = np.random.default_rng(0)
    audio = rng.normal(0.0, 0.001, 2 * RATE)
    audio[RATE : RATE + 1_600] += rng.normal(0.0, 0.3, 1_600)
    for tempo in (0.8, 1.25):
        played = change_tempo(audio.astype(np.float32), tempo)
        loud = np.flatnonzero(np.abs(played) > 0.05)
        assert loud[0] == pytest.approx(RATE / tempo, abs=800)
        assert loud[-1] == pytest.approx((RATE + 1_600) / tempo, abs=800)


def test_at_its_own_tempo_a_voice_is_what_it_was() -> None:
    audio = voice(1.5, seed=4)
    played = change_tempo(audio, 1.0)
    assert 0 <= len(audio) - len(played) < 640
    error = played - audio[: len(played)]
    assert (error[640:-640] ** 2).mean() < 0.02 * (audio**2).mean()


@pytest.mark.parametrize("count", [0, 1, 1_279, 1_280, 1_281])
def test_what_is_short_or_silent_stays_finite(count: int) -> None:
    for tempo in (0.7, 1.4):
        played = change_tempo(np.zeros(count, np.float32), tempo)
        assert not played.any() and (len(played) > 0) == (count > 0)
