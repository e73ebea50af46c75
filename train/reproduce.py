"""``python -m train reproduce``: the paper's tables and figures on a corpus, from one command.

Features are computed once; every training lies in a folder of its own and is skipped when it is
done; the report is made from what the folders hold. So the command may be stopped and typed again.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train.config import FitConfig, config_to_dict
from train.corpora import LABELS, Utterance
from train.dataset import cache_clips
from train.figures import available as can_draw
from train.functionals import classify, extract_functionals, missing_packages
from train.report import Report, markdown, page
from train.reproduce_figures import Bar, draw
from train.reproduce_fit import Result, Training, is_done, write_result
from train.reproduce_grid import run_grid
from train.reproduce_maps import can_project
from train.reproduce_report import build_report
from train.reproduce_results import collect
from train.reproduce_variants import FUNCTIONALS, PROTOCOLS, STUDIES, VARIANTS, Plan, Protocol
from train.splits import Split, paper_protocol_folds, speaker_folds

RUNS = Path("runs/reproduce")
OUTPUT = Path("docs/results/paper")


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    """What to reproduce, how, and where it goes.

    ``run`` holds the trainings, ``output`` the report. ``fit`` is the full CAN and how it is
    trained; of it, augmentation and the drawing of windows are not used (see
    ``train.reproduce_fit``).
    """

    plan: Plan
    fit: FitConfig
    run: Path = RUNS
    output: Path = OUTPUT
    cache: Path = Path(".cache/features")
    jobs: int = 1
    device: str = "cpu"
    command: str = ""


def reproduce(
    utterances: Sequence[Utterance],
    options: ReproduceOptions,
    bar: Bar,
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train what is missing, then write ``results.json``, ``report.md``, ``report.html`` and PNGs.

    Args:
        utterances: labelled speech; folds are made of all of it.
        options: what to make of it.
        bar: shows a progress bar of a name and a number of steps; yields what moves it on.
        note: gets what else to tell.

    Returns:
        What ``results.json`` holds.

    Raises:
        ConfigError: a folder holds a training of another configuration.
        CorpusError: audio that cannot be read.
    """
    started = time.monotonic()
    _fill_cache(utterances, options, bar)
    trainings = plan_trainings(utterances, options)
    waiting = [training for training in trainings if not is_done(training)]
    note(f"{len(trainings) - len(waiting)} of {len(trainings)} trainings are done")
    if waiting:
        with bar("trainings", len(waiting)) as advance:
            run_grid(waiting, jobs=options.jobs, advance=advance)
    benchmarks = _run_functionals(utterances, options, bar)
    results = collect(utterances, options.plan, trainings, benchmarks)
    results["config"] = config_to_dict(options.fit)
    results["command"] = options.command
    drawn = draw(results, trainings, options.plan, options.output, bar)
    results.update(drawn.numbers)
    results["not_run"] = _not_run(options.plan)
    results["machine"] = describe_machine()
    results["seconds"] = {
        "this_command": round(time.monotonic() - started, 1),
        "trainings": round(sum(cell["seconds"] for cell in results["trainings"]), 1),
    }
    _write(build_report(results, drawn.figures), results, options.output)
    return results


def plan_trainings(utterances: Sequence[Utterance], options: ReproduceOptions) -> list[Training]:
    """Return the whole grid: a seed after the other, in it each protocol, the full CAN first.

    A grid that was cut off thus leaves whole seeds, of which a report can be made.
    """
    return [
        _training(VARIANTS[name].system, name, protocol, seed, split, options)
        for seed in options.plan.seeds
        for protocol in options.plan.protocols
        for name in options.plan.variants(protocol)
        for split in _splits(utterances, protocol, seed, options.plan.num_folds)
    ]


def _splits(
    utterances: Sequence[Utterance], protocol: Protocol, seed: int, num_folds: int
) -> list[Split]:
    """Return a seed's folds: random ones change with it, speakers' do not."""
    if protocol == "speakers":
        return speaker_folds(utterances, num_folds)
    return paper_protocol_folds(utterances, seed, num_folds)


def _training(
    system: str, name: str, protocol: Protocol, seed: int, split: Split, options: ReproduceOptions
) -> Training:
    fit = VARIANTS[name].config(options.fit, seed) if name in VARIANTS else options.fit
    return Training(
        variant=name,
        system=system,
        protocol=protocol,
        config=fit,
        split=split,
        folder=options.run / protocol / name / f"seed{seed}-fold{split.fold}",
        cache=options.cache,
        device=options.device,
    )


def _fill_cache(utterances: Sequence[Utterance], options: ReproduceOptions, bar: Bar) -> None:
    fit = options.fit
    with bar("features", len(utterances)) as advance:
        cache_clips(
            utterances, "clean", fit.features, fit.window, options.cache, lambda: advance(1.0)
        )


def _run_functionals(
    utterances: Sequence[Utterance], options: ReproduceOptions, bar: Bar
) -> list[Training]:
    """Answer by functionals and SVM on the same folds, where the packages are there."""
    if "functionals" not in options.plan.studies or missing_packages():
        return []
    done = []
    cache = options.cache.parent / "functionals"
    for name in FUNCTIONALS:
        with bar(f"{name} features", len(utterances)) as advance:
            rows = extract_functionals(utterances, name, cache, lambda: advance(1.0))
        features = {item.utterance_id: row for item, row in zip(utterances, rows, strict=True)}
        cells = [
            _training(name, name, protocol, seed, split, options)
            for seed in options.plan.seeds
            for protocol in options.plan.protocols
            for split in _splits(utterances, protocol, seed, options.plan.num_folds)
        ]
        with bar(f"{name} machines", len(cells)) as advance:
            for cell in cells:
                if not is_done(cell):
                    write_result(cell.folder, cell.settings, _classify(features, cell))
                advance(1.0)
        done += cells
    return done


def _classify(features: dict[str, NDArray[np.float32]], cell: Training) -> Result:
    started = time.monotonic()
    answers = classify(features, cell.split)
    return Result(
        ids=tuple(item.utterance_id for item in cell.split.test),
        truth=np.array([LABELS.index(item.label or "") for item in cell.split.test], np.int64),
        probabilities=answers,
        epoch=0,
        seconds=time.monotonic() - started,
    )


def _not_run(plan: Plan) -> list[str]:
    told = [f"{study}: not asked for" for study in STUDIES if study not in plan.studies]
    told += [
        f"protocol {name!r}: not asked for" for name in PROTOCOLS if name not in plan.protocols
    ]
    if plan.sparse and "fig3" in plan.studies:
        told.append("fig3: its ends and the paper's choice only")
    if "fig3" in plan.studies and len(plan.protocols) > 1:
        told.append(f"fig3: under the protocol {plan.protocols[0]!r} only")
    if "table5" in plan.studies and not plan.full_width:
        told.append("table5: the 3-D ACRNN at its full width (6.5 M parameters)")
    if "functionals" in plan.studies and missing_packages():
        told.append(f"functionals: {', '.join(missing_packages())} not installed")
    if not can_draw():
        told.append("all figures: matplotlib not installed")
    elif "fig8" in plan.studies and not can_project():
        told.append("fig8: scikit-learn not installed")
    return told


def describe_machine() -> dict[str, Any]:
    """Say what the figures were computed on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _write(report: Report, results: dict[str, Any], output: Path) -> None:
    output.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1, allow_nan=True)
    for name, content in (
        ("results.json", text + "\n"),
        ("report.md", markdown(report)),
        ("report.html", page(report)),
    ):
        part = output / f"{name}.part"
        part.write_text(content, encoding="utf-8")
        part.replace(output / name)
