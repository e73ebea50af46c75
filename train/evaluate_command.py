"""``python -m train evaluate``: a folder of folds, or one model file, as served."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from streamer.card import UNCERTAIN
from streamer.errors import ConfigError
from train import figures
from train.commands import (
    DATA,
    add_data_options,
    add_held_out_option,
    load_utterances,
    positive,
    progress_bar,
    results_console,
)
from train.conditions import CONDITIONS, Surroundings
from train.contenders import EvaluateConfig
from train.corpora import LABELS
from train.evaluate import evaluate
from train.evaluation_report import evaluation_page


def add_parser(commands: Any) -> None:
    """Define the command: ``options.run(options, console)`` does it."""
    judge = commands.add_parser("evaluate", help="results, as served", description=run.__doc__)
    judge.add_argument(
        "what",
        type=Path,
        metavar="FOLDER|MODEL.onnx",
        help="a folder that `folds` filled, such as runs/paper, or a model file",
    )
    judge.add_argument("-o", "--output", type=Path, help="the JSON file (FOLDER/results.json)")
    judge.add_argument("--report", type=Path, help="the HTML page with plots (beside the JSON)")
    for name, kind in (("--fold", int), ("--corpus", str)):
        judge.add_argument(
            name,
            type=kind,
            action="append",
            default=[],
            help="only this one; give more than once for several",
        )
    judge.add_argument(
        "--conditions",
        metavar="NAMES",
        help=f"which, with commas between ({','.join(CONDITIONS)}, as far as AUX has their sounds)",
    )
    judge.add_argument(
        "--aux", type=Path, help=f"noises and rooms: its esc10/flac and rir/flac ({DATA / 'aux'})"
    )
    add_held_out_option(judge)
    judge.add_argument("--no-offline", action="store_true", help="without the offline figures")
    judge.add_argument("--no-spliced", action="store_true", help="without spliced calls and noise")
    judge.add_argument(
        "--limit", type=positive, default=0, help="utterances of each corpus and fold, for a trial"
    )
    judge.add_argument("--jobs", type=positive, default=1, help="processes (1)")
    judge.add_argument("--threads", type=positive, help="of this process (as many as cores)")
    add_data_options(judge)
    judge.set_defaults(run=run, after_interrupt="nothing was written; this starts it again:")


def run(options: argparse.Namespace, console: Console) -> None:
    """Measure trained folds, each on the speakers that it has not heard, or one model file.

    Everything goes through the real session: UAR by corpus, condition, gender and seconds heard,
    with 95 % intervals by bootstrap over speakers; calibration, what is uncertain, spliced calls.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    if not options.what.exists():
        raise ConfigError(f"{options.what}: expected a folder of folds or a model file, found none")
    config = _config(options, console)
    utterances = load_utterances(options)
    started = time.monotonic()
    with progress_bar(console) as progress:
        task = progress.add_task("utterances", total=None)
        results = evaluate(
            options.what,
            utterances,
            config,
            begin=lambda total: progress.update(task, total=total),
            advance=lambda count: progress.advance(task, count),
        )
    results["command"] = options.command_line
    results["seconds"] = round(time.monotonic() - started, 1)
    output = options.output or _beside(options.what, ".json")
    output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print_results(results_console(), results)
    console.print(f"done: {output}", markup=False, highlight=False)
    if figures.available():
        page = options.report or output.with_suffix(".html")
        page.write_text(evaluation_page(results), encoding="utf-8")
        console.print(f"done: {page}", markup=False, highlight=False)
    else:
        console.print("no page with plots: expected matplotlib, which the extra `report` brings")


def _config(options: argparse.Namespace, console: Console) -> EvaluateConfig:
    aux = options.aux or (DATA if options.manifest or options.iemocap else options.data) / "aux"
    surroundings = Surroundings.find(aux)
    possible = tuple(name for name in CONDITIONS if surroundings.allow(name))
    chosen = tuple(options.conditions.split(",")) if options.conditions else possible
    if not options.conditions and possible != CONDITIONS:
        missing = ", ".join(name for name in CONDITIONS if name not in possible)
        console.print(f"left out, for want of sounds in {aux}: {missing}", highlight=False)
    return EvaluateConfig(
        conditions=chosen,
        surroundings=surroundings,
        folds=tuple(options.fold),
        corpora=tuple(options.corpus),
        offline=not options.no_offline,
        spliced=not options.no_spliced,
        limit=options.limit,
        held_out=options.held_out,
        jobs=options.jobs,
    )


def _beside(what: Path, suffix: str) -> Path:
    return what / f"results{suffix}" if what.is_dir() else what.with_suffix(f".results{suffix}")


def print_results(console: Console, results: dict[str, Any]) -> None:
    """Print an evaluation's figures: a table by corpus and condition, then a line each."""
    conditions: dict[str, Any] = results["conditions"]
    table = Table(title=results["protocol"], box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("corpus", no_wrap=True)
    for heading in ("speakers", "n", "UAR", "95 %", "WA", *list(conditions)[1:]):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, corpus in results["corpora"].items():
        others = [report["corpora"][name]["uar"] for report in list(conditions.values())[1:]]
        table.add_row(
            name,
            f"{corpus['speakers']}",
            f"{corpus['n']}",
            f"{corpus['uar']:.3f}",
            "{:.3f}-{:.3f}".format(*corpus["interval"]),
            f"{corpus['wa']:.3f}",
            *(f"{uar:.3f}" for uar in others),
        )
    means = [report["mean"] for report in conditions.values()]
    interval = "{:.3f}-{:.3f}".format(*means[0]["interval"])
    uars = [f"{mean['uar']:.3f}" for mean in means]
    table.add_row("mean", "", "", uars[0], interval, "", *uars[1:], style="bold")
    console.print(table)
    console.print("\n".join(summary_lines(results)), highlight=False)


def summary_lines(results: dict[str, Any]) -> list[str]:
    """Return what else there is to say, a sentence a line."""
    num_silent = sum(sum(corpus["unanswered"]) for corpus in results["corpora"].values())
    lines = [f"utterances without a turn, which count as wrong: {num_silent}"]
    genders = {name: found for name, found in results["gender"].items() if name != "gap"}
    if genders:
        each = ", ".join(f"{name} {found['uar']:.3f}" for name, found in genders.items())
        gap = 100 * results["gender"].get("gap", 0.0)
        lines.append(f"by gender, corpora together: {each}; {gap:.1f} points apart")
    heard = ", ".join(f"{name} s {found['uar']:.3f}" for name, found in results["heard_s"].items())
    lines.append(f"by seconds heard since the onset: {heard.replace('all s', 'all')}")
    for kind, temperature in results["calibration"].items():
        ece = results["ece"][kind]
        lines.append(
            f"{kind}: temperature {temperature:.3f}, calibration error {ece['before']:.3f} before, "
            f"{ece['after']:.3f} after"
        )
    lines += _honesty(results)
    if offline := results.get("offline"):
        lines.append(
            f"offline {offline['causal']['mean']['uar']:.3f}: streaming costs "
            f"{offline['gap_points']:.1f} points; with the whole speaker's mean "
            f"{offline['whole']['mean']['uar']:.3f}"
        )
    if spliced := results.get("spliced"):
        delay = spliced["median_delay_s"]
        lines.append(
            f"{spliced['calls']} spliced calls: anger shown in {spliced['detected']:.0%}, median "
            f"delay {'none' if delay is None else f'{delay:.2f} s'}, "
            f"{spliced['flips_a_minute']:.1f} flips a minute"
        )
    if noise := results.get("noise"):
        lines.append(
            f"{noise['minutes']:.1f} min of noise alone: {noise['alarms_a_minute']:.1f} emotional "
            f"false alarms a minute"
        )
    return lines


def _honesty(results: dict[str, Any]) -> list[str]:
    rejection, said = results["rejection"], results["said"]
    shares = [
        f"{name} {group['all'][UNCERTAIN]:.0%} of {group['all']['turns']} turns"
        for name, group in (
            ("the four labels", said.get("labelled")),
            ("other emotions", said.get("other")),
        )
        if group
    ]
    right = f"; of the other turns {said['right']:.0%} are right" if "right" in said else ""
    lines = [
        f"uncertain below {rejection['smoothed']:.3f} (smoothed), {rejection['turn']:.3f} (turn): "
        f"{', '.join(shares)}{right}"
    ]
    for name, words in said.get("other", {}).get("emotions", {}).items():
        called = ", ".join(f"{word} {words[word]:.0%}" for word in (*LABELS, UNCERTAIN))
        lines.append(f"  {name} ({words['turns']} turns) is called {called}")
    return lines
