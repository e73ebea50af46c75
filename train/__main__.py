"""``python -m train``: fit a network, fit the folds, evaluate them."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from streamer.errors import ConfigError, SerStreamError
from train import adapt_command, evaluate_command
from train.checkpoint import num_epochs_done
from train.commands import (
    add_data_options,
    add_held_out_option,
    load_utterances,
    positive,
    progress_bar,
)
from train.config import FitConfig, load_config
from train.copies import noise_utterances
from train.corpora import Utterance
from train.dataset import cache_clips
from train.devices import DEVICES, require_device
from train.folds import FoldsConfig, News, fit_fold, fit_side_by_side, is_fold_finished
from train.loop import fit
from train.material import find_surroundings
from train.reproduce_command import add_options, run_command
from train.splits import HeldOut, Split, folds_of, split_all
from train.teacher import cache_states, copy_heard

EXAMPLES = """\
examples:
  python -m train fit --config paper --fold 0              one fold of ../shared/data
  python -m train fit --manifest calls.csv --all           your own speech, nobody held out
  python -m train fit --fold 0 --set epochs=10 --set network.num_heads=2
  python -m train folds --config paper -o runs/paper       the five folds, in turn
  python -m train evaluate runs/paper --jobs 2             what they are worth on unheard speakers
  python -m train folds --config ours --held-out corpora   each corpus, by a network of the others
  python -m train evaluate can.onnx --data DIR             one model file, as it would be served
  python -m train reproduce --corpora emodb --small        the paper's tables and figures
  python -m train adapt streamer/models/can.onnx --manifest calls.csv -o mine.onnx
"""
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
    whom.add_argument("--fold", type=int, metavar="K", help="hold out fold K")
    whom.add_argument(
        "--all", action="store_true", help="train on everybody: the model that ships, no test"
    )
    one.add_argument("-o", "--output", type=Path, help="its folder (runs/CONFIG/foldK or .../all)")
    _add_training_options(one)
    one.set_defaults(run=_fit, after_interrupt="the same command goes on after the last epoch:")
    five = commands.add_parser(
        "folds", help="the trainings of all folds", description=_folds.__doc__
    )
    five.add_argument("-o", "--output", type=Path, help="their folder (runs/CONFIG)")
    five.add_argument("--jobs", type=positive, default=1, help="folds at a time (1)")
    _add_training_options(five)
    five.set_defaults(run=_folds, after_interrupt="the same command goes on after the last epochs:")
    evaluate_command.add_parser(commands)
    adapt_command.add_parser(commands)
    again = commands.add_parser(
        "reproduce", help="the paper's tables and figures", description=_reproduce.__doc__
    )
    add_options(again)
    again.add_argument("--config", default="paper", help="the full network's (paper)")
    again.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change it")
    again.add_argument(
        "--cache", type=Path, default=CACHE, help=f"where features are kept ({CACHE})"
    )
    _add_sounds_options(again)
    again.set_defaults(run=_reproduce, after_interrupt="the same command goes on where it was:")
    return parser


def _add_training_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", default="paper", help="a name in train/configs, or a TOML file (paper)"
    )
    add_held_out_option(parser)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one setting, such as epochs=10 or loss.alpha=0.5; may be repeated",
    )
    parser.add_argument("--device", choices=DEVICES, default="cpu", help="(cpu)")
    parser.add_argument("--threads", type=positive, help="of each training (as many as cores)")
    parser.add_argument(
        "--cache", type=Path, default=CACHE, help=f"where features are kept ({CACHE})"
    )
    _add_sounds_options(parser)


def _add_sounds_options(parser: argparse.ArgumentParser) -> None:
    add_data_options(parser)
    parser.add_argument(
        "--aux", type=Path, help="noises and rooms: its folders esc10 and rir (DATA/aux)"
    )


def _fit(options: argparse.Namespace, console: Console) -> None:
    """Train one network; a folder that was begun before is continued to the same result."""
    if options.all and options.held_out == "corpora":
        raise ConfigError("--all with --held-out corpora: expected one of them, as all train")
    config, utterances = _begin(options)
    if options.all:
        split, name = split_all(utterances), "all"
    else:
        split, name = _fold(utterances, options), f"fold{options.fold}"
    folder = options.output or _run_folder(config, options.held_out) / name
    _fill_cache(utterances, config, options, console)
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
            aux=_aux(options),
            device=options.device,
            report=lambda line: _print_epoch(progress.console, name, line),
            advance=lambda share: progress.update(task, completed=share),
            note=lambda text: _print_note(progress.console, name, text),
        )
    kept = folder / "best.pt"
    console.print(f"done: {kept}", markup=False, highlight=False)
    if config.refit and not options.all:
        note = f"{config.name} trains a second time, on validation speakers too: `folds` does both"
        console.print(note, markup=False, highlight=False)


def _folds(options: argparse.Namespace, console: Console) -> None:
    """Train the networks of the folds, each without the speakers that will test it.

    These are a fifth of every corpus's speakers in turn or, with --held-out corpora, all those of
    one corpus, of whose language and rooms they then know nothing. What is finished is passed over,
    what was begun is continued.
    """
    config, utterances = _begin(options)
    run = options.output or _run_folder(config, options.held_out)
    folds = FoldsConfig(
        fit=config, run=run, cache=options.cache, aux=_aux(options), device=options.device
    )
    splits = folds_of(utterances, options.held_out)
    waiting = [split for split in splits if not is_fold_finished(split, folds)]
    num_finished = len(splits) - len(waiting)
    console.print(f"{num_finished} of {len(splits)} folds are finished", highlight=False)
    if waiting:
        _fill_cache(utterances, config, options, console)
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


def _reproduce(options: argparse.Namespace, console: Console) -> None:
    """Train the paper's variants and the systems beside it, and lay its tables and figures out.

    What is finished is passed over; a report with its figures comes of all of it.
    """
    run_command(load_utterances(options), options, console)


def _begin(options: argparse.Namespace) -> tuple[FitConfig, Sequence[Utterance]]:
    config = load_config(options.config, options.set)
    require_device(options.device)
    if options.threads:
        torch.set_num_threads(options.threads)
    return config, load_utterances(options)


def _aux(options: argparse.Namespace) -> Path:
    aux: Path = options.aux or options.data / "aux"
    return aux


def _run_folder(config: FitConfig, held_out: HeldOut) -> Path:
    """Return where trainings go by default: those of other folds to a folder of their own."""
    return Path("runs", config.name if held_out == "speakers" else f"{config.name}-{held_out}")


def _fold(utterances: Sequence[Utterance], options: argparse.Namespace) -> Split:
    splits: list[Split] = folds_of(utterances, options.held_out)
    fold: int = options.fold
    if not 0 <= fold < len(splits):
        raise ConfigError(f"--fold {fold}: expected 0 to {len(splits) - 1}")
    return splits[fold]


def _fill_cache(
    utterances: Sequence[Utterance],
    config: FitConfig,
    options: argparse.Namespace,
    console: Console,
) -> None:
    """Compute what features are not there yet, under a bar of its own."""
    surroundings = find_surroundings(config, _aux(options))
    copies = dict.fromkeys((*config.shares, *config.copies_taught))
    parts = [(list(utterances), copy) for copy in copies]
    if config.noise_alone:
        parts.append((list(noise_utterances(surroundings)), "clean"))
    heard = {copy_heard(copy) for copy in config.copies_taught}
    with progress_bar(console) as progress:
        task = progress.add_task("features", total=sum(len(part) for part, _ in parts))
        for part, condition in parts:
            cache_clips(
                part,
                condition,
                config.features,
                config.window,
                options.cache,
                lambda: progress.advance(task),
                surroundings=surroundings,
            )
        task = progress.add_task("teacher", total=len(heard) * len(utterances), visible=bool(heard))
        for copy in sorted(heard):
            cache_states(
                utterances, copy, config.features, options.cache, lambda: progress.advance(task)
            )


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
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


if __name__ == "__main__":
    sys.exit(main())
