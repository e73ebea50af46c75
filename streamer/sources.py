"""Where audio comes from: files and standard input. Both give chunks to the drivers."""

from __future__ import annotations

import os
import re
import select
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import soundfile

from streamer.audio import SAMPLE_RATE, SAMPLE_RATE_MAX, SAMPLE_RATE_MIN, AudioFormat
from streamer.call import Chunk, Lost
from streamer.errors import SourceError

_FILE_CHUNK_S = 0.25
_PACED_S = 0.05
_READ_BYTES = 65_536
_UNKNOWN_LENGTH = 0x7FFF_0000
"""What writers into a pipe put for a length they cannot know is at least this."""

# What libsndfile logs of a file that is shorter than its header says: WAV, AU and AIFF in bytes;
# RF64 in samples; W64 leaves it to be seen that the whole is shorter.
_CUT_DATA = re.compile(r"^\s*(data|Data Size|SSND)\s*: (\d+) \(should be (\d+)\)", re.M)
_DS64_FRAMES = re.compile(r"does not match value from 'ds64' chunk of (\d+)")
_W64_DATA = re.compile(
    r"^riff : \d+ \(should be \d+\).*^\s*Bytes/sec\s*: ([1-9]\d*)$.*^data : (\d+)$", re.M | re.S
)
_NO_END = re.compile(
    r"^Ogg ?: .*(?:end-of-stream|Junk after the last page)|^Seems to be a truncated", re.M | re.I
)
_SSND_HEADER_BYTES, _W64_HEADER_BYTES = 8, 24

_CONTAINERS = {b"RIFF": "WAV", b"fLaC": "FLAC", b"OggS": "Ogg"}


# Files


@dataclass(frozen=True, kw_only=True)
class AudioFile:
    """An audio file that can be streamed; iterate it for its bytes, from the start each time.

    ``num_samples`` counts those of one channel that can be read, ``num_samples_expected`` those
    that the file's header promises, ``has_end`` is False where a mark that ends it is missing.
    Iterating raises a :class:`SourceError` after what could be read, where the file was cut off.
    """

    path: Path
    format: AudioFormat
    num_samples: int
    num_samples_expected: int
    has_end: bool = True

    @property
    def duration_s(self) -> float:
        """Seconds of audio that can be read."""
        return self.num_samples / self.format.sample_rate

    def __iter__(self) -> Iterator[bytes]:
        """Yield the file as ``pcm_f32le``: 16-bit samples are exactly those divided by 32768."""
        num_read, fault = 0, ""
        block = np.empty(
            (round(_FILE_CHUNK_S * self.format.sample_rate), self.format.channels), np.float32
        )
        with _open(self.path) as file:
            while not fault:
                try:
                    length = len(file.read(out=block))
                except soundfile.LibsndfileError as error:
                    # What was decoded before the fault is in the block; tell() counts it.
                    length, fault = file.tell() - num_read, f" ({error.error_string.strip('. ')})"
                if length == 0:
                    break
                num_read += length
                yield block[:length].astype("<f4", copy=False).tobytes()
        if fault or num_read < self.num_samples_expected:
            raise SourceError(
                f"{self.path} breaks off{fault}: found {num_read} of "
                f"{self.num_samples_expected} samples expected"
            )
        if not self.has_end:
            raise SourceError(
                f"{self.path} breaks off: found {num_read} samples, expected the end of the stream "
                "after them"
            )


def file_chunks(path: str | Path) -> AudioFile:
    """Return a file that can be streamed: what libsndfile reads, at 8 to 48 kHz, mono or stereo.

    Raises:
        SourceError: it cannot be opened, is no audio, has another rate or number of channels, or
            holds no sample.
    """
    path = Path(path)
    with _open(path) as file:
        rate, channels, num_samples = file.samplerate, file.channels, file.frames
        if not SAMPLE_RATE_MIN <= rate <= SAMPLE_RATE_MAX:
            raise SourceError(
                f"{path} has {rate} Hz: expected {SAMPLE_RATE_MIN} to {SAMPLE_RATE_MAX} Hz"
            )
        if channels > 2:
            raise SourceError(f"{path} has {channels} channels: expected 1 or 2")
        if num_samples == 0:
            raise SourceError(f"{path} holds no audio: found 0 samples, expected 1 or more")
        return AudioFile(
            path=path,
            format=AudioFormat(encoding="pcm_f32le", sample_rate=rate, channels=channels),
            num_samples=num_samples,
            num_samples_expected=_num_samples_promised(file),
            has_end=not _NO_END.search(file.extra_info),
        )


def _open(path: Path) -> soundfile.SoundFile:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise SourceError(f"{path} is no regular file: expected an audio file")
        path.open("rb").close()  # libsndfile calls every refusal of the system "System error"
        return soundfile.SoundFile(os.fsencode(path) if os.name == "posix" else path)
    except OSError as error:
        raise SourceError(
            f"{path} cannot be opened ({error.strerror}): expected an audio file"
        ) from error
    except UnicodeError as error:
        raise SourceError(
            f"{path} is no name that this system has ({error}): expected an audio file"
        ) from error
    except soundfile.LibsndfileError as error:
        raise SourceError(
            f"{path} is no audio that can be read ({error.error_string.strip('. ')}): expected "
            "WAV, FLAC, Ogg, MP3 or another format of libsndfile"
        ) from error


def _num_samples_promised(file: soundfile.SoundFile) -> int:
    """Return how many samples a channel the header promises; 0 where it promises nothing.

    libsndfile counts those that are there, and says in its log what the header has.
    """
    num_samples, log = int(file.frames), file.extra_info
    if file.format == "MPEG":
        return 0  # an estimate from the first frames, in files without a Xing header
    if frames := _DS64_FRAMES.search(log):
        return int(frames[1])
    if data := _W64_DATA.search(log):
        return round((int(data[2]) - _W64_HEADER_BYTES) * int(file.samplerate) / int(data[1]))
    if (data := _CUT_DATA.search(log)) is None:
        return num_samples
    header_bytes = _SSND_HEADER_BYTES if data[1] == "SSND" else 0
    promised, found = int(data[2]) - header_bytes, int(data[3]) - header_bytes
    if not found < promised < _UNKNOWN_LENGTH:
        return num_samples
    return int(promised / (found // num_samples or found / num_samples))


# Standard input, and time


_IDLE_S = 0.05


class _Readable(Protocol):
    def read1(self, size: int, /) -> bytes: ...

    def fileno(self) -> int: ...


def stdin_chunks(stream: _Readable, *, is_declared: bool = True) -> Iterator[bytes]:
    """Yield raw audio from a stream such as ``sys.stdin.buffer``, as it comes.

    While none comes an empty chunk is yielded now and then, so that events which have settled
    meanwhile are not held back by a source that pauses.

    Args:
        stream: what is read to its end.
        is_declared: whether somebody said that this is raw audio. Where nobody did, a stream that
            begins like a WAV, FLAC or Ogg file is refused.

    Raises:
        SourceError: such a beginning; or the stream cannot be read.
    """
    head, has_ended = b"", False
    try:
        while not (is_declared or has_ended or len(head) >= 4):
            more = stream.read1(_READ_BYTES)
            head, has_ended = head + more, not more
        if not is_declared and head[:4] in _CONTAINERS:
            raise SourceError(
                f"standard input looks like a {_CONTAINERS[head[:4]]} file: expected raw samples; "
                "give the file's path instead, or decode it first, as with: "
                "ffmpeg -i FILE -f s16le -ar 16000 -ac 1 -"
            )
        if head:
            yield head
        while not has_ended:  # asked once: at a terminal, audio may come after an end
            while not _has_input(stream):
                yield b""
            chunk = stream.read1(_READ_BYTES)
            has_ended = not chunk
            if chunk:
                yield chunk
    except OSError as error:
        raise SourceError(
            f"standard input cannot be read ({error.strerror}): expected audio"
        ) from error


def _has_input(stream: _Readable) -> bool:
    """Wait a little for input, or its end; True where that cannot be told without reading."""
    try:
        return bool(select.select([stream], [], [], _IDLE_S)[0])
    except (OSError, ValueError, TypeError):  # no file behind it, or on Windows no socket
        return True


def paced(
    chunks: Iterable[Chunk],
    format: AudioFormat,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[Chunk]:
    """Yield chunks as a sound card would: 50 ms or less, each when its last sample is due.

    The schedule is absolute, so a slow reader catches up and nothing drifts.
    """
    length = round(_PACED_S * format.sample_rate) * format.bytes_per_block
    bytes_per_s = format.sample_rate * format.bytes_per_block
    start_s, num_bytes, lost_s = clock(), 0, 0.0
    for chunk in chunks:
        pieces: list[Chunk] = [chunk]
        if not isinstance(chunk, Lost):
            pieces = [chunk[first : first + length] for first in range(0, len(chunk), length)]
        for piece in pieces:
            if isinstance(piece, Lost):
                lost_s += piece.num_samples / SAMPLE_RATE
            else:
                num_bytes += len(piece)
            wait_s = start_s + lost_s + num_bytes / bytes_per_s - clock()
            if wait_s > 0:
                sleep(wait_s)
            yield piece
