from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from streamer.audio import AudioFormat, Decoder
from streamer.call import Chunk, Lost
from streamer.errors import SourceError
from streamer.sources import file_chunks, paced, stdin_chunks
from tests.scorers import read_until_error

RATE = 16000


def noise(num_samples: int, channels: int = 1) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(-32768, 32768, (num_samples, channels)).astype(np.int16)


def write(path: Path, samples: np.ndarray, rate: int = RATE, **options: Any) -> Path:
    soundfile.write(path, samples, rate, **options)
    return path


def samples_of(chunks: Iterable[bytes], channels: int = 1) -> np.ndarray:
    return np.frombuffer(b"".join(chunks), "<f4").reshape(-1, channels)


# Files


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff"])
@pytest.mark.parametrize("channels", [1, 2])
def test_integers_are_exactly_those_of_the_file(tmp_path: Path, suffix: str, channels: int) -> None:
    written = noise(40_001, channels)
    file = file_chunks(write(tmp_path / f"a.{suffix}", written, 8000))
    assert file.format == AudioFormat(encoding="pcm_f32le", sample_rate=8000, channels=channels)
    assert (file.num_samples, file.duration_s) == (40_001, 40_001 / 8000)
    chunks = list(file)
    np.testing.assert_array_equal(samples_of(chunks, channels), written / np.float32(32768))
    assert max(map(len, chunks)) <= 0.25 * 8000 * 4 * channels
    assert list(file) == chunks, "it can be read again"


def test_a_file_and_the_same_pcm16_are_the_same_samples(tmp_path: Path) -> None:
    written = noise(5000)
    file = file_chunks(write(tmp_path / "a.wav", written))
    (_, from_wire), *_ = Decoder(AudioFormat()).receive(written.tobytes())
    (_, from_file), *_ = Decoder(file.format).receive(b"".join(file))
    np.testing.assert_array_equal(from_file, from_wire)


def test_float_files_keep_what_is_beyond_full_scale(tmp_path: Path) -> None:
    written = np.array([0.0, 1.5, -2.0], np.float32)
    file = file_chunks(write(tmp_path / "a.wav", written, subtype="FLOAT"))
    assert samples_of(file).ravel().tolist() == written.tolist()


@pytest.mark.parametrize("suffix", ["ogg", "mp3"])
def test_compressed_files_are_read(tmp_path: Path, suffix: str) -> None:
    written = 0.5 * np.sin(np.arange(3 * RATE) / 20)
    samples = samples_of(file_chunks(write(tmp_path / f"a.{suffix}", written)))
    assert len(samples) == pytest.approx(3 * RATE, abs=3000), "an encoder pads whole blocks"
    assert np.abs(samples).max() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("suffix", ["wav", "rf64", "w64", "aiff", "au", "flac"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_truncated_file_gives_what_it_has(tmp_path: Path, suffix: str, channels: int) -> None:
    written = noise(60_000, channels)
    path = write(tmp_path / f"a.{suffix}", written)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 1])
    chunks, message = read_until_error(file_chunks(path))
    samples = samples_of(chunks, channels)
    # FLAC loses the block in which it was cut, of at most 4608 samples.
    assert 30_000 - 4608 <= len(samples) <= 30_001
    np.testing.assert_array_equal(samples, written[: len(samples)] / np.float32(32768))
    assert f"found {len(samples)} of 60000 samples expected" in message


@pytest.mark.parametrize(("suffix", "subtype"), [("aiff", "FLOAT"), ("w64", "ULAW")])
def test_what_a_truncated_file_lacks_is_counted(tmp_path: Path, suffix: str, subtype: str) -> None:
    path = write(tmp_path / f"a.{suffix}", noise(5000), subtype=subtype)
    path.write_bytes(path.read_bytes()[:-400])
    chunks, message = read_until_error(file_chunks(path))
    assert f"found {len(samples_of(chunks))} of 5000 samples expected" in message


@pytest.mark.parametrize("format", ["OGG", "VOC"])
@pytest.mark.parametrize("kept", [0.6, 0.999])
def test_a_stream_without_its_end_is_truncated(tmp_path: Path, format: str, kept: float) -> None:
    written = noise(10 * RATE)
    path = write(tmp_path / "whole", written, format=format)
    assert len(samples_of(file_chunks(path))) == 10 * RATE
    data = path.read_bytes()
    path.write_bytes(data[: round(kept * len(data))])
    chunks, message = read_until_error(file_chunks(path))
    assert 0.3 * 10 * RATE < len(samples_of(chunks)) < 10 * RATE
    assert "breaks off: found" in message and "expected the end" in message


def test_a_name_of_any_bytes_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "\udcff\udcfe bad.wav"
    try:
        path.write_bytes(write(tmp_path / "a.wav", noise(100)).read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    assert len(samples_of(file_chunks(path))) == 100
    with pytest.raises(SourceError, match="no name that this system has"):
        file_chunks("\ud800.wav")  # no byte's escape


def test_a_wav_whose_writer_could_not_know_its_length_is_whole(tmp_path: Path) -> None:
    written = noise(5000)
    path = write(tmp_path / "a.wav", written)
    data = bytearray(path.read_bytes())
    for place in (4, 40):
        data[place : place + 4] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    assert len(samples_of(file_chunks(path))) == 5000


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.wav", None, "No such file or directory"),
        ("empty.wav", b"", "expected WAV, FLAC"),
        ("text.wav", b"Dear all, " * 200, "expected WAV, FLAC"),
        ("noise.mp3", bytes(range(256)) * 40, "expected WAV, FLAC"),
    ],
)
def test_what_is_no_audio_is_refused(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=said) as caught:
        file_chunks(tmp_path / name)
    assert name in str(caught.value)


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no regular file: expected an audio file"):
        file_chunks(str(tmp_path))


@pytest.mark.parametrize(
    ("samples", "rate", "said"),
    [
        (noise(100), 96000, "96000 Hz: expected 8000 to 48000 Hz"),
        (noise(100), 4000, "4000 Hz: expected 8000 to 48000 Hz"),
        (noise(100, 6), RATE, "6 channels: expected 1 or 2"),
        (noise(0), RATE, "found 0 samples, expected 1 or more"),
    ],
)
def test_audio_that_cannot_be_taken_is_refused(
    tmp_path: Path, samples: np.ndarray, rate: int, said: str
) -> None:
    path = write(tmp_path / "a.wav", samples, rate)
    with pytest.raises(SourceError, match=said):
        file_chunks(path)


# Standard input


class Pipe:
    """A stream that gives what it is told in one read each, as a pipe does."""

    def __init__(self, *reads: bytes | OSError) -> None:
        self._reads = iter(reads)

    def read1(self, size: int, /) -> bytes:
        read = next(self._reads, b"")
        if isinstance(read, OSError):
            raise read
        assert len(read) <= size
        return read


@pytest.mark.parametrize("is_declared", [True, False])
def test_standard_input_comes_as_it_comes(is_declared: bool) -> None:
    reads = [b"\1", b"\2\3", b"\4\5", b"\6"]
    chunks = list(stdin_chunks(Pipe(*reads), is_declared=is_declared))
    assert b"".join(chunks) == b"\1\2\3\4\5\6"
    assert chunks == reads or not is_declared
    assert list(stdin_chunks(io.BytesIO(b"\1"), is_declared=is_declared)) == [b"\1"]
    assert list(stdin_chunks(io.BytesIO(b""), is_declared=is_declared)) == []


@pytest.mark.parametrize(("head", "name"), [(b"RIFF", "WAV"), (b"fLaC", "FLAC"), (b"OggS", "Ogg")])
def test_a_file_on_standard_input_is_refused_unless_it_was_declared_raw(
    head: bytes, name: str
) -> None:
    reads = [head[:1], head[1:] + b"more"]
    with pytest.raises(SourceError, match=f"looks like a {name} file: expected raw samples"):
        next(stdin_chunks(Pipe(*reads), is_declared=False))
    assert list(stdin_chunks(Pipe(*reads))) == reads


@pytest.mark.parametrize("is_declared", [True, False])
@pytest.mark.parametrize("before", [[], [b"\1\2"], [b"\1\2\3\4"]])
def test_the_end_of_standard_input_counts_once(is_declared: bool, before: list[bytes]) -> None:
    pipe = Pipe(*before, b"", b"typed after the end")
    assert b"".join(stdin_chunks(pipe, is_declared=is_declared)) == b"".join(before)


def test_standard_input_that_breaks_is_a_source_error() -> None:
    broken = OSError(5, "Input/output error")
    chunks, message = read_until_error(stdin_chunks(Pipe(b"\0\0", broken)))
    assert chunks == [b"\0\0"] and "Input/output error" in message


def test_stdin_that_pauses_lets_its_reader_go_on() -> None:
    receiver, sender = os.pipe()
    with open(receiver, "rb") as stream:
        chunks = stdin_chunks(stream)
        assert next(chunks) == b"", "nothing has come yet"
        os.write(sender, b"\1\2\3")
        assert next(chunk for chunk in chunks if chunk) == b"\1\2\3"
        assert next(chunks) == b""
        os.close(sender)
        assert all(chunk == b"" for chunk in chunks)


# Time


class Clock:
    """A clock that only sleeping, and the test, move on."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.slept_s.append(seconds)
        self.now_s += seconds


def test_paced_keeps_to_an_absolute_schedule() -> None:
    clock, audio = Clock(), AudioFormat(sample_rate=8000, channels=2)
    chunks: list[Chunk] = [bytes(48_000), Lost(4 * RATE, "test"), b"", bytes(32_000)]
    num_bytes, lost_s = 0, 0.0
    for chunk in paced(chunks, audio, clock, clock.sleep):
        if isinstance(chunk, Lost):
            lost_s += 4.0
        else:
            assert 0 < len(chunk) <= 0.1 * 32_000
            num_bytes += len(chunk)
        assert clock.now_s - 100.0 == pytest.approx(num_bytes / 32_000 + lost_s, abs=1e-9)
        clock.now_s += 0.0003  # what the listener takes; were it added up, the last were 20 ms late
    assert num_bytes == 80_000


def test_paced_catches_up_after_a_pause() -> None:
    clock = Clock()
    chunks = paced([bytes(32_000)], AudioFormat(), clock, clock.sleep)
    next(chunks)
    clock.now_s += 0.5
    num_sleeps = len(clock.slept_s)
    for _ in range(10):
        next(chunks)
    assert len(clock.slept_s) == num_sleeps
    list(chunks)
    assert clock.now_s == pytest.approx(101.0)
