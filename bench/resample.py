"""Time that one 20 ms chunk takes from bytes to samples at 16 kHz, at each rate calls come in."""

from __future__ import annotations

import json
import statistics
import time

from streamer.audio import AudioFormat, Decoder


def chunk_us(format: AudioFormat, num_chunks: int = 2_000) -> float:
    """Returns the median time of `receive`, in microseconds, for chunks of silence."""
    decoder = Decoder(format)
    chunk = bytes(format.sample_rate // 50 * format.bytes_per_block)
    times_ns = []
    for _ in range(num_chunks):
        start_ns = time.perf_counter_ns()
        decoder.receive(chunk)
        times_ns.append(time.perf_counter_ns() - start_ns)
    return statistics.median(times_ns) / 1_000


def main() -> None:
    """Prints one JSON object."""
    formats = [AudioFormat(encoding="mulaw", sample_rate=8_000)] + [
        AudioFormat(sample_rate=rate)
        for rate in (8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
    ]
    result = {f"{f.encoding} {f.sample_rate}": round(chunk_us(f), 1) for f in formats}
    print(json.dumps({"median_us_of_a_20_ms_chunk": result}))


if __name__ == "__main__":
    main()
