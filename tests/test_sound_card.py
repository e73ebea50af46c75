"""The microphone before a made-up sound card; a real PortAudio is in test_microphone.py."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from streamer.audio import SAMPLE_RATE, AudioFormat
from streamer.call import Lost
from streamer.errors import SourceError
from streamer.microphone import Microphone, list_devices
from tests.scorers import read_until_error


class PortAudioError(Exception):
    pass


class Stream:
    """What stands for a sound card: a test gives it what it records."""

    latest: Stream

    def __init__(self, **settings: Any) -> None:
        if settings["samplerate"] == 22050:
            raise PortAudioError("Invalid sample rate")
        self.settings = settings
        self.time_s = 5.0
        self.is_open = False
        Stream.latest = self

    def start(self) -> None:
        self.is_open = True

    def close(self) -> None:
        self.is_open = False
        self.settings["finished_callback"]()

    def record(self, data: bytes, *, lost_s: float = 0.0) -> None:
        num_samples = len(data) // 4
        self.time_s += lost_s
        times = SimpleNamespace(inputBufferAdcTime=self.time_s)
        status = SimpleNamespace(input_overflow=lost_s > 0)
        buffer = bytearray(data)
        self.settings["callback"](buffer, num_samples, times, status)
        buffer[:] = bytes(len(buffer))  # PortAudio takes its memory back
        self.time_s += num_samples / self.settings["samplerate"]


def device(name: str, rate: float, channels: int = 1) -> dict[str, Any]:
    return {"name": name, "default_samplerate": rate, "max_input_channels": channels}


DEVICES = [
    device("Speaker", 48000.0, 0),
    device("Headset", 44100.0),
    device("Studio", 192000.0, 8),
    device("Odd", 22050.0),
]


def query_devices(wanted: Any = None, kind: str | None = None) -> Any:
    if kind is None:
        return DEVICES
    for number, found in enumerate(DEVICES):
        if wanted == number or (wanted is None and number == 1) or wanted == found["name"]:
            return {**found, "index": number}
    raise ValueError(f"No input device matching {wanted!r}")


@pytest.fixture
def sound_card(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(
        PortAudioError=PortAudioError,
        RawInputStream=Stream,
        query_devices=query_devices,
        default=SimpleNamespace(device=[1, 0]),
    )
    monkeypatch.setitem(sys.modules, "sounddevice", module)


@pytest.mark.usefixtures("sound_card")
def test_devices_that_record_are_listed() -> None:
    assert list_devices() == [
        "*  1  Headset  (44100 Hz)",
        "   2  Studio  (192000 Hz)",
        "   3  Odd  (22050 Hz)",
    ]


@pytest.mark.usefixtures("sound_card")
def test_a_microphone_records_at_its_own_rate_and_ends_when_closed() -> None:
    with Microphone() as microphone:
        assert microphone.format == AudioFormat(encoding="pcm_f32le", sample_rate=44100)
        stream = Stream.latest
        assert (stream.settings["device"], stream.settings["channels"]) == (1, 1)
        stream.record(b"abcd" * 882)
        stream.record(b"efgh" * 882)
        microphone.close()
        assert list(microphone) == [b"abcd" * 882, b"efgh" * 882]
    assert not stream.is_open
    assert Microphone("2").format.sample_rate == 48000, "the highest rate that is taken"


@pytest.mark.usefixtures("sound_card")
def test_what_nobody_fetches_is_bounded_and_counted_exactly() -> None:
    with Microphone() as microphone:
        for _ in range(600):
            Stream.latest.record(bytes(4 * 882))
        audio = iter(microphone)
        kept = [next(audio) for _ in range(100)]
        assert all(isinstance(chunk, bytes) for chunk in kept), "2 s of 12"
        Stream.latest.record(bytes(4 * 882))
        assert next(audio) == Lost(10 * SAMPLE_RATE, "not_fetched")
        assert next(audio) == bytes(4 * 882)


@pytest.mark.usefixtures("sound_card")
def test_losses_add_up_without_drift() -> None:
    with Microphone() as microphone:
        audio, num_lost = iter(microphone), 0
        for _ in range(7):
            for _ in range(101):
                Stream.latest.record(bytes(4 * 881))
            for _ in range(100):
                next(audio)
            Stream.latest.record(bytes(4 * 881))
            lost = next(audio)
            assert isinstance(lost, Lost)
            num_lost += lost.num_samples
            next(audio)
        assert num_lost == 7 * 881 * SAMPLE_RATE // 44100


@pytest.mark.usefixtures("sound_card")
def test_what_the_device_lost_is_told() -> None:
    with Microphone() as microphone:
        Stream.latest.record(bytes(4 * 882))
        Stream.latest.record(bytes(4 * 882), lost_s=0.25)
        microphone.close()
        assert [*microphone][1] == Lost(4000, "device_overflow")
        assert microphone.num_overflows == 1


@pytest.mark.usefixtures("sound_card")
def test_a_device_that_stops_by_itself_is_an_error() -> None:
    with Microphone() as microphone:
        Stream.latest.record(bytes(4))
        Stream.latest.settings["finished_callback"]()
        chunks, message = read_until_error(chunk for chunk in microphone if chunk)  # type: ignore[misc]
    assert chunks == [bytes(4)] and "'Headset' stopped by itself" in message


@pytest.mark.usefixtures("sound_card")
def test_a_silent_device_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.microphone._SILENT_DEVICE_S", 0.001)
    with Microphone() as microphone, pytest.raises(SourceError, match="gave no audio"):
        next(iter(microphone))


@pytest.mark.usefixtures("sound_card")
def test_a_missing_device_is_named_beside_those_that_are_there() -> None:
    with pytest.raises(SourceError, match=r"'Lamp' was not found.*Headset, Studio, Odd"):
        Microphone("Lamp")


@pytest.mark.usefixtures("sound_card")
def test_a_device_that_refuses_is_a_source_error() -> None:
    microphone = Microphone("Odd")
    with pytest.raises(SourceError, match=r"'Odd' cannot be opened \(Invalid sample rate\)"):
        microphone.__enter__()


def test_without_sounddevice_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(SourceError, match=r"pip install 'ser-stream\[mic\]'"):
        list_devices()


def test_without_portaudio_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "sounddevice.py").write_text("raise OSError('PortAudio library not found')")
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SourceError, match=r"PortAudio library not found.*libportaudio2"):
        Microphone()
