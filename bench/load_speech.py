"""What callers say here: synthetic voices with pauses, or real speech in place of the voices."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streamer.audio import AudioFormat, Resampler, encode_mulaw
from streamer.batching import Batcher
from streamer.call import Call, CallConfig
from streamer.drivers import recognize
from streamer.events import Event
from streamer.session import SessionConfig
from tests.golden.synthetic import silence, voice

RATE = 16_000
FORMATS = {
    "pcm16": AudioFormat(),
    "mulaw": AudioFormat(encoding="mulaw", sample_rate=8000),
}
FLOATS = AudioFormat(encoding="pcm_f32le")


def bytes_per_s(audio: AudioFormat) -> int:
    return audio.bytes_per_block * audio.sample_rate


def conversation(seconds: float, seed: int, folder: Path | None = None) -> NDArray[np.float32]:
    """Return turns of 1.2 to 4 s with pauses of 0.8 to 2 s, about 70 % speech, at 16 kHz.

    Args:
        seconds: all of it; the last 1.2 s are silent, so that every turn ends by itself.
        seed: which turns; the same ones for the same seed.
        folder: of real speech, with ``**/*.flac``; each turn is cut from one recording, if given.
    """
    chooser = np.random.default_rng(seed)
    recordings = sorted(folder.glob("*/**/*.flac")) if folder is not None else []
    parts: list[NDArray[np.float32]] = [silence(0.3 + 1.5 * chooser.random())]
    left_s = seconds - 1.2
    while sum(map(len, parts)) / RATE < left_s - 2.0:
        turn_s = min(chooser.uniform(1.2, 4.0), left_s - sum(map(len, parts)) / RATE)
        if recordings:
            parts.append(_recorded(recordings[chooser.integers(len(recordings))], turn_s))
        else:
            parts.append(voice(turn_s, seed=int(chooser.integers(2**31))))
        parts.append(silence(chooser.uniform(0.8, 2.0)))
    said = np.concatenate(parts)[: round(left_s * RATE)]
    return np.concatenate([said, silence(seconds - len(said) / RATE)]).astype(np.float32)


def _recorded(path: Path, seconds: float) -> NDArray[np.float32]:
    import soundfile

    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == RATE, f"{path}: {rate} Hz, expected {RATE}"
    return np.asarray(samples[: round(seconds * RATE)], np.float32)


def encoded(samples: NDArray[np.float32], audio: AudioFormat) -> bytes:
    """Return 16 kHz samples as 16-bit PCM, as floats, or as mu-law at 8 kHz."""
    if audio.encoding == "pcm_f32le":
        return samples.astype("<f4").tobytes()
    if audio.encoding != "mulaw":
        return np.clip(np.rint(samples * 32768), -32768, 32767).astype("<i2").tobytes()
    resampler = Resampler(RATE, audio.sample_rate)
    return encode_mulaw(np.concatenate([resampler.receive(samples), resampler.flush()]))


def undisturbed(data: bytes, audio: AudioFormat, scorer: Batcher, step_ms: int) -> list[Event]:
    """Return what a call comes to with no server and nobody else."""
    config = CallConfig(audio=audio, session=SessionConfig(step_s=step_ms / 1000))
    return list(recognize(Call(scorer.card, config), [data], scorer))
