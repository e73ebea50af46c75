"""What of a teacher is worth learning: a made-up one says one thing that tells emotions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.made_up_corpus import make_corpus
from tests.test_distill import CONFIG
from train.dataset import NormalizedClip
from train.emphasis import emphasize, scale_of
from train.material import Material, prepare
from train.splits import speaker_folds
from train.teacher import NUM_TOLD, States
from train.voice import NUM_STATES

FIT = replace(CONFIG, distill=replace(CONFIG.distill, listening_epochs=40))


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    utterances = make_corpus(tmp_path_factory.mktemp("corpus"), num_speakers=6)
    return prepare(speaker_folds(utterances)[0], CONFIG, tmp_path_factory.mktemp("cache"))


def told(clip: NormalizedClip, seed: int) -> NDArray[np.float16]:
    """Noise, and in one direction of it, no louder than the others, the label."""
    rng = np.random.default_rng([seed, *clip.utterance.utterance_id.encode()])
    said = rng.normal(0.0, 1.0, (len(clip.frames) // 4, NUM_TOLD))
    said[:, 7] = (clip.label - 1.5) + rng.normal(0.0, 0.3, len(said))
    return np.asarray(5.0 + 3.0 * said, np.float16)


def states_of(material: Material) -> dict[str, States]:
    return {
        copy: {
            clip.utterance.utterance_id: told(clip, seed) for clip in material.train[copy, "cold"]
        }
        for seed, copy in enumerate(("clean", "slow"))
    }


def test_what_tells_emotions_is_kept(material: Material) -> None:
    states = states_of(material)
    kept = emphasize(states, material, FIT)
    assert set(kept) == {"clean", "slow"}
    clips = material.train["clean", "cold"]
    assert set(kept["clean"]) == {clip.utterance.utterance_id for clip in clips}
    said = np.concatenate([kept["clean"][clip.utterance.utterance_id] for clip in clips])
    of_all = np.concatenate([states["clean"][clip.utterance.utterance_id] for clip in clips])
    assert said.shape == (len(of_all), NUM_STATES) and said.dtype == np.float16
    # How much of each direction is in what is kept: a sixth, were there nothing to choose by.
    everything = of_all.astype(float) - of_all.mean(0, dtype=float)
    share = np.linalg.lstsq(said.astype(float), everything, rcond=None)[0]
    left = (everything - said @ share).var(0) / everything.var(0)
    assert left.argmin() == 7 and left[7] < 0.85 * np.median(left)


def test_a_seed_decides(material: Material) -> None:
    states, few = states_of(material), replace(FIT, distill=replace(FIT.distill, epochs=1))
    one, same, other = (
        emphasize(states, material, replace(few, seed=seed))["slow"] for seed in (1, 1, 2)
    )
    for key, said in one.items():
        np.testing.assert_array_equal(said, same[key])
        assert not np.array_equal(said, other[key])


def test_it_is_put_on_the_scale_of_clean_speech(material: Material) -> None:
    mean, deviation = scale_of(states_of(material), material)
    assert mean.shape == deviation.shape == (NUM_TOLD,)
    np.testing.assert_allclose(mean, 5.0, atol=1.0)
    np.testing.assert_allclose(np.median(deviation), 3.0, atol=0.2)


def test_validation_speakers_are_not_asked(material: Material) -> None:
    ids = {clip.utterance.utterance_id for clip in material.train["clean", "cold"]}
    assert not ids & {clip.utterance.utterance_id for clip in material.validation}
    assert set(emphasize(states_of(material), material, FIT)["clean"]) == ids, "nor needed"
