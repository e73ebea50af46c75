"""The training loop, read from top to bottom: draw windows, step, validate, keep the best, resume.

Every epoch's draws come from (seed, epoch) alone and everything else is in the checkpoint, so a
training that was cut off ends with the same weights as one that was not.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from streamer.errors import ConfigError
from streamer.normalization import NormalizationConfig
from streamer.smoothing import softmax
from streamer.windows import cut_window
from train.augment import augment_frames
from train.can import CascadedAttentionNetwork
from train.checkpoint import read_resumable
from train.config import FitConfig, config_to_dict
from train.corpora import LABELS, CorpusError, Utterance
from train.dataset import (
    CONDITIONS,
    STARTS,
    NormalizedClip,
    feature_statistics,
    load_clips,
    normalize_clips,
    speech_mean,
)
from train.loss import joint_loss
from train.metrics import confusion, unweighted_average_recall
from train.splits import Split

Variants = dict[tuple[str, str], list[NormalizedClip]]


@dataclass(frozen=True, kw_only=True)
class Material:
    """What one fit hears: its training clips in every condition, and validation clips.

    ``num_without_speech`` utterances of the two are not among them: the voice activity detection
    finds no turn there, so serving would have no window to score.
    """

    train: Variants
    validation: list[NormalizedClip]
    normalization: NormalizationConfig | None
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    num_without_speech: int


def prepare(split: Split, config: FitConfig, cache: Path) -> Material:
    """Load a split's clips, with statistics from its training speakers alone.

    The cache holds whole corpora, so that all folds share it.

    Raises:
        CorpusError: no speech in anything to train on, or to validate with; audio that cannot be
            read.
    """
    everyone = {item.utterance_id: item for item in split.train + split.validation + split.test}
    utterances = [everyone[key] for key in sorted(everyone)]
    by_condition = {
        condition: load_clips(utterances, condition, config.features, config.window, cache)
        for condition in CONDITIONS
    }
    everything = itertools.chain(*by_condition.values())
    silent = {clip.utterance.utterance_id for clip in everything if not len(clip.spans)}
    chosen = _with_speech(split.train, silent, "to train on")
    held_out = _with_speech(split.validation, silent, "to validate with")
    train = {
        condition: [clip for clip in clips if clip.utterance.utterance_id in chosen]
        for condition, clips in by_condition.items()
    }
    normalization = None
    if config.normalize:
        normalization = NormalizationConfig(
            mean=speech_mean([clip for clips in train.values() for clip in clips]),
            prior_frames=config.prior_frames,
            memory_frames=config.memory_frames,
        )
    variants = {
        (condition, start): normalize_clips(clips, normalization, start, config.seed)
        for condition, clips in train.items()
        for start in STARTS
    }
    mean, deviation = feature_statistics(
        [clip for condition in CONDITIONS for clip in variants[condition, "cold"]]
    )
    validation = [clip for clip in by_condition["clean"] if clip.utterance.utterance_id in held_out]
    return Material(
        train=variants,
        validation=normalize_clips(validation, normalization, "cold", config.seed),
        normalization=normalization,
        mean=mean,
        deviation=deviation,
        num_without_speech=len(split.train) + len(split.validation) - len(chosen | held_out),
    )


def _with_speech(utterances: Sequence[Utterance], silent: set[str], purpose: str) -> set[str]:
    """Ids of the utterances that are not silent in any condition."""
    found = {item.utterance_id for item in utterances} - silent
    if utterances and not found:
        raise CorpusError(
            f"found no speech in any of the {len(utterances)} utterances {purpose}, expected some"
        )
    return found


def draw_epoch(variants: Variants, config: FitConfig, epoch: int) -> tuple[Tensor, Tensor]:
    """Draw one epoch's windows: float16 (n, 3, num_ceps, num_frames), labels (n,), shuffled."""
    rng = np.random.default_rng([config.seed, epoch])
    num_clips = len(variants["clean", "cold"])
    order = np.concatenate([rng.permutation(num_clips) for _ in range(config.windows_per_clip)])
    num_frames, num_ceps = config.window.num_frames, config.features.num_ceps
    windows = np.empty((len(order), 3, num_ceps, num_frames), np.float16)
    labels = np.empty(len(order), np.int64)
    for row, index in enumerate(order):
        condition = CONDITIONS[int(rng.random() < config.telephone)]
        clip = variants[condition, STARTS[int(rng.random() < config.warm)]][index]
        choice = clip.answers if rng.random() < config.answers else np.arange(len(clip.spans))
        frames = clip.frames_of(int(rng.choice(choice)))
        frames = augment_frames(frames, config.augment, config.features, rng)[-num_frames:]
        windows[row], labels[row] = cut_window(frames, num_frames), clip.label
    return torch.from_numpy(windows), torch.from_numpy(labels)


class Learner:
    """A network, the running average of its weights, and what moves them.

    The optimiser is Adam as the paper has it (section 3.2), its rate constant or one cycle.
    """

    def __init__(
        self, config: FitConfig, network: CascadedAttentionNetwork, steps_per_epoch: int
    ) -> None:
        self.network = network
        average = get_ema_multi_avg_fn(config.weight_average)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        self.optimizer = torch.optim.Adam(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.scheduler: torch.optim.lr_scheduler.LRScheduler
        if config.schedule == "constant":
            self.scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer, factor=1.0)
        else:
            self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
                self.optimizer,
                max_lr=config.learning_rate,
                total_steps=config.epochs * steps_per_epoch,
                pct_start=0.25,
            )

    @property
    def kept(self) -> torch.nn.Module:
        """The network with averaged weights: what is validated, saved and served."""
        return self.average.module

    def step(self, loss: Tensor) -> None:
        """Follow the gradient of one batch's loss."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.scheduler.step()
        self.average.update_parameters(self.network)

    def state(self) -> dict[str, Any]:
        """All that a resumed training needs."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        self.network.load_state_dict(state["network"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


@torch.no_grad()
def score_clips(
    model: torch.nn.Module, clips: Sequence[NormalizedClip], config: FitConfig, device: str
) -> NDArray[np.float64]:
    """Mean probabilities of each clip by the turn's rule: its full windows, or else its last."""
    model.eval()
    windows, owners = [], []
    for owner, clip in enumerate(clips):
        for index in clip.answers:
            windows.append(clip.window(int(index), config.window.num_frames).astype(np.float16))
            owners.append(owner)
    stacked = torch.from_numpy(np.stack(windows))
    logits = [model(part.to(device).float())[0].float().cpu() for part in torch.split(stacked, 64)]
    probabilities = softmax(torch.cat(logits).numpy())
    totals = np.zeros((len(clips), probabilities.shape[1]))
    np.add.at(totals, owners, probabilities)
    return totals / np.bincount(owners, minlength=len(clips))[:, None]


def validation_uar(
    model: torch.nn.Module, clips: Sequence[NormalizedClip], config: FitConfig, device: str
) -> dict[str, float]:
    """UAR of each corpus on the validation speakers, and their mean under ``mean``."""
    guesses = score_clips(model, clips, config, device).argmax(axis=1)
    result = {}
    for corpus in sorted({clip.utterance.corpus for clip in clips}):
        rows = [i for i, clip in enumerate(clips) if clip.utterance.corpus == corpus]
        counts = confusion([clips[i].label for i in rows], guesses[rows], len(LABELS))
        result[corpus] = unweighted_average_recall(counts)
    result["mean"] = float(np.mean(list(result.values())))
    return result


def fit(
    split: Split,
    config: FitConfig,
    folder: Path,
    cache: Path,
    *,
    device: str = "cpu",
    report: Callable[[dict[str, Any]], None] = lambda line: None,
    advance: Callable[[float], None] = lambda share: None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train one network on ``split.train``; the best by validation speakers ends in ``best.pt``.

    ``folder`` gets ``last.pt`` after every epoch (what a second call resumes from), ``best.pt`` and
    ``log.jsonl``. Without validation speakers the last epoch is the one kept. ``report`` gets each
    epoch's line, ``advance`` the share of the fit that is done, ``note`` what else to tell.

    Raises:
        ConfigError: ``folder`` holds a training of another configuration, or what is none.
        CorpusError: as :func:`prepare`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    material = prepare(split, config, cache)
    if material.num_without_speech:
        note(f"left out {material.num_without_speech} utterances in which no speech was found")
    learner = _begin(material, config, device)
    state = _resume(folder / "last.pt", config, learner)
    while state["epoch"] < config.num_epochs and state["stale"] < config.patience:
        epoch, started = state["epoch"], time.monotonic()
        torch.manual_seed(config.seed * 100003 + epoch)
        losses = _run_epoch(learner, material, config, epoch, device, advance)
        line: dict[str, Any] = {"epoch": epoch, **losses}
        if material.validation:
            line["validation"] = validation_uar(learner.kept, material.validation, config, device)
        is_best = _count_epoch(state, line)
        line["seconds"] = round(time.monotonic() - started, 1)
        contents = _contents(split, config, material, learner, line)
        if is_best:
            _write(folder / "best.pt", contents)
        _write(folder / "last.pt", {**contents, "learner": learner.state(), "state": state})
        with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        report(line)
    advance(1.0)
    return dict(state)


def _begin(material: Material, config: FitConfig, device: str) -> Learner:
    torch.manual_seed(config.seed)
    network = CascadedAttentionNetwork(
        config.network, torch.from_numpy(material.mean), torch.from_numpy(material.deviation)
    ).to(device)
    num_windows = len(material.train["clean", "cold"]) * config.windows_per_clip
    return Learner(config, network, math.ceil(num_windows / config.batch_size))


def _count_epoch(state: dict[str, Any], line: dict[str, Any]) -> bool:
    """Move the state on by one epoch; return whether it is the best, as any without validation."""
    score = line.get("validation", {"mean": math.inf})["mean"]
    is_best = score > state["best"] or "validation" not in line
    state["epoch"] = line["epoch"] + 1
    state["stale"] = 0 if is_best else state["stale"] + 1
    state["best"] = score if is_best else state["best"]
    return is_best


def _contents(
    split: Split, config: FitConfig, material: Material, learner: Learner, line: dict[str, Any]
) -> dict[str, Any]:
    """All that a checkpoint says of a network; ``training_data`` counts the split as given."""
    return {
        "config": config_to_dict(config),
        "model": learner.kept.state_dict(),
        "normalization": material.normalization and asdict(material.normalization),
        "fold": split.fold,
        "epoch": line["epoch"],
        "validation": line.get("validation", {}),
        "training_data": _count(split.train),
    }


def _run_epoch(
    learner: Learner,
    material: Material,
    config: FitConfig,
    epoch: int,
    device: str,
    advance: Callable[[float], None],
) -> dict[str, float]:
    learner.network.train()
    windows, labels = draw_epoch(material.train, config, epoch)
    sums = np.zeros(3)
    num_steps = 0
    for first in range(0, len(windows), config.batch_size):
        batch = windows[first : first + config.batch_size].to(device).float()
        truth = labels[first : first + config.batch_size].to(device)
        with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bfloat16"):
            logits, embedding, _ = learner.network(batch)
        loss = joint_loss(logits, embedding, truth, config.loss)
        learner.step(loss.total)
        sums += [loss.total.item(), loss.cross_entropy.item(), loss.triplet.item()]
        num_steps += 1
        advance((epoch + (first + len(batch)) / len(windows)) / config.num_epochs)
    total, cross_entropy, triplet = (sums / num_steps).round(5).tolist()
    return {"loss": total, "cross_entropy": cross_entropy, "triplet": triplet}


def _resume(path: Path, config: FitConfig, learner: Learner) -> dict[str, Any]:
    if not path.is_file():
        return {"epoch": 0, "best": -math.inf, "stale": 0}
    stored = read_resumable(path)
    if stored["config"] != config_to_dict(config):
        raise ConfigError(f"{path} is a training of another configuration: expected the same one")
    learner.load(stored["learner"])
    state: dict[str, Any] = stored["state"]
    return state


def _write(path: Path, content: dict[str, Any]) -> None:
    part = path.with_suffix(".part")
    torch.save(content, part)
    part.replace(path)


def _count(utterances: Sequence[Utterance]) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for item in utterances:
        corpus = counts.setdefault(item.corpus, {"utterances": 0})
        corpus["utterances"] += 1
    for name, corpus in counts.items():
        corpus["speakers"] = len({item.speaker for item in utterances if item.corpus == name})
    return counts
