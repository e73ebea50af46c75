"""Many trainings, in turn or side by side, each in one thread of a process that takes the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing import connection, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import torch

from streamer.errors import ConfigError, SerStreamError
from train.reproduce_fit import Training, run_training


def run_grid(
    trainings: Sequence[Training],
    *,
    jobs: int,
    advance: Callable[[float], None] = lambda trainings: None,
) -> None:
    """Run trainings to their results; ``advance`` gets what was done since, in trainings.

    Interrupted, it leaves finished trainings finished and the others where their last checkpoint
    is.

    Raises:
        SerStreamError: as the training that failed raised it; the others are ended.
        ConfigError: a process was ended from outside.
    """
    if jobs == 1:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for training in trainings:
                run_training(training, _Steps(advance))
        finally:
            torch.set_num_threads(before)
    else:
        _run_side_by_side(deque(trainings), min(jobs, len(trainings)), advance)


class _Steps:
    """Turns the share of a training that is done into what was done since the last time."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        self.advance = advance
        self.share = 0.0

    def __call__(self, share: float) -> None:
        self.advance(share - self.share)
        self.share = share


def _run_side_by_side(
    waiting: deque[Training], jobs: int, advance: Callable[[float], None]
) -> None:
    context = get_context("spawn")
    running: dict[Connection, SpawnProcess] = {}
    steps: dict[Connection, _Steps] = {}
    try:
        for _ in range(jobs):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), daemon=True)
            process.start()
            theirs.close()  # so that we see the end when the process is gone
            running[ours] = process
        while running:
            for channel in [one for one in connection.wait(list(running)) if one in running]:
                assert isinstance(channel, Connection)
                news = _receive(channel, running[channel])
                if isinstance(news, float):
                    steps[channel](news)
                elif waiting:
                    steps[channel] = _Steps(advance)
                    channel.send(waiting.popleft())
                else:
                    channel.send(None)
                    running.pop(channel).join()
    finally:
        for process in running.values():
            process.terminate()


def _receive(channel: Connection, process: SpawnProcess) -> float | None:
    """Return the share of a training that is done, or None from a process that wants the next."""
    try:
        news = channel.recv()
    except EOFError:
        process.join()
        raise ConfigError(
            f"a training's process ended with exit code {process.exitcode}: expected it to go on"
        ) from None
    if isinstance(news, SerStreamError):
        raise news
    share: float | None = news
    return share


def _work(channel: Connection) -> None:
    torch.set_num_threads(1)
    try:
        channel.send(None)
        while (training := channel.recv()) is not None:
            run_training(training, channel.send)
            channel.send(None)
    except SerStreamError as error:
        channel.send(error)
    except (KeyboardInterrupt, BrokenPipeError, EOFError):
        pass  # whoever began it was interrupted too, and says so
