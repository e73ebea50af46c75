from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from streamer.errors import ConfigError
from streamer.smoothing import softmax
from tests.made_up_corpus import TINY, make_corpus, silence_file, tiny
from train.can import CascadedAttentionNetwork
from train.config import FitConfig
from train.corpora import CorpusError, Utterance
from train.loop import fit, score_clips, validation_uar
from train.material import draw_epoch, prepare
from train.splits import Split, speaker_folds, split_all

pytestmark = pytest.mark.one_thread


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loop")


@pytest.fixture(scope="module")
def utterances(home: Path) -> list[Utterance]:
    return make_corpus(home / "corpus")


@pytest.fixture(scope="module")
def split(utterances: list[Utterance]) -> Split:
    return speaker_folds(utterances)[0]


@pytest.fixture(scope="module")
def cache(home: Path) -> Path:
    return home / "cache"


@pytest.fixture(scope="module")
def trained(home: Path, split: Split, cache: Path) -> Path:
    """A training that nothing interrupted."""
    fit(split, TINY, home / "trained", cache)
    return home / "trained"


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def flatten(value: Any) -> list[Any]:
    """Return what is in nested containers, tensors as lists: equal if equal to the bit."""
    if isinstance(value, torch.Tensor):
        return [value.tolist()]
    if isinstance(value, dict):
        return [part for key in value for part in (key, *flatten(value[key]))]
    if isinstance(value, list | tuple):
        return [part for item in value for part in flatten(item)]
    return [value]


def log_of(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def test_a_fit_leaves_what_it_promises(trained: Path, split: Split) -> None:
    best, last = read(trained / "best.pt"), read(trained / "last.pt")
    log = log_of(trained)
    assert [line["epoch"] for line in log] == [0, 1, 2]
    assert all(np.isfinite(line["loss"]) for line in log)
    assert best["fold"] == split.fold
    assert best["training_data"] == {"made-up": {"utterances": 8, "speakers": 1}}
    scores = [line["validation"]["mean"] for line in log]
    assert best["epoch"] == scores.index(max(scores))  # the first of the best
    assert best["validation"] == log[best["epoch"]]["validation"]
    assert last["state"]["epoch"] == 3


@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("where", ["after an epoch", "within one"])
def test_resuming_ends_with_the_same_weights(
    trained: Path, split: Split, cache: Path, tmp_path: Path, epoch: int, where: str
) -> None:
    def report(line: dict[str, Any]) -> None:
        if where == "after an epoch" and line["epoch"] == epoch:
            raise KeyboardInterrupt

    def advance(share: float) -> None:
        if where == "within one" and share > (epoch + 0.5) / TINY.epochs:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(split, TINY, tmp_path, cache, report=report, advance=advance)
    torch.rand(7)  # what else happened in between does not count
    fit(split, TINY, tmp_path, cache)
    for name in ("best.pt", "last.pt"):
        assert flatten(read(tmp_path / name)) == flatten(read(trained / name))
    assert log_of(tmp_path) == log_of(trained)


def test_a_finished_fit_is_left_as_it_is(trained: Path, split: Split, cache: Path) -> None:
    before = (trained / "last.pt").read_bytes()
    state = fit(split, TINY, trained, cache, report=lambda _: pytest.fail("trained on"))
    assert state["epoch"] == 3
    assert (trained / "last.pt").read_bytes() == before


def test_the_seed_decides(trained: Path, split: Split, cache: Path, tmp_path: Path) -> None:
    fit(split, TINY, tmp_path / "same", cache)
    assert flatten(read(tmp_path / "same" / "last.pt")) == flatten(read(trained / "last.pt"))
    fit(split, tiny(seed=2), tmp_path / "other", cache)
    one, other = (read(folder / "last.pt")["model"] for folder in (trained, tmp_path / "other"))
    assert flatten(one) != flatten(other)


def test_another_configuration_is_not_resumed(trained: Path, split: Split, cache: Path) -> None:
    with pytest.raises(ConfigError, match="another configuration"):
        fit(split, tiny(batch_size=4), trained, cache)


def test_it_stops_when_validation_gets_no_better(split: Split, cache: Path, tmp_path: Path) -> None:
    # At a rate of 0 nothing but batch statistics moves; with patience 1 an epoch that is no
    # better ends the training.
    config = tiny(epochs=30, patience=1, learning_rate=0.0)
    state = fit(split, config, tmp_path, cache)
    scores = [line["validation"]["mean"] for line in log_of(tmp_path)]
    assert state["stale"] == 1
    assert len(scores) == state["epoch"] < 30
    assert scores[-1] <= max(scores[:-1])
    assert read(tmp_path / "best.pt")["epoch"] == len(scores) - 2


def test_without_validation_the_last_epoch_is_kept(
    utterances: list[Utterance], cache: Path, tmp_path: Path
) -> None:
    fit(split_all(utterances), tiny(epochs=2, patience=1), tmp_path, cache)
    best = read(tmp_path / "best.pt")
    assert (best["epoch"], best["fold"], best["validation"]) == (1, None, {})
    assert flatten(best["model"]) == flatten(read(tmp_path / "last.pt")["model"])


def test_a_network_learns(utterances: list[Utterance], cache: Path, tmp_path: Path) -> None:
    config = tiny(epochs=12, windows_per_clip=4)
    fit(split_all(utterances), config, tmp_path, cache)
    losses = [line["cross_entropy"] for line in log_of(tmp_path)]
    assert losses[-1] < 0.85 * losses[0]


def test_statistics_come_from_training_speakers_alone(split: Split, cache: Path) -> None:
    whole = prepare(split, TINY, cache)
    alone = prepare(Split(fold=None, train=split.train, validation=(), test=()), TINY, cache)
    assert whole.normalization == alone.normalization
    assert np.array_equal(whole.mean, alone.mean)
    assert np.array_equal(whole.deviation, alone.deviation)
    trained = {clip.utterance.speaker_id for clips in whole.train.values() for clip in clips}
    validated = {clip.utterance.speaker_id for clip in whole.validation}
    assert trained == {item.speaker_id for item in split.train}
    assert validated == {item.speaker_id for item in split.validation}
    everyone = Split(fold=None, train=split.train + split.test, validation=(), test=())
    other = prepare(everyone, TINY, cache)
    assert other.normalization != whole.normalization
    assert not np.array_equal(other.mean, whole.mean)


@pytest.fixture
def other_split(tmp_path: Path) -> Split:
    """A split of a corpus whose files a test may spoil."""
    return speaker_folds(make_corpus(tmp_path / "corpus"))[0]


def test_clips_without_speech_neither_train_nor_validate(
    other_split: Split, tmp_path: Path
) -> None:
    silent = [*other_split.train[:2], other_split.validation[3], other_split.test[0]]
    for utterance in silent:
        silence_file(utterance)
    material = prepare(other_split, TINY, tmp_path / "cache")
    assert material.num_without_speech == 3, "who tests is not heard here"
    expected = [item.utterance_id for item in other_split.train[2:]]
    for clips in material.train.values():
        # The same in every condition: a draw picks the clip first, then how it sounds.
        assert [clip.utterance.utterance_id for clip in clips] == expected
    assert len(material.validation) == 7
    notes: list[str] = []
    lines: list[dict[str, Any]] = []
    config = tiny(epochs=1)
    cache = tmp_path / "cache"
    fit(other_split, config, tmp_path / "fit", cache, report=lines.append, note=notes.append)
    assert notes == ["left out 3 utterances in which no speech was found"]
    assert np.isfinite(lines[0]["validation"]["mean"])


@pytest.mark.parametrize("part", ["train", "validation"])
def test_nothing_but_silence_is_refused(other_split: Split, tmp_path: Path, part: str) -> None:
    for utterance in getattr(other_split, part):
        silence_file(utterance)
    with pytest.raises(CorpusError, match="no speech in any of the 8 utterances to"):
        prepare(other_split, TINY, tmp_path / "cache")


def test_draws_come_from_seed_and_epoch(split: Split, cache: Path) -> None:
    material = prepare(split, TINY, cache)
    windows, clips = draw_epoch(material, TINY, 3)
    assert windows.shape == (8, 3, 26, 50)
    assert sorted(material.truth.of(clips).labels.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    same = draw_epoch(material, TINY, 3)
    assert torch.equal(windows, same[0]) and np.array_equal(clips, same[1])
    assert not torch.equal(windows, draw_epoch(material, TINY, 4)[0])
    assert not torch.equal(windows, draw_epoch(material, tiny(seed=2), 3)[0])


@pytest.mark.parametrize("condition", ["clean", "telephone"])
@pytest.mark.parametrize("start", ["cold", "warm"])
def test_draws_are_windows_that_serving_scores(
    split: Split, cache: Path, condition: str, start: str
) -> None:
    """Without augmentation, each draw is one of its condition's windows as they are."""
    config = tiny(telephone=float(condition == "telephone"), warm=float(start == "warm"))
    material = prepare(split, config, cache)
    known = {
        (clip.label, clip.window(index, 50).tobytes())
        for clip in material.train[condition, start]
        for index in range(len(clip.spans))
    }
    windows, clips = draw_epoch(material, config, 0)
    labels = material.truth.of(clips).labels.tolist()
    for window, label in zip(windows.float().numpy(), labels, strict=True):
        assert (label, window.tobytes()) in known


def test_a_pasted_window_begins_with_another_utterance_of_the_same_voice_and_emotion(
    split: Split, cache: Path
) -> None:
    material = prepare(split, TINY, cache)
    clips = material.train["clean", "cold"]
    windows, owners = draw_epoch(material, tiny(paste=1.0, telephone=0.0, warm=0.0), 0)
    num_whole = 0
    for window, owner in zip(windows.float().numpy(), owners, strict=True):
        own = clips[owner]
        ends = [own.window(index, 50)[..., -1:] for index in range(len(own.spans))]
        assert any(np.array_equal(window[..., -1:], end) for end in ends)
        begins = [
            clip.window(index, 50)
            for clip in clips
            if (clip.utterance.speaker_id, clip.label) == (own.utterance.speaker_id, own.label)
            for index in range(len(clip.spans))
        ]
        assert any(np.array_equal(window[..., :10], begin[..., :10]) for begin in begins)
        num_whole += any(np.array_equal(window, begin) for begin in begins)
    assert num_whole < len(windows)


@pytest.mark.parametrize("change", [{"paste": 1.5}, {"paste": -0.1}, {"answers": 2.0}])
def test_shares_of_draws_are_shares(change: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="expected shares, 0 to 1"):
        tiny(**change)


def test_clips_are_scored_by_the_rule_of_turns(split: Split, cache: Path) -> None:
    clips = prepare(split, TINY, cache).validation
    torch.manual_seed(5)
    network = CascadedAttentionNetwork(TINY.network).eval()
    scores = score_clips(network, clips, TINY, "cpu")
    assert {bool(clip.is_full.any()) for clip in clips} == {True}
    for row, clip in zip(scores, clips, strict=True):
        windows = [clip.window(index, 50) for index in np.flatnonzero(clip.is_full)]
        with torch.no_grad():
            logits = network(torch.from_numpy(np.stack(windows)))[0].numpy()
        # Batches of another size move the last bits of float32.
        assert row == pytest.approx(softmax(logits).mean(axis=0), abs=1e-5)
    guesses = scores.argmax(axis=1)
    recalls = []
    for label in range(4):
        of_label = [row for row, clip in enumerate(clips) if clip.label == label]
        recalls.append(float(np.mean(guesses[of_label] == label)))
    result = validation_uar(network, clips, TINY, "cpu")
    assert result == {"made-up": pytest.approx(np.mean(recalls)), "mean": result["made-up"]}


def test_a_schedule_is_resumed_where_it_was(split: Split, cache: Path, tmp_path: Path) -> None:
    config: FitConfig = tiny(schedule="onecycle", epochs=2, precision="bfloat16")
    fit(split, config, tmp_path / "whole", cache)

    def stop(line: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(split, config, tmp_path / "parts", cache, report=stop)
    fit(split, config, tmp_path / "parts", cache)
    whole, parts = (read(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    assert flatten(whole) == flatten(parts)
