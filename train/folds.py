"""The trainings of all folds, in turn or side by side in processes of their own."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypeAlias

import torch

from streamer.errors import ConfigError, SerStreamError
from train.checkpoint import REFIT, is_finished
from train.config import FitConfig
from train.loop import fit
from train.progress import Advance, part_of
from train.splits import Split

News: TypeAlias = float | str | dict[str, Any]
"""The share of a fold's training that is done, a note, or the line of one of its epochs."""

Receive: TypeAlias = Callable[[Split, News], None]


@dataclass(frozen=True, kw_only=True)
class FoldsConfig:
    """What all folds have in common: fold k goes to ``run/foldk``."""

    fit: FitConfig
    run: Path
    cache: Path
    aux: Path | None = None
    device: str = "cpu"

    def folder(self, split: Split) -> Path:
        """Return the folder of one fold's training."""
        return self.run / f"fold{split.fold}"


def fit_fold(split: Split, config: FoldsConfig, receive: Receive) -> None:
    """Train one fold; and then, if the configuration says so, its refit."""
    parts = [(split, config.folder(split))]
    if config.fit.refit:
        parts.append((with_validation(split), config.folder(split) / REFIT))
    for number, (part, folder) in enumerate(parts):
        # The voice encoder is taught once: it has no labels to hear more of.
        encoder = config.folder(split) / "best.pt" if number else None
        begin, end = number / len(parts), (number + 1) / len(parts)
        advance = part_of(lambda share: receive(split, share), begin, end)
        _fit_part(part, folder, encoder, config, receive, advance)


def is_fold_finished(split: Split, config: FoldsConfig) -> bool:
    """Tell whether nothing of a fold is left to be trained."""
    folders = [config.folder(split)]
    if config.fit.refit:
        folders.append(config.folder(split) / REFIT)
    return all(is_finished(folder, config.fit) for folder in folders)


def with_validation(split: Split) -> Split:
    """Return the split whose validation speakers train, too."""
    train = sorted((*split.train, *split.validation), key=lambda item: item.utterance_id)
    return replace(split, train=tuple(train), validation=())


def _fit_part(
    split: Split,
    folder: Path,
    encoder: Path | None,
    config: FoldsConfig,
    receive: Receive,
    advance: Advance,
) -> None:
    fit(
        split,
        config.fit,
        folder,
        config.cache,
        aux=config.aux,
        encoder=encoder,
        device=config.device,
        report=lambda line: receive(split, line),
        advance=advance,
        note=lambda text: receive(split, text),
    )


def fit_side_by_side(
    splits: Sequence[Split], config: FoldsConfig, receive: Receive, *, jobs: int, threads: int
) -> None:
    """Train folds in ``jobs`` processes of ``threads`` threads each; one that fails ends them all.

    Raises:
        SerStreamError: as the training that failed raised it.
        ConfigError: a process was ended from outside.
    """
    context = get_context("spawn")
    waiting = deque(splits)
    running: dict[Connection, tuple[SpawnProcess, Split]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                split = waiting.popleft()
                reader, writer = context.Pipe(duplex=False)
                process = context.Process(
                    target=_fit_and_tell, args=(split, config, threads, writer), daemon=True
                )
                process.start()
                writer.close()  # so that the reader sees the end when the process is gone
                running[reader] = (process, split)
            ready = connection.wait(list(running))
            for reader in [one for one in running if one in ready]:
                if not _receive_one(reader, *running[reader], receive):
                    del running[reader]
    finally:
        for process, _ in running.values():
            process.terminate()


def _receive_one(reader: Connection, process: SpawnProcess, split: Split, receive: Receive) -> bool:
    """Pass one piece of news on; return whether more may come."""
    try:
        news = reader.recv()
    except EOFError:
        reader.close()
        process.join()
        if process.exitcode:
            raise ConfigError(
                f"the training of fold {split.fold} ended with exit code {process.exitcode}: "
                "expected 0"
            ) from None
        return False
    if isinstance(news, SerStreamError):
        raise news
    receive(split, news)
    return True


def _fit_and_tell(split: Split, config: FoldsConfig, threads: int, writer: Connection) -> None:
    torch.set_num_threads(threads)
    try:
        fit_fold(split, config, lambda _, news: writer.send(news))
    except SerStreamError as error:
        writer.send(error)
    except (KeyboardInterrupt, BrokenPipeError):
        pass  # whoever began it was interrupted too, and says so
