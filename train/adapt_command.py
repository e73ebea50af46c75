"""``python -m train adapt``: the shipped model, further trained on a folder of one's own."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from streamer.errors import ConfigError
from train.adapt import MIN_SPEAKERS, AdaptConfig, adapt
from train.card_page import card_page
from train.commands import positive, progress_bar
from train.corpora import LABELS, load_manifest


def add_parser(commands: Any) -> None:
    """Define the command: ``options.run(options, console)`` does it."""
    tuned = commands.add_parser("adapt", help="fit to your own speech", description=run.__doc__)
    tuned.add_argument(
        "model", type=Path, metavar="MODEL", help="an ONNX file, or a training's checkpoint"
    )
    tuned.add_argument(
        "--manifest",
        type=Path,
        required=True,
        help="your own CSV with the columns path, speaker and label",
    )
    tuned.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE.onnx", help="the new model"
    )
    tuned.add_argument("--name", help="the new model's name; else the file's")
    tuned.add_argument("--licence", default="", help="of your own speech, for the card")
    tuned.add_argument("--card", type=Path, metavar="FILE.md", help="write the card as a page, too")
    tuned.add_argument("--epochs", type=positive, default=AdaptConfig.epochs, help="(%(default)s)")
    tuned.add_argument("--threads", type=positive, help="(as many as cores)")
    tuned.set_defaults(run=run, after_interrupt="nothing was written; this starts it again:")


def run(options: argparse.Namespace, console: Console) -> None:
    """Train a model a little further on your own speech, and say whether it became better.

    That is told by speakers who are left out in turn, before and after, with a 95 % interval; what
    is written has then heard all of them. A model that became worse is not written.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    for path in (options.output, options.card):
        if path and not path.parent.is_dir():
            raise ConfigError(f"{path}: expected a folder for it, found none")
    utterances = load_manifest(options.manifest)
    labelled = [utterance for utterance in utterances if utterance.label]
    num_speakers = len({utterance.speaker_id for utterance in labelled})
    missing = sorted(set(LABELS) - {utterance.label for utterance in labelled if utterance.label})
    if missing:
        console.print(f"no utterance is {' or '.join(missing)}: the model may forget those labels")
    if num_speakers < MIN_SPEAKERS:
        console.print(
            f"{num_speakers} speakers: whether it becomes better cannot be told, as that takes "
            f"{MIN_SPEAKERS} or more, left out in turn"
        )
    with progress_bar(console) as progress:
        task = progress.add_task("steps", total=None)
        adapted = adapt(
            options.model,
            utterances,
            options.output,
            AdaptConfig(epochs=options.epochs),
            name=options.name or options.output.stem,
            licence=options.licence,
            begin=lambda total: progress.update(task, total=total),
            advance=lambda count: progress.advance(task, count),
        )
    if options.card:
        options.card.write_text(card_page(adapted.card), encoding="utf-8")
    if adapted.verdict:
        console.print(adapted.verdict.sentence(), markup=False, highlight=False)
    console.print(
        f"done: {options.output}; torch and ONNX Runtime differ by "
        f"{adapted.agreement.difference:.1e} at most",
        markup=False,
        highlight=False,
    )
