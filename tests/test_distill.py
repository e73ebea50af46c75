"""How a voice encoder learns: a made-up teacher's states, the same for a seed, once a fold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from streamer.errors import ConfigError
from streamer.features import FeatureConfig
from streamer.windows import WindowConfig
from tests.made_up_corpus import TINY, make_corpus
from train import groundwork
from train.checkpoint import load_checkpoint
from train.committee import Committee
from train.config import DistillConfig, FitConfig, StatisticsFitConfig
from train.copies import VOICES
from train.dataset import Clip, NormalizedClip, load_clips, normalize_clips
from train.distill import distill
from train.folds import FoldsConfig, fit_fold
from train.material import Material, prepare
from train.splits import Split, speaker_folds
from train.teacher import States
from train.voice import NUM_STATES, VoiceEncoder

CONFIG: FitConfig = replace(
    TINY,
    epochs=1,
    telephone=0.25,
    slow=0.25,
    refit=True,
    network=replace(
        TINY.network,
        num_rows=28,
        voice_members=2,
        voice_width=16,
        voice_channels=16,
        voice_blocks=3,
        num_frames=48,
    ),
    window=WindowConfig(num_frames=48, first_frames=24),
    features=FeatureConfig(num_pitch=2),
    statistics=StatisticsFitConfig(epochs=2, batch_size=16),
    distill=DistillConfig(epochs=30, batch_size=8, learning_rate=1e-2),
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


def told(clip: NormalizedClip) -> NDArray[np.float16]:
    """Say what a network can know of every fourth frame: sums of its coefficients."""
    mixing = np.random.default_rng(0).normal(0.0, 1.0, (28, NUM_STATES)) / 28**0.5
    frames = clip.frames[: len(clip.frames) // 4 * 4 : 4, 0].astype(np.float64)
    scaled = (frames - frames.mean(0)) / (frames.std(0) + 1e-3)
    return np.asarray(np.tanh(scaled @ mixing), np.float16)


def states_of(material: Material) -> dict[str, States]:
    return {
        copy: {clip.utterance.utterance_id: told(clip) for clip in material.train[copy, "cold"]}
        for copy in ("clean", "slow")
    }


def begin(material: Material) -> VoiceEncoder:
    torch.manual_seed(0)
    mean, deviation = torch.from_numpy(material.mean), torch.from_numpy(material.deviation)
    return VoiceEncoder(CONFIG.network, mean, deviation)


def error_of(encoder: VoiceEncoder, material: Material) -> float:
    """Mean squared error on whole clean clips, by the deviation of what was to be said."""
    errors, all_said = [], []
    with torch.inference_mode():
        for clip in material.train["clean", "cold"]:
            x = torch.from_numpy(clip.frames.astype(np.float32)).permute(1, 2, 0)[None]
            target = torch.from_numpy(told(clip).astype(np.float32))
            errors.append((encoder(x)[0, : len(target)], target))
            all_said.append(target)
    every = torch.cat(all_said)
    mean, deviation = every.mean(0), every.std(0)
    return float(np.mean([((a - (b - mean) / deviation) ** 2).mean().item() for a, b in errors]))


def test_it_learns_what_the_teacher_says(material: Material) -> None:
    encoder = begin(material)
    before = error_of(encoder.eval(), material)
    shares: list[float] = []
    error = distill(encoder, material, states_of(material), CONFIG, shares.append)
    after = error_of(encoder, material)
    assert before > 0.95 and after < 0.7 and error < 0.8
    assert shares == [(n + 1) / 30 for n in range(30)]
    assert not encoder.training and not any(p.requires_grad for p in encoder.parameters())
    for weight in encoder.parameters():
        if weight.numel() >= 4_096:
            assert torch.equal(weight, weight.half().float()), "as it will be served"


def test_a_seed_decides(material: Material) -> None:
    few = replace(CONFIG, distill=replace(CONFIG.distill, epochs=2))
    runs = []
    for seed in (1, 1, 2):
        encoder = begin(material)
        distill(encoder, material, states_of(material), replace(few, seed=seed))
        runs.append(torch.cat([p.flatten() for p in encoder.parameters()]))
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


def test_what_the_teacher_says_of_a_spoilt_copy_is_never_asked(material: Material) -> None:
    states = states_of(material)
    assert set(states) == {"clean", "slow"} and "telephone" in CONFIG.shares
    few = replace(CONFIG, distill=replace(CONFIG.distill, epochs=1))
    assert np.isfinite(distill(begin(material), material, states, few))


def test_fewer_utterances_than_a_batch_are_refused(material: Material) -> None:
    many = replace(CONFIG, distill=replace(CONFIG.distill, batch_size=1_000))
    with pytest.raises(ConfigError, match=r"distill\.batch_size 1000 with .* utterances: expected"):
        distill(begin(material), material, states_of(material), many)


def test_a_fold_teaches_it_once_and_its_refit_takes_it_over(
    split: Split,
    material: Material,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def load(utterances: list[object], copy: str, *_: object) -> States:
        assert utterances == split.utterances, "one cache for all folds"
        asked.append(copy)
        return states_of(material)[copy]

    monkeypatch.setattr(groundwork, "load_states", load)
    few = replace(CONFIG, distill=replace(CONFIG.distill, epochs=2))
    news: list[object] = []
    fit_fold(
        split, FoldsConfig(fit=few, run=tmp_path, cache=cache), lambda _, item: news.append(item)
    )
    assert asked == ["clean", "slow"]
    notes = [item for item in news if isinstance(item, str)]
    assert sum("learnt from the teacher: mean squared error" in note for note in notes) == 1
    shares = [item for item in news if isinstance(item, float)]
    assert shares == sorted(shares) and shares[-1] == 1.0, "the bar moves on all the time"
    first, second = (
        load_checkpoint(tmp_path / f"fold{split.fold}" / name).network
        for name in ("best.pt", "refit/best.pt")
    )
    assert isinstance(first, Committee) and isinstance(second, Committee)
    assert first.voice is not None and second.voice is not None
    for name, weight in first.voice.encoder.state_dict().items():
        assert torch.equal(weight, second.voice.encoder.state_dict()[name]), name
    one, other = (net.voice.members[0].classifier.weight for net in (first, second))  # type: ignore[union-attr]
    assert not torch.equal(one, other)  # type: ignore[arg-type]


def test_made_voices_are_heard_by_the_encoder_alone(
    split: Split, material: Material, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    heard: list[Material] = []

    def load(_: list[object], copy: str, features: FeatureConfig, place: Path) -> States:
        asked.append(copy)
        clips = load_clips(split.utterances, copy, features, CONFIG.window, place)
        return {clip.utterance.utterance_id: told(one) for clip, one in normalized(clips)}

    def normalized(clips: list[Clip]) -> list[tuple[Clip, NormalizedClip]]:
        return list(zip(clips, normalize_clips(clips, None, "cold", 1), strict=True))

    def watched(encoder: VoiceEncoder, given: Material, *rest: Any) -> float:
        heard.append(given)
        return distill(encoder, given, *rest)

    monkeypatch.setattr(groundwork, "load_states", load)
    monkeypatch.setattr(groundwork, "distill", watched)
    config = replace(CONFIG, distill=replace(CONFIG.distill, epochs=1, voices=2))
    network = groundwork.build(material, config)
    notes: list[str] = []
    groundwork.lay_groundwork(
        network,
        material,
        config,
        groundwork.Taught(None, cache, split.utterances, cache, notes.append, lambda _: None),
    )
    assert asked == ["clean", "slow", "voice1", "voice2"]
    assert set(heard[0].train) - set(material.train) == {("voice1", "cold"), ("voice2", "cold")}
    ids = [clip.utterance.utterance_id for clip in material.train["clean", "cold"]]
    for voice in ("voice1", "voice2"):
        made = heard[0].train[voice, "cold"]
        assert [clip.utterance.utterance_id for clip in made] == ids
        assert len({len(clip.frames) for clip in made}) > 1, "tempi differ"
    assert "voice1" not in config.shares and "voice1" in config.copies_taught
    assert len(notes) == 1


def test_without_a_voice_encoder_no_copy_is_taught() -> None:
    plain = replace(CONFIG, network=replace(CONFIG.network, voice_members=0, voice_channels=0))
    assert plain.copies_taught == ()


@pytest.mark.parametrize("voices", [-1, len(VOICES) + 1])
def test_more_voices_than_there_are_are_refused(voices: int) -> None:
    with pytest.raises(ConfigError, match=rf"distill\.voices {voices}: expected 0 to 4"):
        DistillConfig(voices=voices)


def test_windows_that_are_no_whole_steps_are_refused(material: Material) -> None:
    odd = replace(CONFIG, window=WindowConfig(num_frames=50, first_frames=25))
    with pytest.raises(ConfigError, match="windows of 50 frames: expected a multiple of 4"):
        distill(begin(material), material, states_of(material), odd)
