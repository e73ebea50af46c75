"""The training loop, read from top to bottom: draw windows, step, validate, keep the best, resume.

A voice encoder and networks of statistics are trained before (see ``train.distill`` and
``train.statistics_fit``); CANs are what is left, each with draws and an optimiser of its own. Every
epoch's draws come from (seed, epoch) alone and everything else is in the checkpoint, so a training
that was cut off ends with the same weights as one that was not.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from streamer.errors import ConfigError
from streamer.smoothing import softmax
from train.can import CascadedAttentionNetwork
from train.checkpoint import halved, read_resumable
from train.committee import Committee
from train.config import FitConfig, config_to_dict
from train.corpora import LABELS, Utterance
from train.dataset import NormalizedClip
from train.groundwork import Taught, build, lay_groundwork
from train.material import Material, draw_epoch, prepare
from train.metrics import confusion, unweighted_average_recall
from train.objective import objective
from train.progress import Advance, part_of
from train.schedule import one_cycle
from train.splits import Split
from train.truth import mix

_BEFORE = 0.6
"""Share of a fit's work that is done when its voice encoder has learnt, where there is one."""

_SEEDS_APART = 1000
"""Between the seeds of a committee's CANs, so that no other training of theirs draws alike."""


class Learner:
    """A network, the running average of its weights, and what moves them.

    The optimiser is Adam as the paper has it (section 3.2), or AdamW, which lets the weights decay
    by themselves and leaves biases and normalisations alone; its rate is constant or one cycle.
    """

    def __init__(self, config: FitConfig, network: torch.nn.Module, steps_per_epoch: int) -> None:
        self.network = network
        average = get_ema_multi_avg_fn(config.weight_average)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
        self._clip_gradient = config.clip_gradient
        self.optimizer = _optimizer(config, network)
        self.scheduler: torch.optim.lr_scheduler.LRScheduler
        if config.schedule == "constant":
            self.scheduler = torch.optim.lr_scheduler.ConstantLR(self.optimizer, factor=1.0)
        else:
            num_steps = config.epochs * steps_per_epoch
            self.scheduler = one_cycle(self.optimizer, config.learning_rate, num_steps, 0.25)

    @property
    def kept(self) -> torch.nn.Module:
        """The network with averaged weights: what is validated, saved and served."""
        return self.average.module

    def step(self, loss: Tensor) -> None:
        """Follow the gradient of one batch's loss."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if self._clip_gradient:
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), self._clip_gradient)
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


class Learners:
    """The CANs of a network, each of which learns by itself; all else in it stays as it is."""

    def __init__(
        self,
        config: FitConfig,
        network: CascadedAttentionNetwork | Committee,
        steps_per_epoch: int,
    ) -> None:
        self.network = network
        self.each = [Learner(config, can, steps_per_epoch) for can in network.cans]
        self.kept = network.with_cans([learner.average.module for learner in self.each])
        """The network with averaged weights: what is validated, saved and served."""

    def state(self) -> dict[str, Any]:
        """All that a resumed training needs."""
        return {
            "network": self.network.state_dict(),
            "learners": [learner.state() for learner in self.each],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        self.network.load_state_dict(state["network"])
        self.kept.load_state_dict(state["network"])
        for learner, own in zip(self.each, state["learners"], strict=True):
            learner.load(own)


def _optimizer(config: FitConfig, network: torch.nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


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
    aux: Path | None = None,
    encoder: Path | None = None,
    device: str = "cpu",
    report: Callable[[dict[str, Any]], None] = lambda line: None,
    advance: Advance = lambda share: None,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train one network on ``split.train``; the best by validation speakers ends in ``best.pt``.

    ``folder`` gets ``last.pt`` after every epoch (what a second call resumes from), ``best.pt`` and
    ``log.jsonl``. Without validation speakers the last epoch is the one kept. ``report`` gets each
    epoch's line, ``advance`` the share of the fit that is done, ``note`` what else to tell. ``aux``
    holds noises and rooms, for a configuration that trains on them; ``encoder`` is a checkpoint
    whose voice encoder is taken over, where the configuration has one, instead of taught.

    Raises:
        ConfigError: ``folder`` holds a training of another configuration, or what is none.
        CorpusError: as :func:`prepare`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    material = prepare(split, config, cache, aux)
    if material.num_without_speech:
        note(f"left out {material.num_without_speech} utterances in which no speech was found")
    network = build(material, config)
    before = _BEFORE if isinstance(network, Committee) and network.voice is not None else 0.0
    if not (folder / "last.pt").is_file():  # else all of it is in the checkpoint
        early = part_of(advance, 0.0, before)
        taught = Taught(encoder, folder, split.utterances, cache, note, early)
        lay_groundwork(network, material, config, taught)
    learners = _begin(network, material, config, device)
    state = _resume(folder / "last.pt", config, learners)
    on = part_of(advance, before, 1.0)
    while state["epoch"] < config.num_epochs and state["stale"] < config.patience:
        line = _run_epoch(learners, material, config, state["epoch"], device, on)
        is_best = _count_epoch(state, line, has_validation=bool(material.validation))
        contents = _contents(split, config, material, learners.kept, line)
        if is_best:
            _write(folder / "best.pt", contents)
        _write(folder / "last.pt", {**contents, "learners": learners.state(), "state": state})
        with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        report(line)
    advance(1.0)
    return dict(state)


def _begin(
    network: CascadedAttentionNetwork | Committee,
    material: Material,
    config: FitConfig,
    device: str,
) -> Learners:
    network = network.to(device)
    num_windows = material.num_speech * config.windows_per_clip
    if len(material.train["clean", "cold"]) > material.num_speech:
        num_windows += round(config.noise_alone * num_windows)
    return Learners(config, network, math.ceil(num_windows / config.batch_size))


def _count_epoch(state: dict[str, Any], line: dict[str, Any], *, has_validation: bool) -> bool:
    """Move the state on by one epoch; return whether it is the best: any, if nobody validates."""
    state["epoch"] = line["epoch"] + 1
    if has_validation and "validation" not in line:
        state["stale"] += 1
        return False
    score = line.get("validation", {"mean": math.inf})["mean"]
    is_best = score > state["best"] or not has_validation
    state["stale"] = 0 if is_best else state["stale"] + 1
    state["best"] = score if is_best else state["best"]
    return is_best


def _contents(
    split: Split,
    config: FitConfig,
    material: Material,
    network: torch.nn.Module,
    line: dict[str, Any],
) -> dict[str, Any]:
    """All that a checkpoint says of a network; ``training_data`` counts the split as given.

    The classifier of other emotions is left out: it has done its work.
    """
    weights = network.state_dict()
    return {
        "config": config_to_dict(config),
        "model": {key: halved(value) for key, value in weights.items() if "emotions." not in key},
        "normalization": material.normalization and asdict(material.normalization),
        "fold": split.fold,
        "epoch": line["epoch"],
        "validation": line.get("validation", {}),
        "training_data": _count([item for item in split.train if item.label]),
    }


def _run_epoch(
    learners: Learners,
    material: Material,
    config: FitConfig,
    epoch: int,
    device: str,
    advance: Advance,
) -> dict[str, Any]:
    """Teach each CAN for one epoch, and validate if it is time; return the epoch's line."""
    started, losses = time.monotonic(), np.zeros(3)
    for number in range(len(learners.each)):
        losses += _teach(learners, number, material, config, epoch, device, advance)
    total_loss, cross_entropy, triplet = (losses / len(learners.each)).round(5).tolist()
    line: dict[str, Any] = {
        "epoch": epoch,
        "loss": total_loss,
        "cross_entropy": cross_entropy,
        "triplet": triplet,
    }
    is_last = epoch + 1 == config.num_epochs
    if material.validation and (is_last or (epoch + 1) % config.validate_every == 0):
        line["validation"] = validation_uar(learners.kept, material.validation, config, device)
    line["seconds"] = round(time.monotonic() - started, 1)
    return line


def _teach(
    learners: Learners,
    number: int,
    material: Material,
    config: FitConfig,
    epoch: int,
    device: str,
    advance: Advance,
) -> NDArray[np.float64]:
    """Show one CAN an epoch's draws; return its mean loss, cross-entropy and triplet loss."""
    learner, num_cans = learners.each[number], len(learners.each)
    seed = config.seed + _SEEDS_APART * number
    torch.manual_seed(seed * 100003 + epoch)
    learner.network.train()
    windows, clips = draw_epoch(material, replace(config, seed=seed), epoch)
    sums = np.zeros(3)
    num_steps = 0
    for first in range(0, len(windows), config.batch_size):
        batch = windows[first : first + config.batch_size].to(device).float()
        truth = material.truth.of(clips[first : first + config.batch_size]).to(device)
        if config.mixup:
            batch, truth = mix(batch, truth, config.mixup)
        with torch.autocast(device, torch.bfloat16, enabled=config.precision == "bfloat16"):
            output = learner.network(batch)
        losses = objective(output, truth, config)
        learner.step(losses[0])
        sums += losses.detach().cpu().numpy()
        num_steps += 1
        share = (number + (first + len(batch)) / len(windows)) / num_cans
        advance((epoch + share) / config.num_epochs)
    return sums / num_steps


def _resume(path: Path, config: FitConfig, learners: Learners) -> dict[str, Any]:
    if not path.is_file():
        return {"epoch": 0, "best": -math.inf, "stale": 0}
    stored = read_resumable(path)
    if stored["config"] != config_to_dict(config):
        raise ConfigError(f"{path} is a training of another configuration: expected the same one")
    learners.load(stored["learners"])
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
