"""CPU time that one window takes on one thread at batch 1, 4 and 16, beside a plain matrix product.

``python bench/scoring.py [MODEL]``: a file, or the name of a shipped model. Only the ratio to the
product of two square matrices, timed in turn with it, compares between machines and loads.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable

# Before NumPy: its product, too, has one thread.
os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")

import numpy as np

from streamer.model import Model

MATRIX_SIZE = 512  # 134 million multiply-adds; a window of CAN has 50 to 77 million


def time_ms(work: Callable[[], object]) -> float:
    # Both run on this thread alone, and its own clock stands still while others have the core.
    start_ns = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - start_ns) / 1e6


def main() -> None:
    """Print a line a batch size, then one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="else the shipped default")
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    model = Model.load(arguments.model, provider="cpu")
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(MATRIX_SIZE, MATRIX_SIZE)).astype(np.float32)
    matmul_ms, result = [], {}
    for size in (1, 4, 16):
        batch = rng.normal(0, 5, (size, *model.card.input_shape)).astype(np.float32)
        times_ms, ratios = [], []
        for _ in range(max(10, arguments.rounds // size)):
            plain_ms = time_ms(lambda: matrix @ matrix)
            times_ms.append(time_ms(lambda batch=batch: model.score(batch)) / size)
            ratios.append(times_ms[-1] / plain_ms)
            matmul_ms.append(plain_ms)
        result[f"batch_{size}"] = {
            "ms_a_window": round(statistics.median(times_ms), 3),
            "matmuls_a_window": round(statistics.median(ratios), 3),
        }
        print(f"batch {size:2}: {result[f'batch_{size}']}")
    result["matmul_ms"] = round(statistics.median(matmul_ms), 3)
    print(json.dumps({"model": model.card.name, "matrix_size": MATRIX_SIZE, **result}))


if __name__ == "__main__":
    main()
