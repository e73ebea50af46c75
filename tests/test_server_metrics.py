"""What Prometheus is told: counts that add up, and labels that peers cannot multiply."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import PlainTextResponse

from streamer import __version__
from streamer.audio import AudioFormat
from streamer.call import Call, CallConfig
from streamer.dialects import Start
from streamer.drivers import recognize
from streamer.events import ChannelSummary, Lag, Summary, Turn
from streamer.metrics import Metrics
from streamer.records import CallRecord
from streamer.webhooks import WebhookState
from tests.scorers import FakeScorer, encode_audio, make_card, tone_speech

CARD = make_card()
WINDOW = np.zeros(CARD.input_shape, np.float32)


def samples(metrics: Metrics) -> dict[str, float]:
    """Return all numbers by name and labels, as a scraper reads them."""
    text = bytes(metrics.response().body).decode()
    return {
        sample.name
        + "".join(f",{key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def record(session: str, dialect: str = "native") -> CallRecord:
    return CallRecord(
        session=session, call_id="", dialect=dialect, roles=(), started_at=0.0, start=Start()
    )


def summary(dropped: int, duration_s: float = 12.5) -> Summary:
    channel = ChannelSummary(
        channel=0, role="customer", analysed=True, speech_s=3.0, turns=1, emotions=2,
        windows_scored=2, frames_computed=9, dropped=dropped, labels={},
    )  # fmt: skip
    return Summary(duration_s=duration_s, max_lag_ms=1.0, channels=(channel,))


def test_a_call_is_counted_from_its_start_to_its_end() -> None:
    metrics = Metrics(max_calls=7)
    metrics.call_started(record("a"))
    metrics.call_started(record("b", "twilio"))
    found = samples(metrics)
    assert found["ser_calls_limit"] == 7
    assert found["ser_calls_live,dialect=native"] == found["ser_calls_live,dialect=twilio"] == 1
    metrics.event(record("a"), summary(0))
    for _ in range(2):  # an end that is told twice is one end
        metrics.call_ended(record("a"), "end")
    found = samples(metrics)
    assert found["ser_calls_live,dialect=native"] == 0
    assert found["ser_calls_ended_total,dialect=native,reason=end"] == 1
    assert found["ser_calls_started_total,dialect=native"] == 1
    assert found["ser_audio_seconds_total,dialect=native"] == 12.5


def test_skipped_windows_are_counted_once_under_the_reason_told() -> None:
    metrics = Metrics()
    metrics.call_started(record("a"))
    window = {"start_s": 1.0, "end_s": 3.0, "channel": 0, "role": "customer"}
    turn = {"label": "sad", "scores": {}, "windows": 1, **window}
    metrics.event(record("a"), Lag(**window, lag_ms=900.0, dropped=1, reason="overload"))
    metrics.event(record("a"), Turn(**turn, lag_ms=40.0, dropped=4))
    metrics.event(record("a"), Lag(**window, dropped=5, reason="unscorable"))
    metrics.event(record("a"), summary(7))
    found = samples(metrics)
    assert found["ser_windows_skipped_total,reason=overload"] == 4
    assert found["ser_windows_skipped_total,reason=unscorable"] == 3
    assert found["ser_event_lag_seconds_count"] == 3
    assert found["ser_event_lag_seconds_sum"] == pytest.approx(0.94)


def test_counts_are_those_of_a_real_calls_summary() -> None:
    metrics = Metrics()
    scorer = metrics.timed(FakeScorer(CARD))
    metrics.call_started(record("a"))
    pcm = encode_audio([np.concatenate([tone_speech(3.0), np.zeros(16000, np.float32)])],
                       AudioFormat())  # fmt: skip

    events = list(recognize(Call(CARD, CallConfig()), [pcm], scorer))
    for event in events:
        metrics.event(record("a"), event)
    last = events[-1]
    assert isinstance(last, Summary)
    found = samples(metrics)
    assert found["ser_windows_scored_total"] == last.channels[0].windows_scored > 0
    assert found["ser_events_total,type=emotion"] == last.channels[0].emotions
    assert found["ser_scoring_seconds_count"] == found["ser_windows_scored_total"]
    assert found[f"ser_build_info,model={CARD.name},version={__version__}"] == 1


def test_windows_that_fail_or_are_cancelled_are_not_scored() -> None:
    metrics = Metrics()
    failing = metrics.timed(FakeScorer(CARD, fails=lambda _: True)).submit(WINDOW)
    assert failing.exception() is not None
    held = metrics.timed(FakeScorer(CARD, answer="held")).submit(WINDOW)
    held.cancel()
    with pytest.raises(CancelledError):
        held.result()
    found = samples(metrics)
    assert (found["ser_windows_failed_total"], found["ser_windows_scored_total"]) == (1, 0)


def test_peers_cannot_multiply_labels() -> None:
    metrics = Metrics()
    for number in range(500):
        metrics.call_refused(f"code-{number}")
        metrics.call_started(record("a"))
        metrics.call_ended(record("a"), f"disconnected {3000 + number}")
    found = samples(metrics)
    refused = [name for name in found if name.startswith("ser_calls_refused_total")]
    assert len(refused) <= 65
    assert found["ser_calls_refused_total,reason=other"] == 500 - 64
    assert found["ser_calls_ended_total,dialect=native,reason=disconnected"] == 500


def test_what_is_asked_for_when_somebody_looks() -> None:
    metrics = Metrics()
    waiting = [3]
    metrics.watch_queue(waiting.pop)
    metrics.watch_pressure(lambda: 2)
    metrics.watch_readiness(lambda: True)
    metrics.watch_store(lambda: "disk full", lambda: 42)
    metrics.store_failed()
    found = samples(metrics)
    assert (found["ser_queue_windows"], found["ser_ready"]) == (3, 1)
    assert found["ser_pressure_level"] == 2
    assert found["ser_store_errors_total"] == 1
    assert (found["ser_store_failing"], found["ser_store_pending_bytes"]) == (1, 42)
    assert found["process_resident_memory_bytes"] > 0


def test_webhooks_are_told_by_host() -> None:
    metrics = Metrics()
    first, second = WebhookState("a.example", 1, 2, 3, 4), WebhookState("b.example", 0, 0, 0, 1)
    metrics.watch_webhooks(lambda: [first, second, first])
    found = samples(metrics)
    assert found["ser_webhooks_queued,host=a.example"] == 2
    assert found["ser_webhooks_total,host=a.example,outcome=delivered"] == 4
    assert found["ser_webhooks_total,host=a.example,outcome=retried"] == 6
    assert found["ser_webhooks_total,host=b.example,outcome=given_up"] == 1


def test_a_loop_that_is_held_up_is_measured() -> None:
    metrics = Metrics()

    async def hold_up() -> None:
        watching = asyncio.create_task(metrics.watch_loop(period_s=0.001))
        await asyncio.sleep(0)
        until_s = time.perf_counter() + 0.06
        while time.perf_counter() < until_s:
            pass
        await asyncio.wait({watching}, timeout=0.02)
        watching.cancel()

    asyncio.run(hold_up())
    assert samples(metrics)["ser_event_loop_lag_seconds_sum"] > 0.05


def test_two_servers_in_one_process_do_not_mix() -> None:
    first, second = Metrics(), Metrics()
    first.call_started(record("a"))
    assert "ser_calls_live,dialect=native" not in samples(second)


def test_threads_score_while_somebody_looks() -> None:
    metrics = Metrics()
    with FakeScorer(CARD, answer="thread") as scorer:
        timed = metrics.timed(scorer)
        looking = threading.Thread(target=lambda: [samples(metrics) for _ in range(5)])
        looking.start()
        for future in [timed.submit(WINDOW) for _ in range(50)]:
            future.result(10)
        looking.join()
    assert samples(metrics)["ser_windows_scored_total"] == 50


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
def test_route(accept: str) -> None:
    def refusal(request: Any) -> PlainTextResponse | None:
        may = request.headers.get("authorization") == "Bearer scraper"
        return None if may else PlainTextResponse("no token", 401)

    route = Metrics().route(refusal)
    assert asyncio.run(get(route, {}))[0] == 401
    headers = {"authorization": "Bearer scraper", "accept": accept}
    status, content_type, text = asyncio.run(get(route, headers))
    assert status == 200
    assert content_type.startswith("application/openmetrics-text" if accept else "text/plain")
    assert "ser_calls_limit 0.0" in text


async def get(app: Any, headers: dict[str, str]) -> tuple[int, str, str]:
    """Return status, content type and body of a GET, as an ASGI server would."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    pairs = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "GET", "path": "/metrics", "root_path": "", "headers": pairs}
    await app({**scope, "query_string": b""}, receive, send)
    answered = dict(sent[0]["headers"])
    return sent[0]["status"], answered[b"content-type"].decode(), sent[1]["body"].decode()
