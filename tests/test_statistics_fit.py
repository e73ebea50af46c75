"""How networks of statistics are trained: on what is drawn, the same for a seed, and they learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from streamer.errors import ConfigError
from streamer.features import FeatureConfig
from tests.made_up_corpus import TINY, make_corpus
from tests.test_conditions import write_aux
from train.checkpoint import LARGE, load_checkpoint
from train.committee import Committee
from train.config import FitConfig, StatisticsFitConfig
from train.dataset import NormalizedClip
from train.loop import fit
from train.material import Material, draw_epoch, prepare
from train.splits import Split, speaker_folds
from train.statistics_fit import fit_statistics
from train.statistics_network import StatisticsNetworks

NUM_CEPS = 26
CONFIG: FitConfig = replace(
    TINY,
    epochs=1,
    telephone=0.25,
    network=replace(TINY.network, num_rows=28, statistics_members=2, statistics_width=16),
    features=FeatureConfig(num_pitch=2),
    statistics=StatisticsFitConfig(epochs=100, batch_size=16, learning_rate=1e-2),
)


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return speaker_folds(make_corpus(tmp_path_factory.mktemp("corpus")))[0]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def material(split: Split, cache: Path) -> Material:
    return prepare(split, CONFIG, cache)


def begin(material: Material) -> StatisticsNetworks:
    torch.manual_seed(0)
    mean, deviation = torch.from_numpy(material.mean), torch.from_numpy(material.deviation)
    return StatisticsNetworks(CONFIG.network, mean, deviation)


@pytest.fixture(scope="module")
def fitted(material: Material) -> StatisticsNetworks:
    networks = begin(material)
    fit_statistics(networks, material, CONFIG)
    return networks.eval()


def test_they_learn_what_they_are_told(fitted: StatisticsNetworks, material: Material) -> None:
    clips = material.train["clean", "cold"]
    windows = [clip.window(int(clip.answers[-1]), CONFIG.window.num_frames) for clip in clips]
    labels = np.array([clip.label for clip in clips])
    with torch.inference_mode():
        outputs = fitted(torch.from_numpy(np.stack(windows)))
    for output in outputs:
        assert (output.logits.argmax(1).numpy() == labels).mean() > 0.8, "a label is a level"


def test_statistics_have_one_scale_over_what_is_drawn(
    fitted: StatisticsNetworks, material: Material
) -> None:
    expected_mean, expected_square, total = 0.0, 0.0, 0.0
    for condition, share in (("clean", 0.75), ("telephone", 0.25)):
        clips = material.train[condition, "cold"]
        for clip in clips:
            count = min(3, len(clip.answers))
            for place in np.linspace(0, len(clip.answers) - 1, count).round().astype(int):
                window = clip.window(int(clip.answers[place]), CONFIG.window.num_frames)
                found = fitted.statistics(torch.from_numpy(window[None]))[0].double().numpy()
                weight = share / count / len(clips)
                expected_mean += weight * found
                expected_square += weight * found**2
                total += weight
    assert total == pytest.approx(1.0)
    norm = fitted.input_norm
    assert norm.running_mean is not None and norm.running_var is not None
    np.testing.assert_allclose(norm.running_mean.numpy(), expected_mean, rtol=1e-3, atol=1e-3)
    variance = expected_square - expected_mean**2
    np.testing.assert_allclose(norm.running_var.numpy(), variance, rtol=2e-2, atol=1e-2)


def test_windows_anywhere_hear_what_is_around_speech(material: Material) -> None:
    def marked(clip: NormalizedClip) -> NormalizedClip:
        frames = clip.frames.copy()
        frames[: clip.spans[:, 0].min(), 0, :26] += 1000.0
        frames[clip.spans[:, 1].max() :, 0, :26] += 1000.0
        return replace(clip, frames=frames)

    around = replace(
        material,
        train={key: [marked(clip) for clip in clips] for key, clips in material.train.items()},
    )
    means = {}
    for share in (0.0, 0.25, 1.0):
        settings = replace(CONFIG.statistics, epochs=1, anywhere=share)
        networks = begin(material)
        fit_statistics(networks, around, replace(CONFIG, statistics=settings))
        assert networks.input_norm.running_mean is not None
        means[share] = networks.input_norm.running_mean[:NUM_CEPS].double()
    plain = begin(material)
    fit_statistics(
        plain, material, replace(CONFIG, statistics=replace(CONFIG.statistics, epochs=1))
    )
    assert plain.input_norm.running_mean is not None
    np.testing.assert_array_equal(means[0.0], plain.input_norm.running_mean[:NUM_CEPS])
    assert (means[1.0] > means[0.0] + 0.5).all()
    np.testing.assert_allclose(means[0.25], 0.75 * means[0.0] + 0.25 * means[1.0], rtol=1e-4)


def test_a_seed_decides_and_members_differ(fitted: StatisticsNetworks, material: Material) -> None:
    again = begin(material)
    fit_statistics(again, material, CONFIG)
    for key, value in fitted.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key
    one, other = (member.state_dict()["classifier.weight"] for member in fitted.members)
    assert not torch.equal(one, other)


def test_the_largest_weights_are_kept_as_numbers_of_float16(
    split: Split, cache: Path, tmp_path: Path
) -> None:
    fit(split, CONFIG, tmp_path / "run", cache)
    model = torch.load(tmp_path / "run" / "best.pt", weights_only=True)["model"]
    large = {key: value for key, value in model.items() if value.numel() >= LARGE}
    assert {f"statistics.0.members.{number}.hidden.1.weight" for number in range(2)} <= set(large)
    for key, value in large.items():
        assert value.abs().max() > 0 and torch.equal(value.half().float(), value), key


def test_the_gate_tells_speech_from_noise(split: Split, cache: Path, tmp_path: Path) -> None:
    config = replace(
        CONFIG,
        noise_alone=0.1,
        network=replace(CONFIG.network, gate_width=8),
        statistics=replace(CONFIG.statistics, epochs=1, gate_steps=100),
    )
    material = prepare(split, config, cache, write_aux(tmp_path / "aux", 20))
    torch.manual_seed(0)
    networks = StatisticsNetworks(
        config.network, torch.from_numpy(material.mean), torch.from_numpy(material.deviation)
    )
    fit_statistics(networks, material, config)
    assert networks.gate is not None and not networks.gate.training
    clips = material.train["clean", "cold"]
    windows = [clip.window(int(clip.answers[-1]), config.window.num_frames) for clip in clips]
    with torch.inference_mode():
        found = networks.eval().statistics(torch.from_numpy(np.stack(windows)))
        inputs = networks.standardize(found)
        is_speech = networks.gate(inputs)[:, 0] > 0
    assert 0 < material.num_speech < len(clips)
    assert is_speech[: material.num_speech].float().mean() > 0.95
    assert is_speech[material.num_speech :].float().mean() < 0.05


def test_a_gate_without_noise_to_learn_from_is_refused() -> None:
    with pytest.raises(ConfigError, match="gate_width 8 with noise_alone 0: expected noise"):
        replace(CONFIG, network=replace(CONFIG.network, gate_width=8))


def kept(path: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(path, weights_only=True)["model"]
    return found


def test_cans_are_trained_beside_as_if_alone(split: Split, cache: Path, tmp_path: Path) -> None:
    many = replace(CONFIG, network=replace(CONFIG.network, members=2))
    alone = replace(CONFIG, network=replace(CONFIG.network, statistics_members=0))
    fit(split, many, tmp_path / "committee", cache)
    fit(split, alone, tmp_path / "alone", cache)
    committee, can = kept(tmp_path / "committee/last.pt"), kept(tmp_path / "alone/last.pt")
    assert any(key.startswith("statistics.0.members.1.") for key in committee)
    for key, value in can.items():
        assert torch.equal(committee[f"members.0.{key}"], value), key
    differing = {
        key for key, value in can.items() if not torch.equal(committee[f"members.1.{key}"], value)
    }
    assert {"classifier.weight", "blstm.weight_ih_l0"} <= differing


def test_over_a_floor_the_scale_is_that_of_what_is_heard(
    split: Split, cache: Path, tmp_path: Path
) -> None:
    network = replace(CONFIG.network, members=2, statistics_members=2, floors_db=(0.0, 10.0))
    config = replace(CONFIG, network=network)
    fit(split, config, tmp_path, cache)
    stored = load_checkpoint(tmp_path / "best.pt").network
    assert isinstance(stored, Committee)
    material = prepare(split, config, cache)
    windows = draw_epoch(material, config, 0)[0].float()
    plain, floored = stored.cans
    np.testing.assert_array_equal(plain.mean.numpy(), material.mean)
    with torch.inference_mode():
        heard = stored.cans[1].floor(windows).double()
    np.testing.assert_allclose(floored.mean[:, :, 0], heard.mean((0, 3)), rtol=1e-4, atol=1e-4)
    deviation = heard.var((0, 3), correction=0).sqrt()
    np.testing.assert_allclose(floored.deviation[:, :, 0], deviation, rtol=1e-3, atol=1e-4)
    one, other = (group.input_norm.running_mean for group in stored.groups)
    assert one is not None and other is not None
    assert one.any() and other.any() and not torch.equal(one, other), "each has its own scale"


def test_another_can_learns_from_draws_of_its_own(
    split: Split, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[int, int]] = []

    def draw(
        material: Material, config: FitConfig, epoch: int
    ) -> tuple[torch.Tensor, NDArray[np.intp]]:
        drawn.append((config.seed, epoch))
        return draw_epoch(material, config, epoch)

    monkeypatch.setattr("train.loop.draw_epoch", draw)
    network = replace(CONFIG.network, members=2, statistics_members=0)
    fit(split, replace(CONFIG, epochs=2, network=network), tmp_path, cache)
    assert len(drawn) == len(set(drawn)) == 4
    assert [epoch for _, epoch in drawn] == [0, 0, 1, 1]


@pytest.mark.parametrize("num_cans", [1, 2])
def test_a_resumed_training_keeps_the_statistics_networks(
    split: Split, cache: Path, tmp_path: Path, num_cans: int
) -> None:
    network = replace(CONFIG.network, members=num_cans, floors_db=(0.0, 10.0))
    config = replace(CONFIG, epochs=2, network=network)
    fit(split, config, tmp_path / "whole", cache)
    with pytest.raises(KeyboardInterrupt):
        fit(split, config, tmp_path / "cut", cache, report=_interrupt)
    fit(split, config, tmp_path / "cut", cache)
    whole, cut = kept(tmp_path / "whole/last.pt"), kept(tmp_path / "cut/last.pt")
    assert all(torch.equal(cut[key], value) for key, value in whole.items())


def _interrupt(line: object) -> None:
    raise KeyboardInterrupt
