"""Where live audio comes from: a microphone, which gives chunks to the drivers."""

from __future__ import annotations

from collections.abc import Iterator
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from streamer.audio import SAMPLE_RATE, SAMPLE_RATE_MAX, SAMPLE_RATE_MIN, AudioFormat
from streamer.call import Chunk, Lost
from streamer.errors import SourceError

if TYPE_CHECKING:
    import sounddevice

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
