"""From finished trainings to figures in a table: plain data, as ``results.json`` holds it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from train.can import count_parameters
from train.can_config import CanConfig
from train.corpora import LABELS, Utterance
from train.reproduce_fit import Result, Training, read_result
from train.reproduce_scores import Answers, gather, summarize
from train.reproduce_variants import PROTOCOLS, SWEEPS, Plan, Protocol
from train.systems import build_network

POOLED = "all corpora"
_TIMING_ROUNDS = 40


def collect(
    utterances: Sequence[Utterance],
    plan: Plan,
    trainings: Sequence[Training],
    benchmarks: Sequence[Training],
) -> dict[str, Any]:
    """Return every table's figures: of finished trainings, and of functionals on the same folds."""
    cells = [*trainings, *benchmarks]
    found = [read_result(cell.folder) for cell in cells]
    results: dict[str, Any] = {
        "plan": asdict(plan),
        "data": describe_data(utterances),
        "protocols": {},
        "trainings": [
            {
                "variant": cell.variant,
                "protocol": cell.protocol,
                "seed": cell.config.seed,
                "fold": cell.split.fold,
                "epoch": result.epoch,
                "seconds": round(result.seconds, 1),
                "device": result.device,
            }
            for cell, result in zip(trainings, found, strict=False)
        ],
    }
    for protocol in plan.protocols:
        mine = {
            (cell.variant, _seed(cell), cell.split.fold or 0): result
            for cell, result in zip(cells, found, strict=True)
            if cell.protocol == protocol
        }
        results["protocols"][protocol] = {
            "description": PROTOCOLS[protocol],
            "scopes": {
                scope: _summaries(mine, members, protocol)
                for scope, members in _scopes(utterances).items()
            },
        }
    if "fig3" in plan.studies:
        results["eq11"] = _eq11(dict(zip((cell.folder for cell in cells), found, strict=True)))
    if "table5" in plan.studies:
        systems = ("can", *plan.baselines)
        results["cost"] = measure_cost(systems, trainings[0].config.network)
    return results


def describe_data(utterances: Sequence[Utterance]) -> dict[str, Any]:
    """Count each corpus's utterances, speakers, hours, labels and sentences (0: not known)."""
    described = {}
    for corpus in sorted({item.corpus for item in utterances}):
        members = [item for item in utterances if item.corpus == corpus]
        described[corpus] = {
            "utterances": len(members),
            "speakers": len({item.speaker_id for item in members}),
            "hours": round(sum(item.duration_s for item in members) / 3600, 2),
            "labels": {label: sum(item.label == label for item in members) for label in LABELS},
            "sentences": len({item.sentence for item in members} - {""}),
        }
    return described


def measure_cost(systems: Sequence[str], config: CanConfig) -> dict[str, Any]:
    """Parameters, and CPU milliseconds a window: torch, one thread, one window at a time.

    The systems take turns, so that what else the machine does hits them alike; ``ratio`` is the
    median of each round's quotient to CAN and carries over to other machines better than the
    milliseconds.
    """
    networks = {name: build_network(name, config).eval() for name in systems}
    window = torch.randn(1, *config.input_shape)
    seconds: dict[str, list[float]] = {name: [] for name in systems}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for _ in range(_TIMING_ROUNDS):
                for name, network in networks.items():
                    network(window)  # into the caches
                    started = time.perf_counter()
                    network(window)
                    seconds[name].append(time.perf_counter() - started)
    finally:
        torch.set_num_threads(before)
    return {
        name: {
            "parameters": count_parameters(networks[name]),
            "ms": round(1000 * statistics.median(taken), 2),
            "ratio": round(
                statistics.median(
                    mine / can for mine, can in zip(taken, seconds["can"], strict=True)
                ),
                2,
            ),
        }
        for name, taken in seconds.items()
    }


def _seed(cell: Training) -> int:
    return int(cell.folder.name.removeprefix("seed").partition("-")[0])


def _scopes(utterances: Sequence[Utterance]) -> dict[str, list[Utterance]]:
    """The utterances of each corpus, before them all of them together if there are several."""
    corpora = sorted({item.corpus for item in utterances})
    ordered = sorted(utterances, key=lambda item: item.utterance_id)
    scopes = {name: [item for item in ordered if item.corpus == name] for name in corpora}
    return scopes if len(corpora) == 1 else {POOLED: ordered, **scopes}


def _summaries(
    found: dict[tuple[str, int, int], Result], members: Sequence[Utterance], protocol: Protocol
) -> dict[str, Any]:
    names = dict.fromkeys(name for name, _, _ in found)
    answers: dict[str, Answers] = {
        name: gather(
            {
                (seed, fold): result
                for (other, seed, fold), result in found.items()
                if other == name
            },
            members,
            protocol,
        )
        for name in names
    }
    return {
        name: summarize(one, None if name == "can" else answers["can"])
        for name, one in answers.items()
    }


def _eq11(found: dict[Any, Result]) -> dict[str, Any]:
    """How far test probabilities are apart between margins under Eq. 11: by theory not at all."""
    differences = []
    for folder, result in found.items():
        name = folder.parent.name
        if name in SWEEPS["margin, Eq. 11"].values() and name != "can":
            proposed = found[folder.parent.parent / "can" / folder.name]
            differences.append(float(abs(result.probabilities - proposed.probabilities).max()))
    return {"pairs": len(differences), "largest_difference": max(differences, default=0.0)}
