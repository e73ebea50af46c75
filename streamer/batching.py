"""Windows of all calls, gathered into batches for one model on worker threads."""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future
from types import TracebackType
from typing import NamedTuple, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from streamer.arrays import WindowFeatures
from streamer.card import Card
from streamer.errors import ConfigError, ModelError
from streamer.model import Model

Logits: TypeAlias = NDArray[np.float32]
"""One number a label, before the softmax, shape (num_labels,)."""


class Scorer(Protocol):
    """Whoever scores windows: threads here, another machine, a fake."""

    @property
    def card(self) -> Card:
        """The card of the model that scores."""
        ...

    def submit(self, features: WindowFeatures) -> Future[Logits]:
        """Hand one window over, shape (3, num_rows, num_frames); its logits come in the future.

        Never raises: what is wrong comes in the future, too, as a ModelError. Cancelling the future
        works until scoring has begun.
        """
        ...


class _Waiting(NamedTuple):
    features: WindowFeatures
    future: Future[Logits]


class Batcher:
    """A scorer: first come, first served, over all calls; a batch is what is waiting, no more.

    Nobody waits for a batch to fill: it grows only while the threads are busy. Each caller bounds
    what it has outstanding, and with that the queue. To be closed, or used in a ``with``.

    Args:
        model: what scores; its ``score`` is called from several threads at once.
        max_batch: windows in one batch at most.
        num_workers: threads; ONNX Runtime lets go of the GIL, so two of them use two cores.

    Raises:
        ConfigError: less than one of either.
    """

    def __init__(
        self, model: Model, *, max_batch: int = 16, num_workers: int | None = None
    ) -> None:
        if num_workers is None:
            num_workers = min(2, os.cpu_count() or 1)
        if max_batch < 1 or num_workers < 1:
            raise ConfigError(
                f"max_batch {max_batch}, num_workers {num_workers}: expected 1 or more of both"
            )
        self._model = model
        self._max_batch = max_batch
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._num_idle = num_workers
        self.num_scored = 0
        """Windows whose logits were given out."""
        self.num_batches = 0
        """Calls of the model, those of a failed batch's single windows included."""
        self._threads = [
            threading.Thread(target=self._work, name=f"scoring-{number}", daemon=True)
            for number in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def card(self) -> Card:
        """The model's card."""
        return self._model.card

    @property
    def num_waiting(self) -> int:
        """Windows in the queue, cancelled ones included until their turn comes."""
        return len(self._queue)

    def submit(self, features: WindowFeatures) -> Future[Logits]:
        """Queue one window; see :meth:`Scorer.submit`."""
        future: Future[Logits] = Future()
        expected = self._model.card.input_shape
        if features.shape != expected or features.dtype != np.float32:
            future.set_exception(
                ModelError(
                    f"a window of shape {features.shape}, {features.dtype}: expected {expected}, "
                    "float32"
                )
            )
            return future
        # ONNX Runtime may make finite logits of a NaN, so what comes out cannot tell.
        if not np.isfinite(features).all():
            future.set_exception(ModelError("a window that is not finite: expected finite values"))
            return future
        with self._changed:
            if not self._closed:
                self._queue.append(_Waiting(features, future))
                self._changed.notify()
                return future
        future.set_exception(_closed_error())
        return future

    def close(self) -> None:
        """Finish the batches that have begun, fail what is waiting with a ModelError, end threads.

        A second call does nothing.
        """
        with self._changed:
            self._closed = True
            waiting = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for _, future in waiting:
            if future.set_running_or_notify_cancel():
                future.set_exception(_closed_error())
        for thread in self._threads:
            if thread is not threading.current_thread():  # a future's callback may close us
                thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _work(self) -> None:
        while (batch := self._take()) is not None:
            if batch:
                self._score(batch)
            with self._changed:
                self._num_idle += 1

    def _take(self) -> list[_Waiting] | None:
        """Wait for windows and take this thread's share of them; None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if self._closed:
                return None
            # Idle threads share what is there: two half batches on two cores are done sooner.
            share = min(self._max_batch, -(-len(self._queue) // self._num_idle))
            taken = [self._queue.popleft() for _ in range(share)]
            self._num_idle -= 1
        return [waiting for waiting in taken if waiting.future.set_running_or_notify_cancel()]

    def _score(self, batch: list[_Waiting]) -> None:
        """Score a batch; where it fails as a whole, one by one, so that one window fails alone."""
        with self._changed:
            self.num_batches += 1
        try:
            logits = self._model.score(np.stack([features for features, _ in batch])).logits
        except Exception as error:  # noqa: BLE001 - a thread's edge: every caller must hear of it
            if len(batch) > 1:
                for waiting in batch:
                    self._score([waiting])
            else:
                _fail(batch[0].future, error)
            return
        finite = [bool(np.isfinite(row).all()) for row in logits]
        with self._changed:
            self.num_scored += sum(finite)
        for (_, future), row, is_finite in zip(batch, logits, finite, strict=True):
            if is_finite:
                future.set_result(row.copy())
            else:
                _fail(future, ModelError(f"logits {row.tolist()}: expected finite ones"))


def _fail(future: Future[Logits], error: Exception) -> None:
    if not isinstance(error, ModelError):
        cause, error = error, ModelError(f"scoring failed: {type(error).__name__}: {error}")
        error.__cause__ = cause
    future.set_exception(error)


def _closed_error() -> ModelError:
    return ModelError("closed: expected windows while the batcher is open")
