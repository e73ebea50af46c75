"""What the commands of ``python -m train`` have in common: their data and their progress."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from train.corpora import Utterance, load_data, load_iemocap, load_manifest
from train.splits import HeldOut

DATA = Path("../shared/data")
_WIDTH = 160
"""Columns where nobody says how many: no cell of a table is cut short."""


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Let a command be told whose speech it works on."""
    data = parser.add_mutually_exclusive_group()
    data.add_argument(
        "--data", type=Path, default=DATA, help=f"a folder of corpora with manifest.csv ({DATA})"
    )
    data.add_argument(
        "--manifest", type=Path, help="your own CSV with the columns path, speaker and label"
    )
    data.add_argument("--iemocap", type=Path, help="IEMOCAP as it is handed out: Session1-5")


def load_utterances(options: argparse.Namespace) -> Sequence[Utterance]:
    """Return all utterances that the options name, those of other emotions as well.

    Raises:
        CorpusError: they cannot be read.
    """
    if options.manifest:
        return load_manifest(options.manifest)
    if options.iemocap:
        return load_iemocap(options.iemocap)
    return load_data(options.data)


def add_held_out_option(parser: argparse.ArgumentParser) -> None:
    """Let a command be told what its folds are of."""
    parser.add_argument(
        "--held-out",
        choices=get_args(HeldOut),
        default="speakers",
        help="a fold's test: a fifth of each corpus's speakers, or a whole corpus (speakers)",
    )


def results_console() -> Console:
    """Return the console for tables: as wide as the terminal, and wide enough in a file or pipe."""
    is_told = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if is_told else _WIDTH)


def positive(text: str) -> int:
    """Read a number of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value}: expected 1 or more")
    return value


def progress_bar(console: Console) -> Progress:
    """Return a bar that counts."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    )
