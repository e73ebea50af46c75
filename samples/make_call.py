"""Make `call.wav`: a synthetic two-channel telephone call of 27 s, so that no real voice is needed.

Left channel: the customer, calm at first, then upset (faster, higher, louder), calm at the end.
Right channel: the agent, another voice. They take turns, at least 0.8 s apart, but for one moment
in which the agent talks over the customer. 8 kHz, 16 bit, band-limited to 300-3400 Hz, with comfort
noise at -72 dBFS. espeak-ng speaks every word; its version decides the bytes (call.wav: 1.51).

    python samples/make_call.py [OUTPUT]
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import butter, resample_poly, sosfilt

RATE = 8000
CUSTOMER, AGENT = 0, 1


@dataclass(frozen=True, kw_only=True)
class Manner:
    """How something is said: espeak-ng's voice, words a minute, pitch (0-99), and RMS level."""

    voice: str
    words_per_minute: int
    pitch: int
    level_dbfs: float


CALM = Manner(voice="en-us+m3", words_per_minute=145, pitch=42, level_dbfs=-28.0)
UPSET = Manner(voice="en-us+m3", words_per_minute=185, pitch=74, level_dbfs=-20.0)
POLITE = Manner(voice="en-gb+f2", words_per_minute=160, pitch=50, level_dbfs=-26.0)

# (channel, manner, seconds after the end of what was said before; negative talks over it, words)
CALL: list[tuple[int, Manner, float, str]] = [
    (CUSTOMER, CALM, 0.9, "Hello, I am calling about my last bill. I think it has a mistake."),
    (AGENT, POLITE, 0.9, "Thank you for calling. Let me have a look."),
    (CUSTOMER, CALM, 0.9, "I was charged twice for the month of March."),
    (AGENT, POLITE, 1.0, "I am sorry, I can not see that here."),
    (
        CUSTOMER,
        UPSET,
        0.8,
        "That is the third time you tell me that! I waited two weeks, and nobody called me back!",
    ),
    (AGENT, POLITE, -0.9, "I do understand. I will refund it today."),
    (CUSTOMER, CALM, 0.9, "All right. Thank you very much."),
]
TAIL_S = 1.0
NOISE_DBFS = -72.0


def spoken(words: str, manner: Manner) -> NDArray[np.float64]:
    """Return the words as telephone speech at 8 kHz, at its level, with silence cut off."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "words.wav"
        subprocess.run(
            [
                "espeak-ng",
                *("-v", manner.voice),
                *("-s", str(manner.words_per_minute)),
                *("-p", str(manner.pitch)),
                *("-w", str(path)),
                words,
            ],
            check=True,
        )
        with wave.open(str(path)) as file:
            rate_hz = file.getframerate()
            pcm = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    loud = np.flatnonzero(np.abs(pcm.astype(np.int32)) > 100)
    samples = resample_poly(pcm[loud[0] : loud[-1] + 1].astype(np.float64), RATE, rate_hz)
    samples = sosfilt(butter(4, [300, 3400], "bandpass", fs=RATE, output="sos"), samples)
    return np.asarray(samples * 10 ** (manner.level_dbfs / 20) / np.sqrt(np.mean(samples**2)))


def make_call() -> NDArray[np.int16]:
    """Return the whole call: (num_samples, 2), full scale 32767."""
    turns: list[tuple[int, int, NDArray[np.float64]]] = []
    now = 0
    for channel, manner, pause_s, words in CALL:
        samples = spoken(words, manner)
        start = now + round(pause_s * RATE)
        turns.append((channel, start, samples))
        now = start + len(samples)
    # RandomState's numbers are frozen for ever, default_rng's are not.
    noise = np.random.RandomState(0).standard_normal((now + round(TAIL_S * RATE), 2))
    call = noise * 10 ** (NOISE_DBFS / 20)
    for channel, start, samples in turns:
        call[start : start + len(samples), channel] += samples
    return np.asarray(np.round(np.clip(call, -1.0, 1.0) * 32767), dtype="<i2")


def main() -> None:
    """Write the call beside this script, or to the path given."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("call.wav")
    call = make_call()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(call.tobytes())
    print(f"{path}: {len(call) / RATE:.1f} s")


if __name__ == "__main__":
    main()
