"""One training of the reproduction, to the paper's letter: its segments, no augmentation, its loss.

This is the paper's section 3.2 and not the recipe of ``train.loop``: every segment of 2 s at a
shift of 1 s is seen once an epoch, as it is; a test utterance is the mean of its segments at a
shift of 0.4 s (an overlap of 1.6 s, as the code behind [10] has it). Boundaries are the corpus's
own, with no voice activity detection. An utterance shorter than a segment is padded, as in serving.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamer.arrays import Frames
from streamer.errors import ConfigError
from streamer.normalization import NormalizationConfig
from streamer.smoothing import softmax
from streamer.windows import cut_window
from train.augment import AugmentConfig
from train.config import FitConfig, config_from_dict, config_to_dict
from train.copies import CHANGED
from train.corpora import LABELS, Utterance
from train.dataset import Clip, load_clips, normalize_clips, speech_mean
from train.devices import CPU, device_name, repeatable
from train.loop import Learner
from train.loss import joint_loss
from train.metrics import confusion, unweighted_average_recall
from train.reproduce_variants import Protocol
from train.splits import Split
from train.systems import build_network

TRAIN_SHIFT = 100  # frames: 1 s (section 3.2)
TEST_SHIFT = 40  # 0.4 s
_BATCH = 64  # windows scored at once
_CHECKPOINT_S = 15.0


@dataclass(frozen=True, kw_only=True)
class Training:
    """One variant, protocol, seed and fold: what a worker gets, and the device it is to use."""

    variant: str
    system: str
    protocol: Protocol
    config: FitConfig
    split: Split
    folder: Path
    cache: Path
    device: str = "cpu"

    @property
    def settings(self) -> dict[str, Any]:
        """What makes a result that of this training, as JSON holds it: not the device."""
        parts = (self.split.train, self.split.validation, self.split.test)
        ids = json.dumps([[item.utterance_id for item in part] for part in parts])
        return {
            "system": self.system,
            "protocol": self.protocol,
            "fold": self.split.fold,
            "data": hashlib.sha256(ids.encode()).hexdigest()[:16],
            "config": config_to_dict(self.config),
        }


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Model inputs (n, 3, num_rows, num_frames) float16, the label of each, and whose they are."""

    windows: Tensor
    labels: Tensor
    owners: NDArray[np.int64]
    num_utterances: int

    def to(self, device: str) -> Segments:
        """Return the same with its tensors on a device."""
        return replace(self, windows=self.windows.to(device), labels=self.labels.to(device))


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished training on its test utterances: probabilities (n, 4), labels, ids, seconds.

    ``device`` is what it ran on, as :func:`train.devices.device_name` has it.
    """

    ids: tuple[str, ...]
    truth: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    epoch: int
    seconds: float
    device: str = CPU


def is_done(training: Training) -> bool:
    """Tell whether a training has its result.

    Raises:
        ConfigError: the folder holds the result of other settings.
    """
    path = training.folder / "result.npz"
    if not path.is_file():
        return False
    with np.load(path) as stored:
        if not _is_same(json.loads(str(stored["settings"])), training):
            raise ConfigError(
                f"{path} is the result of another configuration or other data: expected the same; "
                "remove it, or choose another --run"
            )
    return True


def read_result(folder: Path) -> Result:
    """Read what :func:`run_training` wrote."""
    with np.load(folder / "result.npz") as stored:
        return Result(
            ids=tuple(str(name) for name in stored["ids"]),
            truth=stored["truth"],
            probabilities=stored["probabilities"],
            epoch=int(stored["epoch"]),
            seconds=float(stored["seconds"]),
            device=str(stored["device"]) if "device" in stored else CPU,
        )


def write_result(folder: Path, settings: dict[str, Any], result: Result) -> None:
    """Write a result in one go: what is there is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "result.part.npz"
    np.savez(
        part,
        allow_pickle=False,
        settings=json.dumps(settings),
        ids=np.array(result.ids),
        truth=result.truth,
        probabilities=result.probabilities,
        epoch=result.epoch,
        seconds=result.seconds,
        device=result.device,
    )
    part.replace(folder / "result.npz")


def run_training(
    training: Training, advance: Callable[[float], None] = lambda share: None
) -> Result:
    """Train one network and score its test utterances: ``result.npz`` and ``model.pt``.

    A training that was cut off goes on from ``last.pt`` and ends the same. ``advance`` gets the
    share of the training that is done.

    Raises:
        ConfigError: ``last.pt`` is of another configuration.
        CorpusError: audio that cannot be read.
    """
    training.folder.mkdir(parents=True, exist_ok=True)
    with repeatable(training.device):
        return _run_training(training, advance)


def _run_training(training: Training, advance: Callable[[float], None]) -> Result:
    started = time.monotonic()
    train, validation, test = segments_of_split(training)
    learner = _begin(training.config, training.system, train, training.device)
    train = train.to(training.device)  # as a whole: a step then waits for nothing
    validation = validation and validation.to(training.device)
    last = training.folder / "last.pt"
    state = _resume(last, training, learner)
    written = started
    while state["epoch"] < training.config.num_epochs:
        _run_epoch(learner, train, training.config, state["epoch"])
        state["epoch"] += 1
        _judge(state, learner, validation, training.config)
        now = time.monotonic()
        if now - written > _CHECKPOINT_S:
            state["seconds"] += now - written
            contents = {"settings": training.settings, "state": state, "learner": learner.state()}
            _save(last, contents)
            written = now
        advance(state["epoch"] / training.config.num_epochs)
    learner.kept.load_state_dict(state["kept"])
    probabilities = score_segments(learner.kept, test.to(training.device), None)
    _save(training.folder / "model.pt", state["kept"])
    result = Result(
        ids=tuple(item.utterance_id for item in training.split.test),
        truth=_truth(training.split.test),
        probabilities=probabilities,
        epoch=state["kept_epoch"],
        seconds=state["seconds"] + time.monotonic() - written,
        device=device_name(training.device),
    )
    write_result(training.folder, training.settings, result)
    last.unlink(missing_ok=True)
    return result


def segments_of_split(training: Training) -> tuple[Segments, Segments | None, Segments]:
    """Cut a split's utterances into training, validation and test segments."""
    split, config = training.split, training.config
    frames = normalized_frames(training)
    num_frames = config.window.num_frames

    def cut(utterances: Sequence[Utterance], shift: int) -> Segments:
        chosen = [frames[item.utterance_id] for item in utterances]
        return cut_segments(chosen, _truth(utterances), num_frames, shift)

    # Which epoch is the best does not need as many looks as the result does.
    validation = cut(split.validation, TRAIN_SHIFT) if split.validation else None
    return cut(split.train, TRAIN_SHIFT), validation, cut(split.test, TEST_SHIFT)


def normalized_frames(training: Training) -> dict[str, Frames]:
    """Return each utterance's frames (n, 3, num_rows), normalised as the protocol has it.

    ``paper``: every row to mean 0 and deviation 1 over all that its speaker says (section 2.1; it
    takes no label, but it takes the future). ``speakers``: as a session does from a cold start, its
    first mean from the training speakers' speech.
    """
    split, config = training.split, training.config
    by_id = {item.utterance_id: item for item in split.train + split.validation + split.test}
    utterances = [by_id[key] for key in sorted(by_id)]
    clips = load_clips(utterances, "clean", config.features, config.window, training.cache)
    if training.protocol == "paper":
        return _by_whole_speaker(clips)
    heard = {item.utterance_id for item in split.train}
    normalization = NormalizationConfig(
        mean=speech_mean([clip for clip in clips if clip.utterance.utterance_id in heard]),
        prior_frames=config.prior_frames,
        memory_frames=config.memory_frames,
    )
    return {
        clip.utterance.utterance_id: clip.frames.astype(np.float32)
        for clip in normalize_clips(clips, normalization, "cold", config.seed)
    }


def _by_whole_speaker(clips: Sequence[Clip]) -> dict[str, Frames]:
    speakers: dict[str, list[Frames]] = {}
    for clip in clips:
        frames = clip.frames.astype(np.float32)
        speakers.setdefault(clip.utterance.speaker_id, []).append(frames)
    means = {name: np.concatenate(parts).mean(axis=0) for name, parts in speakers.items()}
    spreads = {name: np.concatenate(parts).std(axis=0) for name, parts in speakers.items()}
    return {
        clip.utterance.utterance_id: (clip.frames - means[clip.utterance.speaker_id])
        / np.maximum(spreads[clip.utterance.speaker_id], 1e-4)
        for clip in clips
    }


def cut_segments(
    frames: Sequence[Frames], labels: NDArray[np.int64], num_frames: int, shift: int
) -> Segments:
    """Cut utterances into segments of ``num_frames``, ``shift`` frames apart; at least one each."""
    windows, owners = [], []
    for owner, whole in enumerate(frames):
        for start in range(0, max(1, len(whole) - num_frames + 1), shift):
            windows.append(cut_window(whole[start : start + num_frames], num_frames))
            owners.append(owner)
    return Segments(
        windows=torch.from_numpy(np.stack(windows).astype(np.float16)),
        labels=torch.from_numpy(labels[owners]),
        owners=np.array(owners, np.int64),
        num_utterances=len(frames),
    )


@torch.inference_mode()
def score_segments(
    model: torch.nn.Module, segments: Segments, precision: torch.dtype | None
) -> NDArray[np.float64]:
    """Mean probabilities of each utterance over its segments, (n, num_labels).

    The model is to be on the segments' device.
    """
    model.eval()
    device = segments.windows.device.type
    logits = []
    for part in torch.split(segments.windows, _BATCH):
        with torch.autocast(device, precision, enabled=precision is not None):
            logits.append(model(part.float())[0].float())
    probabilities = softmax(torch.cat(logits).cpu().numpy())
    totals = np.zeros((segments.num_utterances, probabilities.shape[1]))
    np.add.at(totals, segments.owners, probabilities)
    counts = np.bincount(segments.owners, minlength=segments.num_utterances)
    mean: NDArray[np.float64] = totals / counts[:, None]
    return mean


def _truth(utterances: Sequence[Utterance]) -> NDArray[np.int64]:
    return np.array([LABELS.index(item.label or "") for item in utterances], np.int64)


def _precision(config: FitConfig) -> torch.dtype | None:
    return torch.bfloat16 if config.precision == "bfloat16" else None


def _begin(config: FitConfig, system: str, train: Segments, device: str) -> Learner:
    torch.manual_seed(config.seed)
    total = sum(part.double().sum(dim=(0, 3)) for part in torch.split(train.windows, 256))
    squares = sum(
        part.double().square().sum(dim=(0, 3)) for part in torch.split(train.windows, 256)
    )
    count = train.windows.shape[0] * train.windows.shape[3]
    mean = torch.as_tensor(total) / count
    deviation = (torch.as_tensor(squares) / count - mean.square()).clamp(min=1e-8).sqrt()
    network = build_network(
        system, config.network, mean.unsqueeze(2).float(), deviation.unsqueeze(2).float()
    )
    # Begun on the CPU, whose draws are the same for every device.
    return Learner(config, network.to(device), math.ceil(len(train.labels) / config.batch_size))


def _run_epoch(learner: Learner, train: Segments, config: FitConfig, epoch: int) -> None:
    torch.manual_seed(config.seed * 100003 + epoch)
    learner.network.train()
    precision, device = _precision(config), train.windows.device
    order = torch.randperm(len(train.labels)).to(device)  # drawn on the CPU: alike everywhere
    for rows in torch.split(order, config.batch_size):
        with torch.autocast(device.type, precision, enabled=precision is not None):
            output = learner.network(train.windows[rows].float())
        labels = train.labels[rows]
        learner.step(joint_loss(output.logits, output.embedding, labels, config.loss).total)


def _judge(
    state: dict[str, Any], learner: Learner, validation: Segments | None, config: FitConfig
) -> None:
    """Keep the weights if they validate best, or the newest where nobody validates."""
    score = math.inf
    if validation is not None:
        guesses = score_segments(learner.kept, validation, _precision(config)).argmax(axis=1)
        firsts = np.unique(validation.owners, return_index=True)[1]
        counts = confusion(validation.labels.cpu().numpy()[firsts], guesses, len(LABELS))
        score = unweighted_average_recall(counts)
    if score > state["best"] or validation is None:
        weights = {
            name: value.to("cpu", copy=True) for name, value in learner.kept.state_dict().items()
        }
        state.update(best=score, kept=weights, kept_epoch=state["epoch"] - 1)


def _resume(path: Path, training: Training, learner: Learner) -> dict[str, Any]:
    if not path.is_file():
        fresh = {"epoch": 0, "best": -math.inf, "kept": {}, "kept_epoch": 0, "seconds": 0.0}
        return fresh
    stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if not _is_same(stored["settings"], training):
        raise ConfigError(
            f"{path} is a training of another configuration: expected the same one; remove it, or "
            "choose another --run"
        )
    learner.load(stored["learner"])
    state: dict[str, Any] = stored["state"]
    return state


def _is_same(stored: dict[str, Any], training: Training) -> bool:
    """Compare settings; a field that a configuration has got since then counts as its default."""
    stored_config = config_from_dict(stored["config"], f"{training.folder}")
    return {**stored, "config": None} == {**training.settings, "config": None} and (
        _what_counts(stored_config) == _what_counts(training.config)
    )


def _what_counts(config: FitConfig) -> FitConfig:
    """Leave out what only :mod:`train.loop` goes by: shares of copies, and changes to draws."""
    copies: dict[str, Any] = dict.fromkeys(CHANGED, 0.0)
    return replace(config, warm=0.0, augment=AugmentConfig(), **copies)


def _save(path: Path, contents: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    torch.save(contents, part)
    part.replace(path)


def load_network(training: Training) -> torch.nn.Module:
    """Return the network that a finished training kept, on the CPU, in evaluation mode."""
    network = build_network(training.system, training.config.network)
    weights = torch.load(training.folder / "model.pt", map_location="cpu", weights_only=True)
    network.load_state_dict(weights)
    return network.eval()


def with_epochs(config: FitConfig, epochs: int) -> FitConfig:
    """Return a configuration whose schedule is laid out over ``epochs`` and run to the end."""
    return replace(config, epochs=epochs, patience=epochs, stop_after=0)
