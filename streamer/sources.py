"""Where audio comes from: files, standard input, a microphone. All give chunks to the drivers."""

from __future__ import annotations

import re
import select
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import soundfile

from streamer.audio import SAMPLE_RATE, SAMPLE_RATE_MAX, SAMPLE_RATE_MIN, AudioFormat
from streamer.drivers import Chunk, Lost
from streamer.errors import SourceError

if TYPE_CHECKING:
    import sounddevice

_FILE_CHUNK_S = 0.25
_PACED_S = 0.05
_READ_BYTES = 65_536
_UNKNOWN_LENGTH = 0x7FFF_0000
"""What writers into a pipe put for a length they cannot know is at least this."""

_CONTAINERS = {b"RIFF": "WAV", b"fLaC": "FLAC", b"OggS": "Ogg"}


# Files


@dataclass(frozen=True, kw_only=True)
class AudioFile:
    """An audio file that can be streamed; iterate it for its bytes, from the start each time.

    ``num_samples`` counts those of one channel that can be read, ``num_samples_expected`` those
    that the file's header promises. Iterating raises a :class:`SourceError` after what could be
    read, where that is less.
    """

    path: Path
    format: AudioFormat
    num_samples: int
    num_samples_expected: int

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
        )


def _open(path: Path) -> soundfile.SoundFile:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise SourceError(f"{path} is no regular file: expected an audio file")
        path.open("rb").close()  # libsndfile calls every refusal of the system "System error"
        return soundfile.SoundFile(path)
    except OSError as error:
        raise SourceError(
            f"{path} cannot be opened ({error.strerror}): expected an audio file"
        ) from error
    except soundfile.LibsndfileError as error:
        raise SourceError(
            f"{path} is no audio that can be read ({error.error_string.strip('. ')}): expected "
            "WAV, FLAC, Ogg, MP3 or another format of libsndfile"
        ) from error


def _num_samples_promised(file: soundfile.SoundFile) -> int:
    """Return how many samples a channel the header promises; 0 where it promises nothing.

    libsndfile counts those that are there; its log of a WAV or AU that is shorter than its header
    says ``data : PROMISED (should be FOUND)``, in bytes.
    """
    num_samples = int(file.frames)
    if file.format == "MPEG":
        return 0  # an estimate from the first frames, in files without a Xing header
    log = re.search(
        r"^\s*(?:data|Data Size)\s*: (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE
    )
    if log is None:
        return num_samples
    promised, found = int(log[1]), int(log[2])
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
    head = b""
    try:
        while not is_declared and len(head) < 4 and (more := stream.read1(_READ_BYTES)):
            head += more
        if not is_declared and head[:4] in _CONTAINERS:
            raise SourceError(
                f"standard input looks like a {_CONTAINERS[head[:4]]} file: expected raw samples; "
                "give the file's path instead, or decode it first, as with: "
                "ffmpeg -i FILE -f s16le -ar 16000 -ac 1 -"
            )
        if head:
            yield head
        while True:
            while not _has_input(stream):
                yield b""
            if not (chunk := stream.read1(_READ_BYTES)):
                return
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


# Microphone

_BLOCK_S = 0.02
_CAPACITY_S = 2.0
_SILENT_DEVICE_S = 10.0


class Microphone:
    """A sound device that listens from ``with`` to the end of the block; iterate it for its audio.

    Chunks of 20 ms, mono, at the device's own rate; :class:`Lost` where audio was dropped because
    it was not fetched within 2 s, or by the device itself. The iteration ends after :meth:`close`,
    which may be called from any thread and from a signal handler.

    Args:
        device: a device's number or a part of its name, as :func:`list_devices` shows them; None
            is the system's default.

    Raises:
        SourceError: sounddevice, PortAudio or the device is missing, or the device has no input.
    """

    def __init__(self, device: int | str | None = None) -> None:
        sound = _sounddevice()
        if isinstance(device, str) and device.isdecimal():
            device = int(device)
        try:
            self._info: dict[str, Any] = dict(sound.query_devices(device, "input"))
        except (ValueError, sound.PortAudioError) as error:
            wanted = "a default microphone" if device is None else f"input device {device!r}"
            raise SourceError(
                f"{wanted} was not found ({error}): expected one of: {_names(sound)}"
            ) from error
        rate = round(self._info["default_samplerate"])
        self.format = AudioFormat(
            encoding="pcm_f32le", sample_rate=min(max(rate, SAMPLE_RATE_MIN), SAMPLE_RATE_MAX)
        )
        self.name: str = self._info["name"]
        self.num_overflows = 0
        """Times that the device said that it had lost audio."""
        self._queue: SimpleQueue[Chunk | None] = SimpleQueue()
        self._capacity = round(_CAPACITY_S / _BLOCK_S)
        self._loss = _Loss(self.format.sample_rate)
        self._adc_end_s: float | None = None
        self._stream: sounddevice.RawInputStream | None = None
        self._is_closed = False

    def __enter__(self) -> Self:
        """Open the device.

        Raises:
            SourceError: it refuses.
        """
        sound = _sounddevice()
        try:
            self._stream = sound.RawInputStream(
                device=self._info["index"],
                samplerate=self.format.sample_rate,
                channels=1,
                dtype="float32",
                blocksize=round(_BLOCK_S * self.format.sample_rate),
                callback=self._receive,
                finished_callback=self._finish,
            )
            self._stream.start()
        except sound.PortAudioError as error:
            raise SourceError(
                f"microphone {self.name!r} cannot be opened ({error}): expected one that records "
                f"{self.format.sample_rate} Hz mono"
            ) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the device."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def close(self) -> None:
        """End the iteration after what has been recorded; the device closes with the block."""
        self._is_closed = True
        self._finish()

    def __iter__(self) -> Iterator[Chunk]:
        """Yield what is recorded, as it comes.

        Raises:
            SourceError: the device stopped by itself, or nothing has come for 10 s.
        """
        while True:
            try:
                item = self._queue.get(timeout=_SILENT_DEVICE_S)
            except Empty:
                raise SourceError(
                    f"microphone {self.name!r} gave no audio for {_SILENT_DEVICE_S:.0f} s: "
                    "expected it to go on; is it still connected?"
                ) from None
            if item is None:
                break
            yield item
        if lost := self._loss.take():
            yield lost
        if not self._is_closed:
            raise SourceError(f"microphone {self.name!r} stopped by itself: expected it to go on")

    def _finish(self) -> None:
        self._queue.put(None)  # SimpleQueue is the one whose put() a signal handler may call

    def _receive(self, data: Any, num_samples: int, times: Any, status: Any) -> None:
        """Copy one block into the queue, on PortAudio's thread: nothing else is done there."""
        rate = self.format.sample_rate
        if status.input_overflow:
            self.num_overflows += 1
            if self._adc_end_s is not None:
                missing_s = times.inputBufferAdcTime - self._adc_end_s
                self._loss.add(max(0, round(missing_s * rate)), "device_overflow")
        self._adc_end_s = times.inputBufferAdcTime + num_samples / rate
        if self._queue.qsize() >= self._capacity:
            self._loss.add(num_samples, "not_fetched")
            return
        if lost := self._loss.take():
            self._queue.put(lost)
        self._queue.put(bytes(data))


class _Loss:
    """Counts samples lost at a device's rate; gives them out at 16 kHz, exact in the sum."""

    def __init__(self, sample_rate: int) -> None:
        self._sample_rate = sample_rate
        self._num_lost = self._num_told = 0
        self._reason = ""

    def add(self, num_samples: int, reason: str) -> None:
        self._num_lost += num_samples
        self._reason = reason

    def take(self) -> Lost | None:
        """Return what was lost since the last call, or None."""
        num_samples = self._num_lost * SAMPLE_RATE // self._sample_rate - self._num_told
        self._num_told += num_samples
        return Lost(num_samples, self._reason) if num_samples else None


def list_devices() -> list[str]:
    """Return one line for each device that can record: its number, its name, its rate.

    Raises:
        SourceError: sounddevice or PortAudio is missing.
    """
    sound = _sounddevice()
    default = sound.default.device[0]
    return [
        f"{'*' if number == default else ' '} {number:2d}  {device['name']}  "
        f"({device['default_samplerate']:.0f} Hz)"
        for number, device in enumerate(sound.query_devices())
        if device["max_input_channels"] > 0
    ]


def _names(sound: Any) -> str:
    devices = [device["name"] for device in sound.query_devices() if device["max_input_channels"]]
    return ", ".join(devices) or "(this machine has no device that records)"


def _sounddevice() -> Any:
    """Import sounddevice, which needs PortAudio, only when somebody wants a microphone."""
    try:
        import sounddevice
    except ImportError as error:
        raise SourceError(
            "a microphone needs the Python package sounddevice, found none: expected "
            "pip install 'ser-stream[mic]'"
        ) from error
    except OSError as error:
        raise SourceError(
            f"a microphone needs the PortAudio library ({error}): expected it installed; on Debian "
            "and Ubuntu: apt install libportaudio2"
        ) from error
    return sounddevice
