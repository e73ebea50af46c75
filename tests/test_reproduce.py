"""The paper's tables from one command: over a made-up IEMOCAP, then part by part."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import train.reproduce_fit
from streamer.errors import ConfigError
from tests.golden.synthetic import SAMPLE_RATE, voice
from tests.made_up_corpus import TINY, tiny, write_config
from train.__main__ import main
from train.corpora import IEMOCAP_SESSIONS, LABELS, Utterance, load_iemocap
from train.figures import available
from train.reproduce import ReproduceOptions, plan_trainings, reproduce
from train.reproduce_command import add_options, chosen, read_options
from train.reproduce_fit import (
    Result,
    Training,
    cut_segments,
    is_done,
    normalized_frames,
    read_result,
    run_training,
    with_epochs,
    write_result,
)
from train.reproduce_grid import run_grid
from train.reproduce_scores import gather
from train.reproduce_variants import PUBLISHED, STUDIES, SWEEPS, TABLES, VARIANTS, Plan

pytestmark = pytest.mark.one_thread

WORDS = ("ang", "exc", "neu", "sad")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reproduce")


@pytest.fixture(scope="module")
def utterances(home: Path) -> list[Utterance]:
    """Return a made-up IEMOCAP: ten speakers, each says all four words once; a word is a level."""
    root = home / "IEMOCAP"
    for number, session in enumerate(IEMOCAP_SESSIONS, start=1):
        dialog = f"Ses0{number}F_impro01"
        wavs = root / session / "sentences" / "wav" / dialog
        evaluations = root / session / "dialog" / "EmoEvaluation"
        wavs.mkdir(parents=True)
        evaluations.mkdir(parents=True)
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for index, word in enumerate([*WORDS, *WORDS]):
            name = f"{dialog}_{'FM'[index // 4]}{index:03d}"
            lines += [f"[6.2901 - 8.2357]\t{name}\t{word}\t[2.5000, 2.5000, 2.5000]", ""]
            sound = voice(0.5 + 0.1 * index, -14.0 - 6.0 * (index % 4), seed=10 * number + index)
            soundfile.write(wavs / f"{name}.wav", sound, SAMPLE_RATE)
        (evaluations / f"{dialog}.txt").write_text("\n".join(lines))
    return chosen(load_iemocap(root), [])


def options(home: Path, **changes: object) -> ReproduceOptions:
    plan = Plan(studies=("table4",), protocols=("paper",), seeds=(1,), num_folds=3, sparse=True)
    base = ReproduceOptions(
        plan=plan,
        fit=with_epochs(tiny(), 1),
        run=home / "run",
        output=home / "report",
        cache=home / "cache" / "features",
        command="python -m train reproduce",
    )
    return replace(base, **changes)  # type: ignore[arg-type]


@contextmanager
def no_bar(name: str, total: float) -> Iterator[Callable[[float], None]]:
    yield lambda steps: None


@pytest.fixture(scope="module")
def training(home: Path, utterances: list[Utterance]) -> Training:
    """Return the first training of a grid of three epochs."""
    return plan_trainings(utterances, options(home, fit=with_epochs(TINY, 3), run=home / "one"))[0]


@pytest.mark.slow
@pytest.mark.timeout(600)  # half a minute of work; a busy machine takes longer
def test_the_papers_tables_come_out_of_a_made_up_iemocap(
    home: Path, utterances: list[Utterance]
) -> None:
    studies = tuple(name for name in STUDIES if name != "functionals")
    everything = options(home, plan=Plan(studies=studies, seeds=(1,), num_folds=3, sparse=True))
    reproduce(utterances, everything, no_bar)
    results = json.loads((home / "report" / "results.json").read_text())
    text = (home / "report" / "report.md").read_text()
    page = (home / "report" / "report.html").read_text()
    for protocol in ("paper", "speakers"):
        found = results["protocols"][protocol]["scopes"]["iemocap"]
        assert {name for names in TABLES.values() for name in names} <= set(found)
        assert all(one["n"] == 40 and 0 <= one["ua"] <= 100 for one in found.values())
        assert found["can"]["units"] == (40 if protocol == "paper" else 10)
        for number in (2, 3, 4, 5):
            assert f"**Table {number}, iemocap, protocol '{protocol}': 40 utterances, in" in text
    assert "0.47 points of WA and 0.94 of UA" in text  # the paper contradicts its Table 4
    (line, *_) = [line for line in text.splitlines() if line.startswith("| without MFCC |")]
    cells = [cell.strip() for cell in line.split("|")]
    assert [cells[i] for i in (5, 7, 9, 10)] == ["-4.17", "-2.66", "76.17", "75.25"]
    assert "of 7 parts" in text.lower() and "There is one seed" in text
    assert results["eq11"] == {"pairs": 6, "largest_difference": 0.0}
    one, other = (
        read_result(home / "run" / "paper" / name / "seed1-fold0") for name in ("can", "alpha-0.9")
    )
    assert not np.array_equal(one.probabilities, other.probabilities)
    assert results["cost"]["can"]["ratio"] == 1.0
    assert {"cnn-lstm", "acrnn", "head-fusion"} <= set(results["cost"])
    assert "http" not in page and "<script" not in page
    if available():
        assert page.count("data:image/png;base64,") == len(list((home / "report").glob("*.png")))
        assert {f"fig{n}-paper.png" for n in (4, 5, 6)} <= {
            path.name for path in (home / "report").glob("*.png")
        }
    told: list[str] = []
    reproduce(utterances, replace(everything, plan=options(home).plan), no_bar, told.append)
    assert told == ["6 of 6 trainings are done"]


# One training


def test_resuming_ends_with_the_same_weights(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train.reproduce_fit, "_CHECKPOINT_S", 0.0)
    whole = replace(training, folder=tmp_path / "whole")
    cut = replace(training, folder=tmp_path / "cut")
    run_training(whole)

    def stop(share: float) -> None:
        if share > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(cut, stop)
    assert (cut.folder / "last.pt").is_file() and not is_done(cut)
    run_training(cut)
    assert is_done(cut) and not (cut.folder / "last.pt").exists()
    one, other = (torch.load(each.folder / "model.pt", weights_only=True) for each in (whole, cut))
    assert all(torch.equal(one[name], other[name]) for name in one)
    first, second = read_result(whole.folder), read_result(cut.folder)
    assert first.ids == second.ids
    assert np.array_equal(first.probabilities, second.probabilities)


def test_a_result_of_other_settings_is_refused(training: Training, tmp_path: Path) -> None:
    mine = replace(training, folder=tmp_path, config=with_epochs(TINY, 1))
    run_training(mine)
    assert is_done(mine)
    with pytest.raises(ConfigError, match="another configuration or other data"):
        is_done(replace(mine, config=with_epochs(TINY, 2)))


def test_a_result_is_the_same_whatever_it_was_trained_on(
    training: Training, tmp_path: Path
) -> None:
    mine = replace(training, folder=tmp_path, config=with_epochs(TINY, 1))
    done = run_training(mine)
    assert (done.device, read_result(tmp_path).device) == ("CPU", "CPU")
    on_a_gpu = replace(done, device="NVIDIA A (torch 2.13.0)")
    write_result(tmp_path, replace(mine, device="cuda").settings, on_a_gpu)
    assert is_done(mine) and is_done(replace(mine, device="cuda"))
    assert read_result(tmp_path).device == "NVIDIA A (torch 2.13.0)"


def test_a_result_that_names_no_device_is_of_the_cpu(training: Training, tmp_path: Path) -> None:
    result = Result(
        ids=("one",), truth=np.zeros(1, np.int64), probabilities=np.eye(1, 4), epoch=0, seconds=1.0
    )
    write_result(tmp_path, training.settings, result)
    with np.load(tmp_path / "result.npz") as stored:
        older = {name: stored[name] for name in stored.files if name != "device"}
    np.savez(tmp_path / "result.npz", allow_pickle=False, **older)
    assert is_done(replace(training, folder=tmp_path))
    assert read_result(tmp_path).device == "CPU"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_gpu_repeats_a_training_that_a_cpu_can_read(training: Training, tmp_path: Path) -> None:
    twice = [replace(training, folder=tmp_path / name, device="cuda") for name in ("a", "b")]
    one, other = (run_training(each) for each in twice)
    assert np.array_equal(one.probabilities, other.probabilities)
    assert torch.cuda.get_device_name() in one.device
    weights = torch.load(twice[0].folder / "model.pt", weights_only=True)
    assert all(value.device.type == "cpu" for value in weights.values())


def test_shares_of_copies_are_no_part_of_the_papers_training(
    training: Training, tmp_path: Path
) -> None:
    mine = replace(training, folder=tmp_path, config=with_epochs(TINY, 1))
    run_training(mine)
    assert is_done(replace(mine, config=replace(mine.config, telephone=0.1, voip=0.2, warm=0.7)))


def test_side_by_side_is_as_in_turn(
    home: Path, utterances: list[Utterance], tmp_path: Path
) -> None:
    grid = plan_trainings(utterances, options(home, run=tmp_path / "two"))[:3]
    steps: list[float] = []
    run_grid(grid, jobs=2, advance=steps.append)
    assert sum(steps) == pytest.approx(len(grid))
    alone = replace(grid[2], folder=tmp_path / "alone")
    run_training(alone)
    found, expected = read_result(grid[2].folder), read_result(alone.folder)
    assert np.array_equal(found.probabilities, expected.probabilities)


def test_a_failure_in_a_process_is_told(
    home: Path, utterances: list[Utterance], tmp_path: Path
) -> None:
    grid = plan_trainings(utterances, options(home, run=tmp_path))[:2]
    with pytest.raises(ConfigError, match="system 'nobody'"):
        run_grid([replace(one, system="nobody") for one in grid], jobs=2)


def test_segments_are_the_papers() -> None:
    long, short = np.zeros((430, 3, 26), np.float32), np.ones((7, 3, 26), np.float32)
    long[:, 0, 0] = np.arange(430)
    segments = cut_segments([long, short], np.array([2, 0]), num_frames=200, shift=100)
    assert segments.windows.shape == (4, 3, 26, 200)
    assert segments.windows[:3, 0, 0, 0].tolist() == [0, 100, 200]
    assert segments.windows[:3, 0, 0, -1].tolist() == [199, 299, 399]
    assert (segments.windows[3] == 1).all()  # padded by repetition, not by zeros
    assert segments.owners.tolist() == [0, 0, 0, 1]
    assert segments.labels.tolist() == [2, 2, 2, 0]


def test_the_papers_normalisation_hears_the_whole_speaker(training: Training) -> None:
    frames = normalized_frames(training)
    items = training.split.train + training.split.test
    speaker = items[0].speaker_id
    mine = np.concatenate([frames[u.utterance_id] for u in items if u.speaker_id == speaker])
    # float16 frames: a mean of a thousand of them is off by some 1e-4
    assert np.abs(mine.mean(axis=0)).max() < 1e-2
    assert np.abs(mine.std(axis=0) - 1).max() < 1e-2


# The plan


def test_eight_variants_each_with_one_thing_left_out() -> None:
    names = dict.fromkeys(name for table in TABLES.values() for name in table)
    assert len(names) == 8
    base = VARIANTS["can"].config(TINY, 1)
    for name in names:
        config = VARIANTS[name].config(TINY, 1)
        changed = [
            field
            for part in ("network", "loss")
            for field, value in vars(getattr(config, part)).items()
            if value != getattr(getattr(base, part), field)
        ]
        assert len(changed) == (0 if name == "can" else 1)


def test_sweeps_share_the_proposed_network() -> None:
    assert SWEEPS["alpha"][0.3] == SWEEPS["margin, Eq. 11"][0.2] == "can"
    assert len({name for points in SWEEPS.values() for name in points.values()}) == 9 + 4 + 5
    assert Plan(sparse=True).sweeps["alpha"].keys() == {0.1, 0.3, 0.9}
    assert set(VARIANTS) >= set(PUBLISHED)


def test_only_what_a_study_needs_is_trained() -> None:
    assert Plan(studies=("table4",)).variants("paper") == ("can", "no-triplet")
    assert Plan(studies=("fig5",)).variants("speakers") == (
        "can",
        "no-channel",
        "no-spatial",
        "no-self",
    )
    assert Plan(studies=("fig3",)).variants("speakers") == ("can",)
    assert "acrnn" in Plan(studies=("table5",)).variants("paper")
    assert "acrnn-full" in Plan(studies=("table5",), full_width=True).variants("paper")


def test_a_seed_is_whole_before_the_next_begins(home: Path, utterances: list[Utterance]) -> None:
    plan = Plan(studies=("table4",), seeds=(2, 1), num_folds=3, sparse=True)
    found = [
        (cell.config.seed, cell.protocol, cell.variant, cell.split.fold)
        for cell in plan_trainings(utterances, options(home, plan=plan))
    ]
    assert found == [
        (seed, protocol, variant, fold)
        for seed in (2, 1)
        for protocol in ("paper", "speakers")
        for variant in ("can", "no-triplet")
        for fold in range(3)
    ]


def test_wrong_plans_are_refused(utterances: list[Utterance]) -> None:
    with pytest.raises(ConfigError, match="study 'table9'"):
        Plan(studies=("table9",))
    with pytest.raises(ConfigError, match="seeds"):
        Plan(seeds=(1, 1))
    with pytest.raises(ConfigError, match="corpus 'emodb': expected some of iemocap"):
        chosen(utterances, ["emodb"])


# Scores


def test_utterances_of_all_folds_come_together(utterances: list[Utterance]) -> None:
    def result(members: list[Utterance]) -> Result:
        truth = np.array([LABELS.index(item.label or "") for item in members])
        ids = tuple(item.utterance_id for item in members)
        return Result(ids=ids, truth=truth, probabilities=np.eye(4)[truth], epoch=0, seconds=0.0)

    found = {(1, 0): result(utterances[::2]), (1, 1): result(utterances[1::2])}
    gathered = gather(found, utterances, "speakers")
    assert np.array_equal(gathered.guesses[0], gathered.truth)
    assert gathered.folds[0].tolist() == [0, 1] * (len(utterances) // 2)
    assert gathered.units.max() == 9


# The command


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_options(parser)
    parser.set_defaults(config="paper", set=[], cache=Path("cache"), command_line="reproduce")
    return parser.parse_args(arguments)


def test_help_names_every_study() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser)
    told = re.sub(r"\s+", " ", parser.format_help())
    assert all(study in told for study in STUDIES)


def test_options_become_a_plan() -> None:
    assert read_options(parsed()).plan == Plan()
    small = read_options(parsed("--small", "--only", "table4", "table2", "--epochs", "7"))
    assert small.plan == Plan(studies=("table2", "table4"), seeds=(1,), sparse=True)
    assert (small.fit.epochs, small.fit.patience, small.fit.num_epochs) == (7, 7, 7)
    with pytest.raises(ConfigError, match="--epochs 0"):
        read_options(parsed("--epochs", "0"))


def test_a_grid_is_for_a_gpu_where_there_is_one(
    home: Path, utterances: list[Utterance], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_options(parsed()).device == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="--device cuda: found no GPU"):
        read_options(parsed("--device", "cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    device = read_options(parsed("--device", "cuda")).device
    grid = plan_trainings(utterances, options(home, device=device))
    assert {cell.device for cell in grid} == {"cuda"}


def test_the_command_says_what_came_out(
    home: Path,
    utterances: list[Utterance],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path / "tiny.toml", TINY)
    grid = ["--only", "table4", "--protocols", "paper", "--small", "--epochs", "1"]
    paths = ["--cache", tmp_path / "cache", "--run", tmp_path / "run", "-o", tmp_path / "report"]
    given = ["reproduce", *grid, "--config", config, "--iemocap", home / "IEMOCAP", *paths]
    assert main([str(word) for word in given]) == 0
    told = capfd.readouterr()
    assert "without triplet loss" in told.out and "iemocap, protocol 'paper'" in told.out
    assert "0 of 10 trainings are done" in told.err
    assert (tmp_path / "report" / "report.html").is_file()
