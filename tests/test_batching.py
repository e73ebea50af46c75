from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamer.batching import Batcher
from streamer.errors import ConfigError, ModelError
from streamer.model import Model, Scores
from tests.models import tiny_model
from tests.scorers import make_card

DEADLINE_S = 30


def window(value: float = 0.0) -> np.ndarray:
    return np.full((3, 26, 200), value, np.float32)


def windows(n: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 8, (n, 3, 26, 1)) + rng.normal(0, 4, (n, 3, 26, 200))
    return np.asarray(noise, np.float32)


class FakeModel:
    """Says of each window its first value; waits at the gate; fails where a value is 13."""

    def __init__(self, *, is_open: bool = True, error: type[Exception] = ModelError) -> None:
        self.card = make_card()
        self.batches: list[list[float]] = []
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self._error = error
        if is_open:
            self.gate.set()

    def score(self, batch: np.ndarray) -> Scores:
        self.batches.append(batch[:, 0, 0, 0].tolist())
        self.entered.release()
        assert self.gate.wait(DEADLINE_S)
        if (batch == 13).any():
            raise self._error("thirteen")
        logits = np.repeat(batch[:, 0, 0, :1], 4, axis=1)
        logits[logits == 14] = np.inf
        return Scores(logits, np.zeros((len(batch), 64), np.float32), batch[:, 0, 0])


def batcher_of(model: Any, **settings: Any) -> Batcher:
    return Batcher(model, **settings)


@pytest.fixture
def held() -> Iterator[tuple[FakeModel, Batcher, Future[Any]]]:
    """A batcher of one thread that is busy with a first window until the gate is opened."""
    model = FakeModel(is_open=False)
    with batcher_of(model, num_workers=1) as batcher:
        first = batcher.submit(window())
        assert model.entered.acquire(timeout=DEADLINE_S)
        yield model, batcher, first
        model.gate.set()


def test_scores_are_those_of_the_window_alone(tmp_path: Path) -> None:
    model = Model.load(tiny_model(tmp_path), provider="cpu")
    inputs = windows(24)
    expected = [model.score(one[None]).logits[0] for one in inputs]
    found: dict[int, Future[Any]] = {}

    def call(seed: int) -> None:
        mine = list(range(seed, 24, 6))
        random.Random(seed).shuffle(mine)
        for number in mine:
            found[number] = batcher.submit(inputs[number])

    with Batcher(model) as batcher:
        calls = [threading.Thread(target=call, args=(seed,)) for seed in range(6)]
        for thread in calls:
            thread.start()
        for thread in calls:
            thread.join()
        for number, future in found.items():
            # Law 1: batching moves last bits, never more than 1e-4.
            np.testing.assert_allclose(future.result(DEADLINE_S), expected[number], atol=1e-4)
        assert len(found) == batcher.num_scored == 24
        assert 1 <= batcher.num_batches <= 24
        assert batcher.card is model.card


def test_a_batch_is_what_is_waiting_in_order(held: tuple[FakeModel, Batcher, Any]) -> None:
    model, batcher, first = held
    futures = [batcher.submit(window(value)) for value in range(20, 40)]
    assert batcher.num_waiting == 20
    model.gate.set()
    assert [future.result(DEADLINE_S)[0] for future in futures] == list(range(20, 40))
    assert first.result(DEADLINE_S).shape == (4,)
    assert model.batches == [[0], list(range(20, 36)), list(range(36, 40))]
    assert (batcher.num_scored, batcher.num_batches, batcher.num_waiting) == (21, 3, 0)


def test_a_lone_window_does_not_wait_for_others() -> None:
    model = FakeModel()
    with batcher_of(model) as batcher:
        assert batcher.submit(window(3)).result(DEADLINE_S).tolist() == [3] * 4
    assert model.batches == [[3]]


def test_poisoned_windows_fail_alone(held: tuple[FakeModel, Batcher, Any]) -> None:
    model, batcher, _ = held
    good = [batcher.submit(window(value)) for value in (1, 2)]
    fails = batcher.submit(window(13))
    good.append(batcher.submit(window(3)))
    model.gate.set()
    with pytest.raises(ModelError, match="thirteen"):
        fails.result(DEADLINE_S)
    assert [future.result(DEADLINE_S)[0] for future in good] == [1, 2, 3]
    assert model.batches == [[0], [1, 2, 13, 3], [1], [2], [13], [3]]
    infinite = batcher.submit(window(14))
    with pytest.raises(ModelError, match=r"logits \[inf, .*expected finite"):
        infinite.result(DEADLINE_S)
    assert batcher.num_scored == 4


@pytest.mark.parametrize(
    "wrong",
    [
        window(np.nan),
        window(np.inf),
        np.zeros((3, 26, 199), np.float32),
        np.zeros((3, 26, 200), np.float64),
    ],
)
def test_a_wrong_window_never_reaches_the_model(wrong: np.ndarray) -> None:
    model = FakeModel()
    with batcher_of(model) as batcher:
        with pytest.raises(ModelError, match="expected"):
            batcher.submit(wrong).result(DEADLINE_S)
        assert batcher.submit(window(1)).result(DEADLINE_S)[0] == 1
    assert model.batches == [[1]]


def test_a_fault_in_the_model_is_told_and_survived() -> None:
    model = FakeModel(error=ZeroDivisionError)
    with batcher_of(model, num_workers=1) as batcher:
        with pytest.raises(ModelError, match="scoring failed: ZeroDivisionError: thirteen"):
            batcher.submit(window(13)).result(DEADLINE_S)
        assert batcher.submit(window(1)).result(DEADLINE_S)[0] == 1


def test_cancelled_before_its_turn_is_never_scored(held: tuple[FakeModel, Batcher, Any]) -> None:
    model, batcher, first = held
    cancelled, kept = batcher.submit(window(1)), batcher.submit(window(2))
    assert cancelled.cancel()
    assert not first.cancel(), "it has begun"
    model.gate.set()
    assert kept.result(DEADLINE_S)[0] == 2
    assert model.batches == [[0], [2]]
    assert cancelled.cancelled()


def test_a_batch_of_cancelled_windows_is_no_batch(held: tuple[FakeModel, Batcher, Any]) -> None:
    model, batcher, _ = held
    assert all(batcher.submit(window(value)).cancel() for value in range(16))
    kept = batcher.submit(window(2))
    model.gate.set()
    assert kept.result(DEADLINE_S)[0] == 2
    assert model.batches == [[0], [2]]


def test_idle_threads_share_what_is_waiting() -> None:
    model = FakeModel(is_open=False)
    with batcher_of(model, num_workers=2) as batcher:
        first = [batcher.submit(window(value)) for value in (1, 2)]
        for _ in first:
            assert model.entered.acquire(timeout=DEADLINE_S)
        assert sorted(model.batches) == [[1], [2]], "neither waits behind the other"
        model.gate.set()
        assert not wait(first, DEADLINE_S).not_done


def test_close_fails_what_is_waiting_and_ends_the_threads() -> None:
    model = FakeModel(is_open=False)
    batcher = batcher_of(model, num_workers=1)
    running = batcher.submit(window(1))
    assert model.entered.acquire(timeout=DEADLINE_S)
    waiting, cancelled = batcher.submit(window(2)), batcher.submit(window(3))
    assert cancelled.cancel()
    # What waits is failed before the running batch is waited for: that is when the gate opens.
    waiting.add_done_callback(lambda future: model.gate.set())
    batcher.close()
    assert running.result(0)[0] == 1
    for future in (waiting, batcher.submit(window(4))):
        with pytest.raises(ModelError, match="closed"):
            future.result(0)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("scoring-")]
    batcher.close()
    assert model.batches == [[1]]


def test_close_from_a_callback() -> None:
    batcher = batcher_of(FakeModel(), num_workers=2)
    closed = threading.Event()

    def close(future: Future[Any]) -> None:
        batcher.close()
        closed.set()

    batcher.submit(window()).add_done_callback(close)
    assert closed.wait(DEADLINE_S)


@pytest.mark.parametrize("settings", [{"max_batch": 0}, {"num_workers": 0}])
def test_refuses_less_than_one(settings: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="expected 1 or more"):
        batcher_of(FakeModel(), **settings)
