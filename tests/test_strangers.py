"""Encoders that have not heard some of the training speakers: who, and what members are told."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from streamer.errors import ConfigError
from tests.made_up_corpus import make_corpus
from tests.test_distill import CONFIG as DISTILL
from tests.test_distill import states_of
from train import groundwork, statistics_fit
from train.config import DistillConfig, FitConfig
from train.distill import distill
from train.folds import FoldsConfig, fit_fold, with_validation
from train.material import Material, prepare
from train.splits import Split, speaker_folds
from train.strangers import (
    FILE_NAME,
    Stranger,
    read_strangers,
    teach_strangers,
    write_strangers,
)
from train.teacher import States
from train.voice import VoiceEncoder, VoiceNetworks

CONFIG: FitConfig = replace(
    DISTILL, distill=replace(DISTILL.distill, epochs=1, batch_size=4, strangers=2)
)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return speaker_folds(make_corpus(tmp_path_factory.mktemp("corpus"), num_speakers=6))[0]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def material(split: Split, cache: Path) -> Material:
    return prepare(split, CONFIG, cache)


@pytest.fixture(scope="module")
def strangers(material: Material) -> list[Stranger]:
    return teach_strangers(material, states_of(material), CONFIG)


def speakers_of(material: Material) -> list[str]:
    clips = material.train["clean", "cold"][: material.num_speech]
    return [clip.utterance.speaker_id for clip in clips]


def test_each_speaker_is_a_stranger_to_one(strangers: list[Stranger], material: Material) -> None:
    assert len(strangers) == 2
    assert not strangers[0].speakers & strangers[1].speakers
    assert strangers[0].speakers | strangers[1].speakers == set(speakers_of(material))
    one, other = (stranger.encoder.states.weight for stranger in strangers)
    assert not torch.equal(one, other)


def test_who_is_left_out_is_not_heard(material: Material) -> None:
    """Other frames of theirs, and other answers, change nothing."""
    without = set(speakers_of(material)[:1])

    def learnt(given: Material, states: dict[str, States], left_out: set[str]) -> torch.Tensor:
        torch.manual_seed(0)
        encoder = VoiceEncoder(CONFIG.network, None, None)
        distill(encoder, given, states, CONFIG, without=left_out)
        return torch.cat([weight.flatten() for weight in encoder.parameters()])

    spoilt = replace(
        material,
        train={
            key: [
                replace(clip, frames=clip.frames + np.float16(9.0))
                if clip.utterance.speaker_id in without
                else clip
                for clip in clips
            ]
            for key, clips in material.train.items()
        },
    )
    states = states_of(material)
    assert torch.equal(learnt(material, states, without), learnt(spoilt, states, without))
    assert not torch.equal(learnt(material, states, set()), learnt(spoilt, states, set()))


def test_the_same_for_a_seed(strangers: list[Stranger], material: Material) -> None:
    shares: list[float] = []
    again = teach_strangers(material, states_of(material), CONFIG, shares.append)
    assert shares == [0.5, 1.0]
    for one, other in zip(strangers, again, strict=True):
        assert one.speakers == other.speakers
        for name, weight in one.encoder.state_dict().items():
            assert torch.equal(weight, other.encoder.state_dict()[name]), name


def test_what_is_kept_is_read_back(strangers: list[Stranger], tmp_path: Path) -> None:
    path = tmp_path / "new" / FILE_NAME
    write_strangers(strangers, path)
    x = torch.randn(2, 3, 28, 48)
    for one, other in zip(strangers, read_strangers(path, CONFIG), strict=True):
        assert one.speakers == other.speakers and not other.encoder.training
        assert torch.equal(one.statistics(x), other.statistics(x))
    three = replace(CONFIG, distill=replace(CONFIG.distill, strangers=3))
    with pytest.raises(ConfigError, match=r"holds 2 voice encoders: expected 3"):
        read_strangers(path, three)
    larger = replace(CONFIG, network=replace(CONFIG.network, voice_blocks=4))
    with pytest.raises(ConfigError, match="cannot be read as voice encoders"):
        read_strangers(path, larger)
    path.write_bytes(b"no such thing")
    with pytest.raises(ConfigError, match="cannot be read as voice encoders"):
        read_strangers(path, CONFIG)
    with pytest.raises(ConfigError, match="cannot be read as voice encoders"):
        read_strangers(tmp_path / "nowhere.pt", CONFIG)


@pytest.mark.parametrize("count", [-1, 1, 9])
def test_one_part_would_leave_everybody_out(count: int) -> None:
    with pytest.raises(ConfigError, match=rf"distill\.strangers {count}: expected 0, or 2 to 8"):
        DistillConfig(strangers=count)


def test_more_parts_than_speakers_are_refused(material: Material) -> None:
    num_speakers = len(set(speakers_of(material)))
    assert num_speakers < 8
    many = replace(CONFIG, distill=replace(CONFIG.distill, strangers=8))
    with pytest.raises(ConfigError, match=rf"strangers 8: expected {num_speakers} or fewer"):
        teach_strangers(material, states_of(material), many)


def test_members_are_told_of_each_speaker_by_the_encoder_and_by_a_stranger(
    strangers: list[Stranger], material: Material
) -> None:
    torch.manual_seed(0)
    networks = VoiceNetworks(CONFIG.network).eval()
    alone = statistics_fit._sample(networks, material, CONFIG, ())
    both = statistics_fit._sample(networks, material, CONFIG, strangers)
    assert len(both.statistics) == both.num_speech == 2 * len(alone.statistics)
    whose, chances = Counter(both.owners), np.bincount(both.owners, both.probabilities)
    assert whose == {owner: 2 * count for owner, count in Counter(alone.owners).items()}
    np.testing.assert_allclose(chances, np.bincount(alone.owners, alone.probabilities))
    clips = material.train["clean", "cold"]
    for owner in (0, material.num_speech - 1):
        clip = clips[owner]
        window = torch.from_numpy(clip.window(int(clip.answers[0]), 48)[None])
        (stranger,) = [one for one in strangers if one.is_new_to(clip)]
        for hear in (networks.statistics, stranger.statistics):
            with torch.inference_mode():
                is_it = (both.statistics - hear(window)).abs().amax(1) < 1e-4
            assert set(both.owners[is_it.numpy()]) == {owner}


def test_a_refit_hears_new_speakers_by_the_encoder_that_has_not_heard_them(
    split: Split, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    every = prepare(with_validation(split), CONFIG, cache)
    monkeypatch.setattr(groundwork, "load_states", lambda _, copy, *rest: states_of(every)[copy])
    given: list[list[Stranger]] = []
    fitted = statistics_fit.fit_statistics

    def watched(
        networks: VoiceNetworks, material: Material, config: FitConfig, heard: list[Stranger]
    ) -> None:
        given.append(list(heard))
        fitted(networks, material, config, heard)

    monkeypatch.setattr(groundwork, "fit_statistics", watched)
    config = FoldsConfig(fit=CONFIG, run=tmp_path, cache=cache)
    fit_fold(split, config, lambda _, item: None)
    first, second = given
    heard = {item.speaker_id for item in split.train}
    assert set.union(*(set(one.speakers) for one in second)) == heard
    assert [one.speakers for one in first] == [one.speakers for one in second]
    assert not heard & {item.speaker_id for item in split.validation}
