"""``python -m train reproduce`` as it is typed: its options, its bars, what it says at the end."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from streamer.errors import ConfigError
from train.commands import results_console
from train.config import load_config
from train.corpora import Utterance
from train.devices import DEVICES, require_device
from train.reproduce import OUTPUT, RUNS, ReproduceOptions, reproduce
from train.reproduce_fit import with_epochs
from train.reproduce_variants import FUNCTIONALS, PROTOCOLS, STUDIES, VARIANTS, Plan

EPOCHS = 30


def run_command(
    utterances: Sequence[Utterance], options: argparse.Namespace, console: Console
) -> None:
    """Reproduce what the options say, under bars on ``console``; figures go to standard output.

    Raises:
        ConfigError: an option out of range, an unknown corpus, a folder of another configuration.
        CorpusError: audio that cannot be read.
    """
    members = chosen(utterances, options.corpora)
    wanted = read_options(options)

    @contextmanager
    def bar(name: str, total: float) -> Iterator[Callable[[float], None]]:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.1f} of {task.total:.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=600,  # trainings differ: an hour left is an average's guess
        ) as progress:
            task = progress.add_task(name, total=total)
            yield lambda steps: progress.advance(task, steps)

    results = reproduce(members, wanted, bar, lambda text: console.print(text, highlight=False))
    print_results(results_console(), results)
    report = wanted.output / "report.html"
    console.print(f"done: {report}", markup=False, highlight=False, soft_wrap=True)


def print_results(console: Console, results: dict[str, Any]) -> None:
    """Print every line of every table: WA and UA with its interval, a table a protocol."""
    for protocol, one in results["protocols"].items():
        scope, summaries = next(iter(one["scopes"].items()))
        table = Table(title=f"{scope}, protocol {protocol!r}", box=box.SIMPLE, padding=(0, 1, 0, 0))
        table.add_column("", no_wrap=True)
        for heading in ("WA", "UA", "95 %", "change of UA"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, summary in summaries.items():
            change = f"{summary['delta']['ua']:+.1f}" if "delta" in summary else ""
            low, high = summary["ua_interval"]
            title = FUNCTIONALS.get(name) or VARIANTS[name].title
            rates = (f"{summary['wa']:.1f}", f"{summary['ua']:.1f}", f"{low:.1f}-{high:.1f}")
            table.add_row(title, *rates, change)
        console.print(table)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what :func:`read_options` reads; data, cache and configuration are the caller's."""
    parser.add_argument("--corpora", nargs="+", default=[], metavar="NAME", help="only these")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of each training ({EPOCHS})")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="(1 2; --small: 1)")
    parser.add_argument(
        "--only",
        nargs="+",
        default=list(STUDIES),
        choices=STUDIES,
        metavar="STUDY",
        help=f"some of {', '.join(STUDIES)} (all)",
    )
    parser.add_argument(
        "--protocols",
        nargs="+",
        default=list(PROTOCOLS),
        choices=list(PROTOCOLS),
        help="paper: random folds, speakers shared; speakers: speaker-independent (both)",
    )
    parser.add_argument(
        "--small",
        action="store_true",
        help="one seed, and of Fig. 3 the ends and the paper's choice: for a machine without a GPU",
    )
    parser.add_argument(
        "--full-width", action="store_true", help="3-D ACRNN as wide as its paper has it: slow"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, help="trainings at a time, one thread each (1)"
    )
    parser.add_argument(
        "--device",
        choices=DEVICES,
        default="cpu",
        help="what trains; several --jobs share one GPU (cpu)",
    )
    parser.add_argument(
        "--run",
        dest="runs",
        metavar="RUN",
        type=Path,
        default=RUNS,
        help=f"the trainings' folder ({RUNS})",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=OUTPUT, help=f"the report's folder ({OUTPUT})"
    )


def read_options(options: argparse.Namespace) -> ReproduceOptions:
    """Turn parsed arguments into options.

    Raises:
        ConfigError: a value out of range, an unknown configuration, or no such device.
    """
    require_device(options.device)
    if options.epochs < 1 or options.jobs < 1:
        raise ConfigError(f"--epochs {options.epochs}, --jobs {options.jobs}: expected 1 or more")
    # The paper keeps the weights as they are; an average of 0.99 a step is still half of the first
    # weights after 70 steps, which is ten epochs of a small corpus.
    fit = load_config(options.config, ["weight_average=0.0", *options.set])
    seeds = options.seeds or ([1] if options.small else [1, 2])
    plan = Plan(
        studies=tuple(name for name in STUDIES if name in options.only),
        protocols=tuple(name for name in PROTOCOLS if name in options.protocols),
        seeds=tuple(seeds),
        sparse=options.small,
        full_width=options.full_width,
    )
    return ReproduceOptions(
        plan=plan,
        fit=with_epochs(fit, options.epochs),
        run=options.runs,
        output=options.output,
        cache=options.cache,
        jobs=options.jobs,
        device=options.device,
        command=options.command_line,
    )


def chosen(utterances: Sequence[Utterance], corpora: Sequence[str]) -> list[Utterance]:
    """Return the labelled utterances of some corpora, all if none is named.

    Raises:
        ConfigError: an unknown corpus.
    """
    known = {item.corpus for item in utterances}
    unknown = sorted(set(corpora) - known)
    if unknown:
        raise ConfigError(f"corpus {unknown[0]!r}: expected some of {', '.join(sorted(known))}")
    return [item for item in utterances if item.label and item.corpus in (set(corpora) or known)]
