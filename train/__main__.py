"""``python -m train``: fit a network, fit the folds, evaluate them."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from streamer.errors import ConfigError, SerStreamError
from train.checkpoint import is_finished, num_epochs_done
from train.config import FitConfig, load_config
from train.corpora import Utterance, load_data, load_iemocap, load_manifest
from train.dataset import CONDITIONS, cache_clips
from train.evaluate import evaluate
from train.folds import FoldsConfig, News, fit_fold, fit_side_by_side
from train.loop import fit
from train.splits import Split, speaker_folds, split_all

EXAMPLES = """\
examples:
  python -m train fit --config paper --fold 0              one fold of ../shared/data
  python -m train fit --manifest calls.csv --all           your own speech, nobody held out
  python -m train fit --fold 0 --set epochs=10 --set network.num_heads=2
  python -m train folds --config paper -o runs/paper       the five folds, in turn
  python -m train evaluate runs/paper                      what they are worth on unheard speakers
"""
DATA = Path("../shared/data")
CACHE = Path(".cache/features")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code: 0 done, 1 failed, 2 misused, 130 interrupted."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(given)
    options.command_line = shlex.join(["python", "-m", "train", *given])
    console = Console(stderr=True)
    try:
        options.run(options, console)
    except SerStreamError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False)
        return 1
    except KeyboardInterrupt:
        console.print(f"stopped: {options.after_interrupt}", markup=False)
        console.print(f"  {options.command_line}", markup=False, soft_wrap=True)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train",
        description="Train the network on emotional speech, and measure it on unheard speakers.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    one = commands.add_parser("fit", help="one training", description=_fit.__doc__)
    whom = one.add_mutually_exclusive_group(required=True)
    whom.add_argument("--fold", type=int, metavar="K", help="hold out fold K of the speakers")
    whom.add_argument(
        "--all", action="store_true", help="train on everybody: the model that ships, no test"
    )
    one.add_argument("-o", "--output", type=Path, help="its folder (runs/CONFIG/foldK or .../all)")
    _add_training_options(one)
    one.set_defaults(run=_fit, after_interrupt="the same command goes on after the last epoch:")
    five = commands.add_parser("folds", help="the five trainings", description=_folds.__doc__)
    five.add_argument("-o", "--output", type=Path, help="their folder (runs/CONFIG)")
    five.add_argument("--jobs", type=_positive, default=1, help="folds at a time (1)")
    _add_training_options(five)
    five.set_defaults(run=_folds, after_interrupt="the same command goes on after the last epochs:")
    judge = commands.add_parser("evaluate", help="results", description=_evaluate.__doc__)
    judge.add_argument("folder", type=Path, help="a folder that `folds` filled, such as runs/paper")
    judge.add_argument("-o", "--output", type=Path, help="the JSON file (FOLDER/results.json)")
    judge.add_argument(
        "--fold",
        type=int,
        action="append",
        default=[],
        help="only this one; give more than once for several",
    )
    judge.add_argument(
        "--corpus",
        action="append",
        default=[],
        help="only this one; give more than once for several",
    )
    judge.add_argument("--jobs", type=_positive, default=1, help="processes (1)")
    judge.add_argument("--threads", type=_positive, help="of this process (as many as cores)")
    _add_data_options(judge)
    judge.set_defaults(run=_evaluate, after_interrupt="nothing was written; this starts it again:")
    return parser


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", default="paper", help="a name in train/configs, or a TOML file (paper)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, such as epochs=10 or loss.alpha=0.5; may be repeated",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(cpu)")
    parser.add_argument("--threads", type=_positive, help="of each training (as many as cores)")
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help=f"where features are kept ({CACHE})"
    )
    _add_data_options(parser)


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    data = parser.add_mutually_exclusive_group()
    data.add_argument(
        "--data", type=Path, default=DATA, help=f"a folder of corpora with manifest.csv ({DATA})"
    )
    data.add_argument(
        "--manifest", type=Path, help="your own CSV with the columns path, speaker and label"
    )
    data.add_argument("--iemocap", type=Path, help="IEMOCAP as it is handed out: Session1-5")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected 1 or more")
    return value


def _fit(options: argparse.Namespace, console: Console) -> None:
    """Train one network; a folder that was begun before is continued to the same result."""
    config, utterances = _begin(options)
    if options.all:
        split, name = split_all(utterances), "all"
    else:
        split, name = _fold(utterances, options.fold), f"fold{options.fold}"
    folder = options.output or Path("runs", config.name, name)
    _fill_cache(utterances, config, options.cache, console)
    epochs = num_epochs_done(folder)
    if epochs:
        console.print(f"{folder}: goes on after epoch {epochs}", markup=False, highlight=False)
    with _progress(console) as progress:
        task = progress.add_task(name, total=1.0)
        fit(
            split,
            config,
            folder,
            options.cache,
            device=options.device,
            report=lambda line: _print_epoch(progress.console, name, line),
            advance=lambda share: progress.update(task, completed=share),
            note=lambda text: _print_note(progress.console, name, text),
        )
    kept = folder / "best.pt"
    console.print(f"done: {kept}", markup=False, highlight=False)


def _folds(options: argparse.Namespace, console: Console) -> None:
    """Train the five networks of the folds, each without the speakers that will test it.

    What is finished is passed over, what was begun is continued.
    """
    config, utterances = _begin(options)
    run = options.output or Path("runs", config.name)
    folds = FoldsConfig(fit=config, run=run, cache=options.cache, device=options.device)
    splits = speaker_folds(utterances)
    waiting = [split for split in splits if not is_finished(folds.folder(split), config)]
    num_finished = len(splits) - len(waiting)
    console.print(f"{num_finished} of {len(splits)} folds are finished", highlight=False)
    if waiting:
        _fill_cache(utterances, config, options.cache, console)
    with _progress(console) as progress:
        tasks = {split.fold: progress.add_task(f"fold{split.fold}", total=1.0) for split in waiting}

        def receive(split: Split, news: News) -> None:
            if isinstance(news, float):
                progress.update(tasks[split.fold], completed=news)
            elif isinstance(news, str):
                _print_note(progress.console, f"fold{split.fold}", news)
            else:
                _print_epoch(progress.console, f"fold{split.fold}", news)

        if options.jobs > 1:
            threads = options.threads or max(1, torch.get_num_threads() // options.jobs)
            fit_side_by_side(waiting, folds, receive, jobs=options.jobs, threads=threads)
        else:
            for split in waiting:
                fit_fold(split, folds, receive)
    console.print(f"done: {run}", markup=False, highlight=False)


def _evaluate(options: argparse.Namespace, console: Console) -> None:
    """Measure trained folds on the speakers that each has not heard, through the real session.

    Clean and over the telephone: UAR, its 95 % interval by bootstrap over speakers, WA, confusion;
    temperatures from each fold's validation speakers.
    """
    _set_threads(options.threads)
    utterances = _load(options)
    started = time.monotonic()
    with _progress(console, MofNCompleteColumn()) as progress:
        task = progress.add_task("utterances", total=None)
        results = evaluate(
            options.folder,
            utterances,
            folds=options.fold,
            corpora=options.corpus,
            jobs=options.jobs,
            begin=lambda total: progress.update(task, total=total),
            advance=lambda count: progress.advance(task, count),
        )
    results["command"] = options.command_line
    results["seconds"] = round(time.monotonic() - started, 1)
    output = options.output or options.folder / "results.json"
    output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    _print_results(Console(), results)
    console.print(f"done: {output}", markup=False, highlight=False)


def _begin(options: argparse.Namespace) -> tuple[FitConfig, list[Utterance]]:
    config = load_config(options.config, options.set)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: found no GPU that this torch can use, expected one")
    _set_threads(options.threads)
    return config, _load(options)


def _set_threads(threads: int | None) -> None:
    if threads:
        torch.set_num_threads(threads)


def _load(options: argparse.Namespace) -> list[Utterance]:
    """Utterances with one of the four labels: the others neither train nor test."""
    if options.manifest:
        utterances = load_manifest(options.manifest)
    elif options.iemocap:
        utterances = load_iemocap(options.iemocap)
    else:
        utterances = load_data(options.data)
    return [utterance for utterance in utterances if utterance.label]


def _fold(utterances: Sequence[Utterance], fold: int) -> Split:
    splits = speaker_folds(utterances)
    if not 0 <= fold < len(splits):
        raise ConfigError(f"--fold {fold}: expected 0 to {len(splits) - 1}")
    return splits[fold]


def _fill_cache(
    utterances: Sequence[Utterance], config: FitConfig, cache: Path, console: Console
) -> None:
    """Compute what features are not there yet, under a bar of its own."""
    with _progress(console, MofNCompleteColumn()) as progress:
        task = progress.add_task("features", total=len(CONDITIONS) * len(utterances))
        for condition in CONDITIONS:
            cache_clips(
                utterances,
                condition,
                config.features,
                config.window,
                cache,
                lambda: progress.advance(task),
            )


def _progress(console: Console, *columns: MofNCompleteColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        *columns,
        TimeRemainingColumn(),
        console=console,
    )


def _print_note(console: Console, name: str, text: str) -> None:
    console.print(f"{name}: {text}", markup=False, highlight=False, soft_wrap=True)


def _print_epoch(console: Console, name: str, line: dict[str, Any]) -> None:
    validation = line.get("validation", {})
    uars = "".join(f"  {corpus} {uar:.3f}" for corpus, uar in validation.items())
    console.print(
        f"{name} epoch {line['epoch'] + 1:2d}  loss {line['loss']:.3f}{uars}  {line['seconds']} s",
        highlight=False,
        soft_wrap=True,
    )


def _print_results(console: Console, results: dict[str, Any]) -> None:
    genders = sorted({name for corpus in results["corpora"].values() for name in corpus["gender"]})
    table = Table(title=results["protocol"], box=box.SIMPLE, padding=(0, 1, 0, 0))
    table.add_column("corpus", no_wrap=True)
    for heading in ("speakers", "n", "UAR", "95 %", "WA", *genders, "telephone"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, corpus in results["corpora"].items():
        by_gender = (corpus["gender"].get(gender) for gender in genders)
        table.add_row(
            name,
            f"{corpus['speakers']}",
            f"{corpus['n']}",
            f"{corpus['uar']:.3f}",
            "{:.3f}-{:.3f}".format(*corpus["interval"]),
            f"{corpus['wa']:.3f}",
            *(f"{report['uar']:.3f}" if report else "-" for report in by_gender),
            f"{results['telephone'][name]['uar']:.3f}",
        )
    console.print(table)
    mean = results["mean"]
    num_unanswered = sum(sum(corpus["unanswered"]) for corpus in results["corpora"].values())
    lines = [
        f"UAR, mean over corpora: {mean['clean']:.3f}; telephone: {mean['telephone']:.3f}",
        f"utterances without a turn, which count as wrong: {num_unanswered}",
    ]
    for kind, temperature in results["calibration"].items():
        ece = results["ece"][kind]
        lines.append(
            f"{kind}: temperature {temperature:.3f}, calibration error {ece['before']:.3f} before, "
            f"{ece['after']:.3f} after"
        )
    console.print("\n".join(lines), highlight=False)


if __name__ == "__main__":
    sys.exit(main())
