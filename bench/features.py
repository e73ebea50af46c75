"""Time that one call of the feature stream takes, for 1, 2, 25 and 200 new frames."""

from __future__ import annotations

import json
import statistics
import time

import numpy as np

from streamer.features import FeatureConfig, FeatureStream


def call_us(num_frames: int, num_calls: int) -> float:
    """Return the median time of `receive`, in microseconds, for audio of so many frames."""
    config = FeatureConfig()
    stream = FeatureStream(config)
    rng = np.random.default_rng(0)
    audio = (0.05 * rng.standard_normal(num_frames * config.frame_shift)).astype(np.float32)
    for _ in range(10):  # until the first frames are out and every table is made
        stream.receive(audio)
    times_ns = []
    for _ in range(num_calls):
        start_ns = time.perf_counter_ns()
        frames = stream.receive(audio)
        times_ns.append(time.perf_counter_ns() - start_ns)
        assert len(frames) == num_frames
    return statistics.median(times_ns) / 1_000


def main() -> None:
    """Print one JSON object."""
    result = {
        str(num_frames): round(call_us(num_frames, num_calls=2_000 if num_frames < 100 else 500), 1)
        for num_frames in (1, 2, 25, 200)
    }
    print(json.dumps({"median_us_of_a_call_by_new_frames": result}))


if __name__ == "__main__":
    main()
