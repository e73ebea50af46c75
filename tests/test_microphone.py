from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from streamer.call import Call, CallConfig
from streamer.drivers import recognize
from streamer.events import Error, Event, Gap, Summary, Turn, decode_event
from streamer.sources import file_chunks
from tests.scorers import FakeScorer, make_card
from tests.virtual_microphone import LISTENING, VirtualMicrophone

pytestmark = pytest.mark.microphone

UTTERANCES = ("03a01Wa.flac", "03a02Wb.flac", "03a04Wc.flac")


@pytest.fixture
def recording(speech_data: Path, tmp_path: Path) -> Path:
    """Three people's sentences with pauses, 16 kHz mono: what is played to the microphone."""
    pause = np.zeros(round(1.2 * 16000), np.int16)
    parts = [pause]
    for name in UTTERANCES:
        samples, rate = soundfile.read(speech_data / "emodb" / "flac" / name, dtype="int16")
        assert rate == 16000
        parts += [samples, pause]
    path = tmp_path / "recording.wav"
    soundfile.write(path, np.concatenate(parts), 16000)
    return path


def offline(path: Path) -> list[Event]:
    file, card = file_chunks(path), make_card()
    return list(recognize(Call(card, CallConfig(audio=file.format)), file, FakeScorer(card)))


def played(path: Path) -> list[Event]:
    """Return the events of a process that listens while a file is played."""
    with VirtualMicrophone() as microphone, microphone.listener() as listener:
        assert listener.stdout is not None
        try:
            before: list[str] = []
            for line in listener.stdout:
                before.append(line.strip())
                if before[-1] == LISTENING:
                    break
            assert before[-1:] == [LISTENING], f"it ended after {before}"
            assert any("default" in line for line in before), "a device that PortAudio lists"
            microphone.play(path)
            listener.terminate()
            lines = [*before[before.index(LISTENING) + 1 :], *listener.stdout.readlines()]
        except BaseException:
            listener.kill()
            raise
    assert listener.returncode == 0
    return [decode_event(line) for line in lines]


def test_a_microphone_hears_the_turns_of_the_file(recording: Path) -> None:
    expected = [event for event in offline(recording) if isinstance(event, Turn)]
    events = played(recording)
    turns = [event for event in events if isinstance(event, Turn)]
    assert not [event for event in events if isinstance(event, Gap | Error)]
    assert isinstance(events[-1], Summary) and events[-1].channels[0].dropped == 0
    assert len(turns) == len(expected) >= len(UTTERANCES)
    for turn, other in zip(turns, expected, strict=True):
        # The sound card's clock, two resamplers and blocks of 20 ms lie between the two.
        length_s, expected_s = turn.end_s - turn.start_s, other.end_s - other.start_s
        assert length_s == pytest.approx(expected_s, abs=0.1)
