"""What a server tells Prometheus: how many calls, how well they are heard, what it costs.

Nothing here tells of a person, and nothing grows with what peers send: labels are dialects, and
codes of ours. One registry a server, so that two of them in one process do not mix.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from streamer import __version__
from streamer.arrays import WindowFeatures
from streamer.batching import Logits, Scorer
from streamer.card import Card
from streamer.events import Event, Lag, Summary, TimedFields
from streamer.records import CallRecord
from streamer.webhooks import WebhookState

_MAX_REASONS = 64
"""Codes that one counter tells apart; whatever comes after them is ``other``."""
_SCORING_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_LAG_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


_OUTCOMES = ("delivered", "retried", "given_up")


@dataclass
class _Tally:
    """What one call has told so far."""

    dialect: str
    reason: str = "unknown"
    dropped: dict[int | None, int] = field(default_factory=dict)


class Metrics:
    """The numbers of one server; a :class:`streamer.records.CallObserver`.

    For the event loop's thread; the scorer of :meth:`timed` may be used on any.

    Args:
        max_calls: that the server hears at once, to be shown beside those that are.
    """

    def __init__(self, *, max_calls: int = 0) -> None:
        self.registry = CollectorRegistry()
        self._tallies: dict[str, _Tally] = {}
        self._reasons: dict[str, set[str]] = {}
        self._add_calls(max_calls)
        self._add_scoring()
        self._add_process()

    def _add_calls(self, max_calls: int) -> None:
        one = self.registry
        self._live = Gauge("ser_calls_live", "Calls that are heard now.", ["dialect"], registry=one)
        limit = Gauge("ser_calls_limit", "Calls that are heard at once, at most.", registry=one)
        limit.set(max_calls)
        self._started = Counter(
            "ser_calls_started", "Calls that have begun.", ["dialect"], registry=one
        )
        self._ended = Counter(
            "ser_calls_ended", "Calls that are over, by why.", ["dialect", "reason"], registry=one
        )
        self._refused = Counter(
            "ser_calls_refused", "Peers that were not let in, by why.", ["reason"], registry=one
        )
        self._audio = Counter(
            "ser_audio_seconds", "Audio of calls that are over.", ["dialect"], registry=one
        )
        self._events = Counter("ser_events", "Events of calls, by type.", ["type"], registry=one)

    def _add_scoring(self) -> None:
        one = self.registry
        self._scored = Counter("ser_windows_scored", "Windows that got scores.", registry=one)
        self._failed = Counter("ser_windows_failed", "Windows that got none.", registry=one)
        self._skipped = Counter(
            "ser_windows_skipped", "Windows that nobody scored, by why.", ["reason"], registry=one
        )
        self._scoring = Histogram(
            "ser_scoring_seconds",
            "From a window's submission to its scores: the queue's wait and the model's time.",
            buckets=_SCORING_S,
            registry=one,
        )
        self._queue = Gauge("ser_queue_windows", "Windows that wait to be scored.", registry=one)
        self._pressure = Gauge(
            "ser_pressure_level",
            "How far scoring is behind: 0 not, 1 wider steps, 2 newest windows, 3 no new calls.",
            registry=one,
        )
        self._lag = Histogram(
            "ser_event_lag_seconds",
            "From the arrival of the last sample that an event needed to the event.",
            buckets=_LAG_S,
            registry=one,
        )

    def _add_process(self) -> None:
        one = self.registry
        self._loop_lag = Histogram(
            "ser_event_loop_lag_seconds",
            "How late a timer of the event loop came.",
            buckets=_LAG_S,
            registry=one,
        )
        self._store_failing = Gauge(
            "ser_store_failing", "1 while results cannot be written.", registry=one
        )
        self._store_pending = Gauge(
            "ser_store_pending_bytes", "Results that wait to be written.", registry=one
        )
        self._store_errors = Counter(
            "ser_store_errors", "Faults of the store that were met.", registry=one
        )
        self._ready = Gauge("ser_ready", "1 while a call would be taken.", registry=one)
        self._build = Gauge(
            "ser_build_info", "What runs here; always 1.", ["version", "model"], registry=one
        )
        ProcessCollector(registry=one)

    def call_started(self, record: CallRecord) -> None:
        """Count a call that has begun."""
        self._tallies[record.session] = _Tally(record.dialect)
        self._started.labels(record.dialect).inc()
        self._live.labels(record.dialect).inc()

    def event(self, record: CallRecord, event: Event) -> None:
        """Count an event of a call that goes on."""
        self._events.labels(event.__struct_config__.tag).inc()
        tally = self._tallies.get(record.session)
        if isinstance(event, Lag) and tally is not None:
            tally.reason = event.reason
        if isinstance(event, TimedFields):
            self._lag.observe(event.lag_ms / 1000)
            self._count_skipped(tally, event.channel, event.dropped)
        elif isinstance(event, Summary):
            for channel in event.channels:
                self._count_skipped(tally, channel.channel, channel.dropped)
            if tally is not None:
                self._audio.labels(tally.dialect).inc(event.duration_s)

    def call_ended(self, record: CallRecord, reason: str) -> None:
        """Count the end of a call; of one that never began, nothing."""
        tally = self._tallies.pop(record.session, None)
        if tally is not None:
            self._live.labels(tally.dialect).dec()
            self._ended.labels(tally.dialect, self._known("ended", reason)).inc()

    def call_refused(self, reason: str) -> None:
        """Count a peer that was not let in, by the code it got."""
        self._refused.labels(self._known("refused", reason)).inc()

    def store_failed(self) -> None:
        """Count a fault of the store."""
        self._store_errors.inc()

    def watch_store(self, fault: Callable[[], str | None], num_bytes: Callable[[], int]) -> None:
        """Ask these why results cannot be written, and how many wait, whenever somebody looks."""
        self._store_failing.set_function(lambda: float(fault() is not None))
        self._store_pending.set_function(num_bytes)

    def watch_queue(self, num_waiting: Callable[[], int]) -> None:
        """Ask this for the length of the queue whenever somebody looks."""
        self._queue.set_function(num_waiting)

    def watch_pressure(self, level: Callable[[], int]) -> None:
        """Ask this for the level of :class:`streamer.pressure.Pressure` whenever somebody looks."""
        self._pressure.set_function(level)

    def watch_readiness(self, is_ready: Callable[[], bool]) -> None:
        """Ask this whether a call would be taken whenever somebody looks."""
        self._ready.set_function(lambda: float(is_ready()))

    def watch_webhooks(self, states: Callable[[], Iterable[WebhookState]]) -> None:
        """Ask this how each webhook does whenever somebody looks."""
        self.registry.register(_WebhookCollector(states))

    def timed(self, scorer: Scorer) -> Scorer:
        """Return the scorer with its windows counted and timed, and name its model."""
        self._build.labels(__version__, scorer.card.name).set(1)
        return _TimedScorer(scorer, self._score_done)

    async def watch_loop(self, period_s: float = 1.0) -> None:
        """Measure for ever how late the event loop is; a task of the server, to be cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            due_s = clock() + period_s
            await asyncio.sleep(period_s)
            self._loop_lag.observe(max(0.0, clock() - due_s))

    def response(self, accept: str = "") -> Response:
        """Return all numbers as text, in the format that a scraper asks for."""
        encode, content_type = choose_encoder(accept)
        return Response(encode(self.registry), headers={"content-type": content_type})

    def route(self, refusal: Callable[[Request], Response | None] = lambda _: None) -> Route:
        """Return ``/metrics``; ``refusal`` answers whoever may not read it, None who may."""

        async def show(request: Request) -> Response:
            return refusal(request) or self.response(request.headers.get("accept", ""))

        return Route("/metrics", show)

    def _count_skipped(self, tally: _Tally | None, channel: int | None, dropped: int) -> None:
        """Count what was skipped since the channel's last event, under the last reason told."""
        if tally is not None and dropped > tally.dropped.get(channel, 0):
            more = dropped - tally.dropped.get(channel, 0)
            self._skipped.labels(self._known("skipped", tally.reason)).inc(more)
            tally.dropped[channel] = dropped

    def _score_done(self, seconds: float, future: Future[Logits]) -> None:
        """Count a window that came back: on whatever thread that happens."""
        if future.cancelled():
            return  # skipped: the call's own events tell why
        if future.exception() is not None:
            self._failed.inc()
            return
        self._scored.inc()
        self._scoring.observe(seconds)

    def _known(self, counter: str, reason: str) -> str:
        """Return a reason's first word, and ``other`` for all of them beyond a bound."""
        word = reason.partition(" ")[0] or "unknown"
        seen = self._reasons.setdefault(counter, set())
        if word not in seen and len(seen) >= _MAX_REASONS:
            return "other"
        seen.add(word)
        return word


class _WebhookCollector(Collector):
    """Tells how webhooks do, by their hosts, which the operator chose."""

    def __init__(self, states: Callable[[], Iterable[WebhookState]]) -> None:
        self._states = states

    def describe(self) -> list[Metric]:
        """Return what will be told, without asking."""
        return list(self._families())

    def collect(self) -> list[Metric]:
        """Return how it is now."""
        went, queued = self._families()
        for host, states in groupby(sorted(self._states()), attrgetter("host")):
            columns = zip(*(state[1:] for state in states), strict=True)
            num_queued, *counts = [sum(column) for column in columns]
            queued.add_metric([host], num_queued)
            for outcome, count in zip(_OUTCOMES, counts, strict=True):
                went.add_metric([host, outcome], count)
        return [went, queued]

    def _families(self) -> tuple[CounterMetricFamily, GaugeMetricFamily]:
        return (
            CounterMetricFamily(
                "ser_webhooks", "Messages, by how they went.", labels=["host", "outcome"]
            ),
            GaugeMetricFamily("ser_webhooks_queued", "Messages that wait.", labels=["host"]),
        )


class _TimedScorer:
    """A scorer that tells how long each window took."""

    def __init__(self, scorer: Scorer, done: Callable[[float, Future[Logits]], None]) -> None:
        self._scorer = scorer
        self._done = done

    @property
    def card(self) -> Card:
        """The card of the model that scores."""
        return self._scorer.card

    def submit(self, features: WindowFeatures) -> Future[Logits]:
        """Hand one window on."""
        since_s = time.perf_counter()
        future = self._scorer.submit(features)
        future.add_done_callback(lambda done: self._done(time.perf_counter() - since_s, done))
        return future
