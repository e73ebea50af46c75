"""Bytes cut anywhere become samples: PCM16, float32, mu-law, A-law, and a stateful resampler.

Nothing here depends on how the input was cut: the same bytes give the same samples, bit for bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from streamer.arrays import Samples
from streamer.errors import AudioError, SessionClosedError

Encoding = Literal["pcm_s16le", "pcm_f32le", "mulaw", "alaw"]

SAMPLE_RATE = 16_000
"""The rate at which everything above this module works, in Hz."""

SAMPLE_RATE_MIN, SAMPLE_RATE_MAX = 8_000, 48_000
MAGNITUDE_MAX = 100.0
"""The largest float32 sample that is taken for audio, 40 dB above full scale."""

# More phases would be 30 MB of taps for 47999 to 16000 Hz; between two of these a straight line is
# right to -116 dB.
_NUM_PHASES_MAX = 1_024
_KAISER_BETA = 0.1102 * (80 - 8.7)

_DTYPES = {"pcm_s16le": "<i2", "pcm_f32le": "<f4", "mulaw": "u1", "alaw": "u1"}


@dataclass(frozen=True, kw_only=True)
class AudioFormat:
    """What the bytes of one call are: encoding, samples a second, interleaved channels.

    Raises:
        AudioError: the encoding is unknown, the rate is not a whole number from 8000 to 48000,
            or there are neither one nor two channels.
    """

    encoding: Encoding = "pcm_s16le"
    sample_rate: int = SAMPLE_RATE
    channels: int = 1

    def __post_init__(self) -> None:
        if self.encoding not in get_args(Encoding):
            known = ", ".join(get_args(Encoding))
            raise AudioError(f"encoding is {self.encoding!r}, expected one of {known}")
        _check_sample_rate("sample_rate", self.sample_rate)
        if type(self.channels) is not int or self.channels not in (1, 2):
            raise AudioError(f"channels is {self.channels!r}, expected 1 or 2")

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of one sample of one channel."""
        return np.dtype(_DTYPES[self.encoding]).itemsize

    @property
    def bytes_per_block(self) -> int:
        """Bytes of one sample of every channel: what a WAV header calls its block alignment."""
        return self.bytes_per_sample * self.channels


class Decoder:
    """Turns one call's bytes, cut anywhere, into samples for each channel.

    Neither `receive` nor `receive_end` loses what was good before bad bytes: they return it, and
    `fault` then says what was wrong. So look at `fault` after every call; once it is set, hand
    over no more bytes, and take the tail with `receive_end`.

    Args:
        format: What the bytes are.
        sample_rate: Rate of the samples that come out, in Hz.

    Raises:
        AudioError: `sample_rate` is not a whole number from 8000 to 48000.
    """

    def __init__(self, format: AudioFormat, sample_rate: int = SAMPLE_RATE) -> None:
        self._format = format
        self._resamplers = [
            Resampler(format.sample_rate, sample_rate) for _ in range(format.channels)
        ]
        self._dtype = np.dtype(_DTYPES[format.encoding])
        tables = {"mulaw": mulaw_table, "alaw": alaw_table}
        self._table = tables[format.encoding]() if format.encoding in tables else None
        self._leftover = b""
        self._num_blocks = 0
        self._fault: AudioError | None = None
        self._ended = False

    @property
    def format(self) -> AudioFormat:
        """What the bytes are."""
        return self._format

    @property
    def delay_s(self) -> float:
        """Seconds of audio that are held back for the resampler, as `Resampler.delay_s`."""
        return self._resamplers[0].delay_s

    @property
    def fault(self) -> AudioError | None:
        """What was wrong with the bytes, or None: a sample that is no audio, or a cut-off end."""
        return self._fault

    @property
    def num_leftover_bytes(self) -> int:
        """Bytes received that do not yet make one sample of every channel."""
        return len(self._leftover)

    def receive(self, chunk: bytes | bytearray | memoryview) -> list[tuple[int, Samples]]:
        """Takes the next bytes; returns the samples that they complete.

        Integers are divided by their full scale. A float32 beyond 1.0 is passed through as it
        is; one that is not a number, or beyond `MAGNITUDE_MAX`, ends the call: the samples
        before it are returned, now or by `receive_end`, and `fault` is set.

        Returns:
            (channel, samples) for each channel in order, all of one length; empty when the
            bytes completed no sample that could be resampled yet.

        Raises:
            AudioError: an earlier call set `fault`; this says the same again.
            SessionClosedError: `receive_end` was called before.
        """
        if self._ended:
            raise SessionClosedError("audio came after its end, expected a new decoder")
        if self._fault is not None:
            raise AudioError(str(self._fault))
        data = b"".join((self._leftover, chunk))
        num_bytes = len(data) - len(data) % self._format.bytes_per_block
        self._leftover = data[num_bytes:]
        if num_bytes == 0:
            return []
        coded = np.frombuffer(data, self._dtype, num_bytes // self._dtype.itemsize)
        blocks = self._take_good(self._decode(coded.reshape(-1, self._format.channels)))
        return _by_channel(
            [r.receive(blocks[:, channel].copy()) for channel, r in enumerate(self._resamplers)]
        )

    def receive_end(self) -> list[tuple[int, Samples]]:
        """Ends the call; returns the samples that the resampler held back.

        Sets `fault` where the bytes ended inside a sample, or inside a pair of stereo samples.

        Returns:
            As `receive`.

        Raises:
            SessionClosedError: called a second time.
        """
        if self._ended:
            raise SessionClosedError("the end was received twice, expected once")
        self._ended = True
        if self._leftover:
            self._fault = AudioError(
                f"audio ended with {len(self._leftover)} bytes left over, expected whole groups "
                f"of {self._format.bytes_per_block} bytes (channels: {self._format.channels}, "
                f"{self._format.encoding})"
            )
        return _by_channel([resampler.flush() for resampler in self._resamplers])

    def _decode(self, coded: NDArray[Any]) -> Samples:
        if self._table is not None:
            return np.take(self._table, coded)
        samples = coded.astype(np.float32)
        if self._format.encoding == "pcm_s16le":
            samples /= 32_768
        return samples

    def _take_good(self, blocks: Samples) -> Samples:
        """Counts blocks, (n, channels); cuts them before the first that is no audio."""
        # Written so that NaN, which compares false with everything, is bad.
        good = np.abs(blocks) <= MAGNITUDE_MAX
        if not good.all():
            block, channel = np.argwhere(~good)[0].tolist()
            self._fault = AudioError(
                f"sample {self._num_blocks + block} of channel {channel} is "
                f"{blocks[block, channel]}, expected a number within ±{MAGNITUDE_MAX:g} "
                "(full scale is 1.0)"
            )
            self._leftover = b""
            blocks = blocks[:block]
        self._num_blocks += len(blocks)
        return blocks


class Resampler:
    """Changes the sample rate of a stream, with a symmetric FIR of 5 ms.

    Output sample k is the input at time k / rate_out: the filter's delay is only waited for,
    never seen as a shift. Each output is one dot product over a fixed run of inputs, so cuts
    cannot show. Before its start and after its end the input counts as zero.

    The filter is a sinc that crosses -6 dB at the lower rate's Nyquist frequency, under a
    Kaiser window for 80 dB (Oppenheim and Schafer, Discrete-Time Signal Processing, 3rd ed.,
    section 7.5.3). Measured from 8, 11.025, 44.1 and 48 to 16 kHz and from 16 to 8: within
    0.0011 dB up to 500 Hz below that frequency, under -78 dB from 500 Hz above it. Each phase's
    taps sum to 1: the gain at 0 Hz is exact. Any whole rates work; where they ask for more than
    1024 phases the taps between two stored phases are interpolated.

    Args:
        rate_in: Rate of the samples received, in Hz, from 8000 to 48000.
        rate_out: Rate of the samples returned, in the same range. Equal rates pass samples on.

    Raises:
        AudioError: a rate is not a whole number in that range.
    """

    def __init__(self, rate_in: int, rate_out: int) -> None:
        _check_sample_rate("rate_in", rate_in)
        _check_sample_rate("rate_out", rate_out)
        divisor = math.gcd(rate_in, rate_out)
        self._up, self._down = rate_out // divisor, rate_in // divisor
        self._rate_in, self._passes_on = rate_in, rate_in == rate_out
        # Samples on either side of an output's time: 2.5 ms, rounded up.
        self._num_ahead = 0 if self._passes_on else -(-rate_in // 400)
        self._taps = _polyphase_taps(self._num_ahead, min(1.0, rate_out / rate_in), self._up)
        # Inputs still needed; the first is number `_first` (the zeros before the start count).
        self._inputs = np.zeros(max(0, self._num_ahead - 1))
        self._first = -len(self._inputs)
        self._num_in = self._num_out = 0
        self._ended = False

    @property
    def delay_s(self) -> float:
        """Seconds of input after an output's time that must have come before it is returned."""
        return self._num_ahead / self._rate_in

    def receive(self, samples: Samples) -> Samples:
        """Takes the next input samples, (n,), finite; returns the output that is ready.

        Raises:
            SessionClosedError: called after `flush`.
        """
        if self._ended:
            raise SessionClosedError("samples came after the end, expected a new resampler")
        self._num_in += len(samples)
        if self._passes_on:
            return samples
        self._inputs = np.concatenate((self._inputs, samples))
        return self._outputs_before(self._num_in - self._num_ahead)

    def flush(self) -> Samples:
        """Ends the stream; returns the rest, to ceil(inputs * rate_out / rate_in) in all.

        Raises:
            SessionClosedError: called a second time.
        """
        if self._ended:
            raise SessionClosedError("the resampler was flushed twice, expected once")
        self._ended = True
        if self._passes_on:
            return np.zeros(0, np.float32)
        self._inputs = np.concatenate((self._inputs, np.zeros(self._num_ahead)))
        return self._outputs_before(self._num_in)

    def _outputs_before(self, num_in: int) -> Samples:
        """Returns the outputs not yet returned whose time is before input sample `num_in`."""
        num_out = max(self._num_out, -(-num_in * self._up // self._down))
        if num_out == self._num_out:
            return np.zeros(0, np.float32)
        outputs = np.empty(num_out - self._num_out, np.float32)
        if self._up <= 4:
            self._fill_by_phase(outputs)
        else:
            self._fill_by_row(outputs)
        self._num_out = num_out
        # Forget the inputs that no later output needs; a view would keep a long chunk alive.
        needed = num_out * self._down // self._up - self._num_ahead + 1
        self._inputs = self._inputs[needed - self._first :].copy()
        self._first = needed
        return outputs

    def _fill_by_phase(self, outputs: Samples) -> None:
        """Computes outputs where phases are few: every `up`-th output has the same taps."""
        # One dot product of fixed length an output: its bits do not depend on how many there
        # are. At 8 to 16 kHz this takes 9 us a 20 ms chunk, rows take 57.
        for start in range(min(self._up, len(outputs))):
            of_phase = outputs[start :: self._up]
            number, phase = divmod((self._num_out + start) * self._down, self._up)
            first = number - self._num_ahead + 1 - self._first
            last = first + (len(of_phase) - 1) * self._down + 2 * self._num_ahead
            products = np.correlate(self._inputs[first:last], self._taps[phase], "valid")
            of_phase[:] = products[:: self._down]

    def _fill_by_row(self, outputs: Samples) -> None:
        """Computes outputs where phases are many: a row of inputs and one of taps for each."""
        # Both are contiguous, and einsum sums each row in one order; a matrix product would not.
        runs = sliding_window_view(self._inputs, 2 * self._num_ahead)
        # 256 outputs at a time keep the copies within the cache (480 KB each at 48 kHz).
        for start in range(0, len(outputs), 256):
            part = outputs[start : start + 256]
            ticks = (np.arange(len(part)) + (self._num_out + start)) * self._down
            number, phase = np.divmod(ticks, self._up)
            run = runs[number - self._num_ahead + 1 - self._first]
            part[:] = np.einsum("ij,ij->i", run, self._taps_at(phase), optimize=False)

    def _taps_at(self, phase: NDArray[np.int64]) -> NDArray[np.float64]:
        """Returns the taps, (n, taps), of outputs that lie phase / up after an input sample."""
        if self._up <= _NUM_PHASES_MAX:
            return self._taps[phase]
        row, rest = np.divmod(phase * _NUM_PHASES_MAX, self._up)
        below, above = self._taps[row], self._taps[row + 1]
        return np.asarray(below + (above - below) * (rest / self._up)[:, np.newaxis])


def mulaw_table() -> Samples:
    """Returns the sample of each mu-law byte, (256,): ITU-T G.711, table 2, with 0x00 the lowest.

    Byte 0x7F is a negative zero, so that `encode_mulaw` can give it back.
    """
    # G.711 numbers its levels on 14 bits, to 8031; times 4 that is 32124 of 32768.
    code = np.arange(256) ^ 0xFF
    magnitude = (((code & 0x0F) * 8 + 132) << (code >> 4 & 7)) - 132
    return _signed(magnitude, code & 0x80 != 0)


def alaw_table() -> Samples:
    """Returns the sample of each A-law byte, (256,): ITU-T G.711, table 1."""
    # G.711 numbers its levels on 13 bits, to 4032; times 8 that is 32256 of 32768. On the line
    # every other bit is inverted.
    code = np.arange(256) ^ 0x55
    step, segment = code & 0x0F, code >> 4 & 7
    curved = (step * 16 + 264) << np.maximum(segment - 1, 0)
    return _signed(np.where(segment == 0, step * 16 + 8, curved), code & 0x80 == 0)


def encode_mulaw(samples: Samples) -> bytes:
    """Returns the mu-law bytes of samples, (n,); what is beyond full scale is clipped.

    `mulaw_table` is undone exactly.

    Raises:
        AudioError: a sample is not finite.
    """
    magnitude = np.minimum(_finite_magnitude(samples) + 132, 32_767)
    # Now 132 <= magnitude < 2^15: the power of two is the segment, the next four bits the step.
    fraction, exponent = np.frexp(magnitude)
    code = (exponent - 8) * 16 + (fraction * 32).astype(np.int64) - 16
    return bytes(((code | np.signbit(samples) * 0x80) ^ 0xFF).astype(np.uint8))


def encode_alaw(samples: Samples) -> bytes:
    """Returns the A-law bytes of samples, (n,); what is beyond full scale is clipped.

    `alaw_table` is undone exactly.

    Raises:
        AudioError: a sample is not finite.
    """
    magnitude = np.minimum(_finite_magnitude(samples), 32_767)
    fraction, exponent = np.frexp(np.maximum(magnitude, 256))
    curved = (exponent - 8) * 16 + (fraction * 32).astype(np.int64) - 16
    code = np.where(magnitude < 256, magnitude // 16, curved).astype(np.int64)
    return bytes(((code | ~np.signbit(samples) * 0x80) ^ 0x55).astype(np.uint8))


def _signed(magnitude: NDArray[np.int64], negative: NDArray[np.bool_]) -> Samples:
    return np.copysign(magnitude / 32_768, np.where(negative, -1.0, 1.0)).astype(np.float32)


def _finite_magnitude(samples: Samples) -> NDArray[np.float64]:
    if not np.isfinite(samples).all():
        number = int(np.argmin(np.isfinite(samples)))
        raise AudioError(f"sample {number} is {samples[number]}, expected a finite number")
    return np.abs(samples.astype(np.float64)) * 32_768


def _by_channel(samples: list[Samples]) -> list[tuple[int, Samples]]:
    return [(channel, mono) for channel, mono in enumerate(samples) if len(mono)]


def _polyphase_taps(num_ahead: int, bandwidth: float, up: int) -> NDArray[np.float64]:
    """Returns (phases, 2 * num_ahead) taps; `bandwidth` 1.0 is the input's Nyquist frequency.

    Row p is for an output that lies p / up after input sample i, and covers the inputs from
    i - num_ahead + 1 to i + num_ahead. With more than 1024 phases: p / 1024, and one row more.
    """
    few = up <= _NUM_PHASES_MAX
    after = np.arange(up) / up if few else np.arange(_NUM_PHASES_MAX + 1) / _NUM_PHASES_MAX
    distance = np.arange(1 - num_ahead, num_ahead + 1) - after[:, np.newaxis]
    inside = np.maximum(0.0, 1 - np.square(distance / num_ahead))
    taps = np.sinc(bandwidth * distance) * np.i0(_KAISER_BETA * np.sqrt(inside))
    return np.asarray(taps / taps.sum(axis=1, keepdims=True))


def _check_sample_rate(name: str, sample_rate: int) -> None:
    if type(sample_rate) is not int or not SAMPLE_RATE_MIN <= sample_rate <= SAMPLE_RATE_MAX:
        raise AudioError(
            f"{name} is {sample_rate!r}, expected a whole number of Hz "
            f"from {SAMPLE_RATE_MIN} to {SAMPLE_RATE_MAX}"
        )
