from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import signal

from streamer.arrays import Samples
from streamer.audio import (
    AudioFormat,
    Decoder,
    Encoding,
    Resampler,
    alaw_table,
    encode_alaw,
    encode_mulaw,
    mulaw_table,
)
from streamer.errors import AudioError, SessionClosedError

ENCODINGS: tuple[Encoding, ...] = ("pcm_s16le", "pcm_f32le", "mulaw", "alaw")
# Few phases, many phases, and more phases than are stored, up and down.
RATES = (8_000, 8_001, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 47_999, 48_000)
ALL_BYTES = bytes(range(256))


def decode(format: AudioFormat, chunks: list[bytes]) -> tuple[list[Samples], AudioError | None]:
    """Feeds chunks as a driver does; returns one array a channel, and the fault."""
    decoder = Decoder(format)
    parts: list[list[Samples]] = [[] for _ in range(format.channels)]
    for chunk in chunks:
        returned = decoder.receive(chunk)
        assert [channel for channel, _ in returned] in ([], list(range(format.channels)))
        assert len({len(samples) for _, samples in returned}) <= 1
        for channel, samples in returned:
            parts[channel].append(samples)
        if decoder.fault is not None:
            break
    for channel, samples in decoder.receive_end():
        parts[channel].append(samples)
    return [np.concatenate([*part, np.zeros(0, np.float32)]) for part in parts], decoder.fault


def resample(samples: NDArray[np.floating], rate_in: int, rate_out: int) -> Samples:
    resampler = Resampler(rate_in, rate_out)
    return np.concatenate((resampler.receive(samples.astype(np.float32)), resampler.flush()))


def level_db(error: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    return float(10 * np.log10(np.mean(np.square(error)) / np.mean(np.square(reference))))


def audio_bytes(format: AudioFormat, num_bytes: int, seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    if format.encoding == "pcm_f32le":
        return (rng.standard_normal(num_bytes // 4 + 1) / 3).astype("<f4").tobytes()[:num_bytes]
    return rng.bytes(num_bytes)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


# Law 1: chunking never shows.


@settings(max_examples=60, deadline=None)
@given(
    encoding=st.sampled_from(ENCODINGS),
    sample_rate=st.sampled_from(RATES) | st.integers(8_000, 48_000),
    channels=st.sampled_from((1, 2)),
    num_bytes=st.integers(0, 6_000),
    places=st.lists(st.integers(0, 6_000), max_size=40),
    bad_sample=st.none() | st.integers(0, 1_499),
    seed=st.integers(0, 99),
)
def test_any_cut_gives_the_same_bits_and_the_same_fault(
    encoding: Encoding,
    sample_rate: int,
    channels: int,
    num_bytes: int,
    places: list[int],
    bad_sample: int | None,
    seed: int,
) -> None:
    format = AudioFormat(encoding=encoding, sample_rate=sample_rate, channels=channels)
    data = bytearray(audio_bytes(format, num_bytes, seed))
    if encoding == "pcm_f32le" and bad_sample is not None and 4 * bad_sample + 4 <= num_bytes:
        data[4 * bad_sample : 4 * bad_sample + 4] = np.float32(math.nan).tobytes()

    whole, whole_fault = decode(format, [bytes(data)])
    pieces, pieces_fault = decode(format, cut(bytes(data), places))

    for one, other in zip(whole, pieces, strict=True):
        assert one.tobytes() == other.tobytes()
    assert str(whole_fault) == str(pieces_fault)


@pytest.mark.parametrize("sample_rate", RATES)
def test_one_byte_at_a_time_gives_the_same_bits(sample_rate: int) -> None:
    format = AudioFormat(sample_rate=sample_rate, channels=2)
    data = audio_bytes(format, 3_000, seed=1)
    whole, _ = decode(format, [data])
    bytewise, _ = decode(format, [data[i : i + 1] for i in range(len(data))])
    assert [one.tobytes() for one in whole] == [one.tobytes() for one in bytewise]


@pytest.mark.parametrize("sample_rate", RATES)
def test_no_length_of_a_call_moves_a_bit(sample_rate: int) -> None:
    # Kernels choose their loops by length: every length a 20 ms chunk could have is tried.
    samples = np.random.default_rng(2).standard_normal(4_000).astype(np.float32)
    whole = resample(samples, sample_rate, 16_000)
    for num_first in range(1, 1_000, 23):
        resampler = Resampler(sample_rate, 16_000)
        parts = [resampler.receive(samples[:num_first]), resampler.receive(samples[num_first:])]
        assert np.concatenate([*parts, resampler.flush()]).tobytes() == whole.tobytes()


# G.711 against its own definition: decision values and the levels between them.


def g711_decisions(steps: list[int], num_first: int) -> NDArray[np.int64]:
    """Decision values of ITU-T G.711: `num_first` intervals of steps[0], then 16 of each other."""
    widths = np.repeat(steps, [num_first] + [16] * (len(steps) - 1))
    return np.concatenate(([0], np.cumsum(widths)))


def mulaw_decisions() -> NDArray[np.int64]:
    # Table 2a: 0, 1, 3, 5 .. 31, 35 .. 95, 103 .. 8159; the level of the first interval is 0.
    decisions = g711_decisions([2, 4, 8, 16, 32, 64, 128, 256], 16)
    return np.concatenate(([0], decisions[1:] - 1))


def mulaw_levels() -> NDArray[np.float64]:
    decisions = mulaw_decisions()
    return np.concatenate(([0.0], (decisions[1:-1] + decisions[2:]) / 2))


def alaw_decisions() -> NDArray[np.int64]:
    # Table 1a: 0, 2, 4 .. 64, 68 .. 128, 136 .. 4096.
    return g711_decisions([2, 4, 8, 16, 32, 64, 128], 32)


def alaw_levels() -> NDArray[np.float64]:
    decisions = alaw_decisions()
    return (decisions[:-1] + decisions[1:]) / 2


def test_g711_tables_are_the_recommendation() -> None:
    mulaw = mulaw_levels() * 4 / 32_768
    assert mulaw_levels()[-1] == 8_031
    np.testing.assert_array_equal(mulaw_table()[np.arange(128) ^ 0xFF], mulaw)
    np.testing.assert_array_equal(mulaw_table()[np.arange(128) ^ 0x7F], -mulaw)
    alaw = alaw_levels() * 8 / 32_768
    assert alaw_levels()[-1] == 4_032
    np.testing.assert_array_equal(alaw_table()[np.arange(128) ^ 0xD5], alaw)
    np.testing.assert_array_equal(alaw_table()[np.arange(128) ^ 0x55], -alaw)


@pytest.mark.parametrize(
    ("encoding", "byte", "value"),
    [
        ("mulaw", 0xFF, 0),
        ("mulaw", 0x7F, 0),
        ("mulaw", 0x00, -32_124),
        ("mulaw", 0x80, 32_124),
        ("alaw", 0xD5, 8),
        ("alaw", 0x55, -8),
        ("alaw", 0xAA, 32_256),
        ("alaw", 0x2A, -32_256),
    ],
)
def test_known_g711_bytes(encoding: Encoding, byte: int, value: int) -> None:
    ((samples,), fault) = decode(AudioFormat(encoding=encoding), [bytes([byte])])
    assert fault is None
    assert samples.tolist() == [value / 32_768]


def test_g711_encoders_undo_every_byte() -> None:
    assert encode_mulaw(mulaw_table()) == ALL_BYTES
    assert encode_alaw(alaw_table()) == ALL_BYTES


def test_g711_encoders_decide_where_the_recommendation_does() -> None:
    # One step to either side of each decision value of table 1a or 2a, on a finer grid.
    for encode, decisions, scale, invert in (
        (encode_mulaw, mulaw_decisions()[1:-1], 8_192, 0xFF),
        (encode_alaw, alaw_decisions()[1:-1], 4_096, 0xD5),
    ):
        intervals = np.arange(len(decisions))
        below = np.frombuffer(encode(((decisions - 0.25) / scale).astype(np.float32)), np.uint8)
        at = np.frombuffer(encode((decisions / scale).astype(np.float32)), np.uint8)
        np.testing.assert_array_equal(below ^ invert, intervals)
        np.testing.assert_array_equal(at ^ invert, intervals + 1)


def test_g711_encoders_clip_and_refuse_what_is_no_number() -> None:
    loud = np.array([7.0, -7.0], np.float32)
    assert encode_mulaw(loud) == b"\x80\x00"
    assert encode_alaw(loud) == b"\xaa\x2a"
    for encode in (encode_mulaw, encode_alaw):
        with pytest.raises(AudioError, match="sample 1 is nan, expected a finite number"):
            encode(np.array([0.0, math.nan], np.float32))


# Formats, channels, and bytes that are no audio.


def test_full_scale_of_each_pcm() -> None:
    ints = np.array([-32_768, 0, 32_767], "<i2").tobytes()
    ((samples,), _) = decode(AudioFormat(), [ints])
    assert samples.dtype == np.float32
    assert samples.tolist() == [-1.0, 0.0, 32_767 / 32_768]
    floats = np.array([-1.0, 0.25, 1.5], "<f4").tobytes()
    ((samples,), fault) = decode(AudioFormat(encoding="pcm_f32le"), [floats])
    assert samples.tolist() == [-1.0, 0.25, 1.5], "beyond full scale is passed through"
    assert fault is None


def test_stereo_is_split_into_channels() -> None:
    pairs = np.array([[1, -1], [2, -2], [3, -3]], "<i2").tobytes()
    decoder = Decoder(AudioFormat(channels=2))
    assert decoder.receive(pairs[:3]) == []
    assert decoder.num_leftover_bytes == 3
    (first, left), (second, right) = decoder.receive(memoryview(pairs)[3:])
    assert (first, second) == (0, 1)
    assert (left * 32_768).tolist() == [1, 2, 3]
    assert (right * 32_768).tolist() == [-1, -2, -3]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 12_000.0])
def test_samples_before_a_bad_one_are_not_lost(bad: float) -> None:
    good = np.linspace(-0.5, 0.5, 100, dtype=np.float32)
    pairs = np.stack((good, good), axis=1)
    data = pairs.astype("<f4").tobytes() + np.array([0, bad, 0, 0], "<f4").tobytes()
    decoder = Decoder(AudioFormat(encoding="pcm_f32le", channels=2))
    early = decoder.receive(data[:333])
    assert decoder.fault is None
    late = decoder.receive(data[333:] + b"\0")
    for (_, first), (_, rest) in zip(early, late, strict=True):
        np.testing.assert_array_equal(np.concatenate((first, rest)), good)
    assert "sample 100 of channel 1 is " in str(decoder.fault)
    assert "expected a number within ±100" in str(decoder.fault)
    with pytest.raises(AudioError, match="sample 100 of channel 1"):
        decoder.receive(data)
    assert decoder.receive_end() == []
    assert "sample 100" in str(decoder.fault), "the first fault stays"


def test_a_cut_off_end_is_a_fault_and_loses_no_tail() -> None:
    format = AudioFormat(sample_rate=8_000, channels=2)
    data = audio_bytes(format, 4 * 160, seed=3)
    whole, no_fault = decode(format, [data])
    cut_off, fault = decode(format, [data + b"\1\2\3"])
    assert no_fault is None
    assert "3 bytes left over, expected whole groups of 4 bytes" in str(fault)
    assert [len(samples) for samples in cut_off] == [320, 320]
    np.testing.assert_array_equal(cut_off, whole)


def test_after_the_end_nothing_is_taken() -> None:
    decoder, resampler = Decoder(AudioFormat()), Resampler(8_000, 16_000)
    assert decoder.receive_end() == []
    assert len(resampler.flush()) == 0
    with pytest.raises(SessionClosedError, match="expected a new decoder"):
        decoder.receive(b"")
    with pytest.raises(SessionClosedError, match="expected once"):
        decoder.receive_end()
    with pytest.raises(SessionClosedError, match="expected a new resampler"):
        resampler.receive(np.zeros(1, np.float32))
    with pytest.raises(SessionClosedError, match="expected once"):
        resampler.flush()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"encoding": "opus"}, "encoding is 'opus', expected one of pcm_s16le, pcm_f32le, mulaw"),
        ({"sample_rate": 7_999}, "sample_rate is 7999, expected a whole number of Hz from 8000"),
        ({"sample_rate": 48_001}, "sample_rate is 48001, .* to 48000"),
        ({"sample_rate": 16_000.0}, "sample_rate is 16000.0, expected a whole number"),
        ({"sample_rate": "16000"}, "sample_rate is '16000', expected a whole number"),
        ({"channels": 0}, "channels is 0, expected 1 or 2"),
        ({"channels": 3}, "channels is 3, expected 1 or 2"),
        ({"channels": True}, "channels is True, expected 1 or 2"),
    ],
)
def test_a_wrong_format_says_what_was_found_and_expected(
    setting: dict[str, object], message: str
) -> None:
    with pytest.raises(AudioError, match=message):
        AudioFormat(**setting)  # type: ignore[arg-type]


def test_a_wrong_resampler_says_what_was_found_and_expected() -> None:
    with pytest.raises(AudioError, match="rate_in is 4000, expected"):
        Resampler(4_000, 16_000)
    with pytest.raises(AudioError, match="rate_out is 96000, expected"):
        Decoder(AudioFormat(), sample_rate=96_000)


def test_sizes_of_a_format() -> None:
    sizes = {encoding: AudioFormat(encoding=encoding).bytes_per_sample for encoding in ENCODINGS}
    assert sizes == {"pcm_s16le": 2, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}
    assert AudioFormat(encoding="pcm_f32le", channels=2).bytes_per_block == 8


# The resampler's sound.


@pytest.mark.parametrize("rate_in", [rate for rate in RATES if rate != 16_000])
def test_a_sine_stays_that_sine_in_place(rate_in: int) -> None:
    # No shift in time: the output is compared with the sine at k / rate_out. The 2.5 ms at
    # each edge, where the input is cut off, are left out.
    for frequency in (100, 1_000, 3_400):
        time_in, time_out = np.arange(rate_in // 4) / rate_in, np.arange(4_000) / 16_000
        got = resample(np.sin(2 * np.pi * frequency * time_in), rate_in, 16_000)[:4_000]
        wanted = np.sin(2 * np.pi * frequency * time_out)
        # The filter's 80 dB for ripple and images; 75 leaves room for the 8001 Hz pair, whose
        # images at 4.6 kHz lie nearest to the transition band.
        assert level_db((got - wanted)[100:-100], wanted) < -75


@pytest.mark.parametrize("rate_in", [24_000, 32_000, 44_100, 48_000])
def test_what_lies_above_the_lower_nyquist_does_not_come_through(rate_in: int) -> None:
    top = rate_in / 2
    for frequency in (8_600, (8_600 + top) / 2, top - 100):
        tone = np.sin(2 * np.pi * frequency * np.arange(rate_in // 4) / rate_in)
        got = resample(tone, rate_in, 16_000)[100:-100]
        assert level_db(got, tone) < -78


@pytest.mark.parametrize(("rate_in", "rate_out"), [(8_000, 16_000), (44_100, 16_000),
                                                   (48_000, 16_000), (16_000, 8_000)])  # fmt: skip
def test_agrees_with_scipy_offline(rate_in: int, rate_out: int) -> None:
    # Speech-band noise, so that the two filters' different transition bands do not matter.
    noise = np.random.default_rng(4).standard_normal(rate_in // 2)
    band = signal.firwin(401, 3_000, fs=rate_in)
    samples = signal.lfilter(band, 1, noise).astype(np.float32)
    divisor = math.gcd(rate_in, rate_out)
    wanted = signal.resample_poly(
        samples.astype(np.float64), rate_out // divisor, rate_in // divisor, window=("kaiser", 8.0)
    )
    got = resample(samples, rate_in, rate_out)
    assert len(got) == len(wanted)
    # Kaiser 8.0 is about 80 dB as ours is; its transition band reaches down to 3 kHz at 8 kHz.
    assert level_db((got - wanted)[200:-200], wanted[200:-200]) < -60


@pytest.mark.parametrize("rate_in", RATES)
def test_a_constant_keeps_its_level(rate_in: int) -> None:
    got = resample(np.full(rate_in // 10, 0.5), rate_in, 16_000)
    # Each phase's taps sum to 1 in float64: what is left is one rounding to float32.
    np.testing.assert_allclose(got[100:-100], 0.5, rtol=1e-7)


@settings(max_examples=40, deadline=None)
@given(
    rate_in=st.integers(8_000, 48_000),
    rate_out=st.sampled_from((8_000, 16_000)),
    num_in=st.integers(0, 2_000),
)
def test_num_out_is_the_duration_rounded_up(rate_in: int, rate_out: int, num_in: int) -> None:
    got = resample(np.zeros(num_in), rate_in, rate_out)
    assert len(got) == math.ceil(num_in * rate_out / rate_in)


@pytest.mark.parametrize("rate_in", RATES)
def test_delay_is_what_is_held_back(rate_in: int) -> None:
    resampler = Resampler(rate_in, 16_000)
    assert resampler.delay_s == 0 if rate_in == 16_000 else 0.0025 <= resampler.delay_s < 0.0027
    num_in, num_out = 0, 0
    for num_samples in (1, 7, 160, 1, 480, 3):
        num_in += num_samples
        num_out += len(resampler.receive(np.zeros(num_samples, np.float32)))
        ready_s = num_in / rate_in - resampler.delay_s
        # All outputs earlier than the input's end less the delay, and no other.
        assert num_out == max(0, math.ceil(round(ready_s * 16_000, 6)))


def test_equal_rates_pass_samples_on() -> None:
    samples = np.ones(3, np.float32)
    assert Resampler(16_000, 16_000).receive(samples) is samples


def test_a_long_chunk_and_a_long_call_keep_little() -> None:
    # Law 6: what a resampler keeps is its filter's length, whatever went through.
    resampler = Resampler(44_100, 16_000)
    for num_samples in (441_000, 3, 441_000):
        resampler.receive(np.zeros(num_samples, np.float32))
        assert len(resampler._inputs) <= 2 * 111
        assert resampler._inputs.base is None
