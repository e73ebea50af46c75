"""What tests use in place of a trained model: a card, a scorer with known logits, a voice."""

from __future__ import annotations

import json
import queue
import random
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Literal, TypeAlias

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.arrays import Samples, WindowFeatures
from streamer.audio import AudioFormat, Resampler, encode_alaw, encode_mulaw
from streamer.call import Call, CallConfig
from streamer.card import Calibration, Card, Corpus
from streamer.errors import ModelError, SourceError
from streamer.events import ChannelEvent, Event, encode_event
from streamer.features import FeatureConfig
from streamer.normalization import NormalizationConfig
from streamer.session import Session, SessionConfig, Window
from streamer.windows import WindowConfig
from tests.golden.synthetic import SAMPLE_RATE, silence, voice

Logits: TypeAlias = NDArray[np.float32]
"""One window's raw scores, (num_labels,)."""

LABELS = ("angry", "happy", "neutral", "sad")


def make_card(*, window: float = 1.5, smoothed: float = 1.25, turn: float = 0.8) -> Card:
    """Return the card of a model that nobody trained; by default no temperature of it is 1."""
    features = FeatureConfig()
    mean = (-40.0, 5.0) + (0.0,) * (features.num_ceps - 2)
    return Card(
        name="fake",
        description="A projection of the mean MFCC, for tests.",
        labels=LABELS,
        features=features,
        normalization=NormalizationConfig(mean=mean),
        window=WindowConfig(),
        calibration=Calibration(window=window, smoothed=smoothed, turn=turn),
        data=(Corpus(name="none", language="none", speakers=1, utterances=1, licence="CC0-1.0"),),
        licence="CC0-1.0",
    )


def tone_speech(seconds: float, seed: int = 0, rate: int = SAMPLE_RATE) -> Samples:
    """Return syllables that the voice activity detector takes for speech, at any rate served."""
    samples: Samples = voice(seconds, seed=seed)
    if rate == SAMPLE_RATE:
        return samples
    resampler = Resampler(SAMPLE_RATE, rate)
    return np.concatenate([resampler.receive(samples), resampler.flush()])


def one_turn(seconds: float, seed: int) -> Samples:
    """Return a turn of so many seconds between the silences that open and close it."""
    return np.concatenate([silence(0.5), tone_speech(seconds, seed), silence(0.8)])


def two_turns() -> bytes:
    """Return 5.2 s of PCM, 16 kHz, mono: turns of 2.6 s and 1.5 s, each with silence after it."""
    turns = [tone_speech(2.6, 1), silence(0.8), tone_speech(1.5, 2), silence(0.3)]
    return encode_audio([np.concatenate(turns)], AudioFormat())


def new_call(audio: AudioFormat | None = None) -> Call:
    """Return a call in which nothing was heard yet; PCM, 16 kHz, mono by default."""
    return Call(make_card(), CallConfig(audio=audio or AudioFormat()))


def fake_logits(features: WindowFeatures, num_labels: int = len(LABELS)) -> Logits:
    """Return one window's logits: a fixed projection of its last half second's mean MFCC.

    Smooth and bounded, so that what the last bits of a feature do cannot be seen in a score.
    """
    mean = features[0, 1:, -50:].mean(axis=1)
    projection = np.random.default_rng(0).normal(0.0, 0.2, (num_labels, len(mean)))
    return np.asarray(3.0 * np.tanh(projection @ mean), np.float32)


class FakeScorer:
    """A scorer with `fake_logits`, whose answers come when the test wants them.

    Args:
        card: The card of the calls that will be scored.
        answer: ``at_once`` answers within `submit`; ``held`` waits for `release`; ``thread``
            answers from a thread of its own, in an order drawn from ``seed``, so use it in a
            ``with`` statement.
        seed: Of the order in which windows are answered, where they are not answered at once.
        fails: Tells of a window that it cannot be scored: its future gets a `ModelError`.
    """

    def __init__(
        self,
        card: Card,
        *,
        answer: Literal["at_once", "held", "thread"] = "at_once",
        seed: int = 0,
        fails: Callable[[WindowFeatures], bool] = lambda features: False,
    ) -> None:
        self._card = card
        self._answer = answer
        self._random = random.Random(seed)
        self._fails = fails
        self._waiting: list[tuple[Future[Logits], WindowFeatures]] = []
        self._queue: queue.SimpleQueue[tuple[Future[Logits], WindowFeatures] | None]
        self._queue = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.num_submitted = 0
        self.num_scored = 0

    @property
    def card(self) -> Card:
        return self._card

    @property
    def num_held(self) -> int:
        """Windows that wait for `release`."""
        return len(self._waiting)

    def submit(self, features: WindowFeatures) -> Future[Logits]:
        """Return the future logits of one window, (num_labels,)."""
        assert features.shape == self._card.input_shape
        assert features.dtype == np.float32
        self.num_submitted += 1
        future: Future[Logits] = Future()
        if self._answer == "at_once":
            self._settle(future, features)
        elif self._answer == "held":
            self._waiting.append((future, features))
        else:
            assert self._thread is not None, 'answer="thread" works within a `with` statement'
            self._queue.put((future, features))
        return future

    def release(
        self, count: int | None = None, *, newest: bool = False, shuffled: bool = False
    ) -> int:
        """Answer held windows, oldest first unless told otherwise; return how many."""
        count = len(self._waiting) if count is None else min(count, len(self._waiting))
        for _ in range(count):
            index = -1 if newest else 0
            if shuffled:
                index = self._random.randrange(len(self._waiting))
            self._settle(*self._waiting.pop(index))
        return count

    def __enter__(self) -> FakeScorer:
        if self._answer == "thread":
            self._thread = threading.Thread(target=self._work, name="fake-scorer", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        ended = False
        waiting: list[tuple[Future[Logits], WindowFeatures]] = []
        while not ended or waiting:
            while not ended and (not waiting or not self._queue.empty()):
                item = self._queue.get()
                if item is None:
                    ended = True
                else:
                    waiting.append(item)
            if waiting:
                self._settle(*waiting.pop(self._random.randrange(len(waiting))))

    def _settle(self, future: Future[Logits], features: WindowFeatures) -> None:
        if not future.set_running_or_notify_cancel():
            return
        if self._fails(features):
            future.set_exception(ModelError("this window cannot be scored, as the test wants it"))
            return
        self.num_scored += 1
        future.set_result(fake_logits(features, len(self._card.labels)))


class OwnScorer:
    """A scorer that makes each window's future as the test says, and keeps them all."""

    def __init__(self, make: Callable[[WindowFeatures], Future[Logits]]) -> None:
        self._make = make
        self.card = make_card()
        self.futures: list[Future[Logits]] = []

    def submit(self, features: WindowFeatures) -> Future[Logits]:
        self.futures.append(self._make(features))
        return self.futures[-1]


def cut(data: bytes, size: int) -> list[bytes]:
    """Return bytes as chunks of one size; the last may be shorter."""
    return [data[start : start + size] for start in range(0, len(data), size)]


def encode_audio(channels: list[Samples], audio: AudioFormat) -> bytes:
    """Return the bytes of samples, one array of one length a channel, in a format of a call."""
    blocks = np.stack(channels, axis=1).reshape(-1)
    match audio.encoding:
        case "mulaw":
            return encode_mulaw(blocks)
        case "alaw":
            return encode_alaw(blocks)
        case "pcm_f32le":
            return blocks.astype("<f4").tobytes()
        case _:
            return np.clip(np.rint(blocks * 32768), -32768, 32767).astype("<i2").tobytes()


def hear(
    call: Call,
    chunks: Iterable[bytes],
    *,
    clock: Callable[[], float] = lambda: 0.0,
    answer: Callable[[Call, Window], None] | None = None,
) -> list[Event]:
    """Return all events of a call whose windows are answered at once: with `fake_logits`, or so."""
    events: list[Event] = []

    def settle() -> None:
        for window in call.windows_to_score():
            if answer is None:
                call.receive_scores(window, fake_logits(window.features))
            else:
                answer(call, window)
        events.extend(call.events_to_send(clock()))

    for chunk in chunks:
        call.receive(chunk, clock())
        settle()
    call.receive_end(clock())
    settle()
    return events


def windows_of(
    samples: Samples, config: SessionConfig | None = None
) -> tuple[Session, list[Window]]:
    """Return a session that has heard samples to their end, and its windows, unanswered."""
    session = Session(config or SessionConfig(), make_card())
    session.receive_audio(samples)
    session.receive_end()
    return session, session.windows_to_score()


def listen(session: Session, samples: Samples, *, end: bool = True) -> list[ChannelEvent]:
    """Feed a session samples, answer all windows with `fake_logits`; return the events."""
    session.receive_audio(samples)
    if end:
        session.receive_end()
    for window in session.windows_to_score():
        session.receive_scores(window, fake_logits(window.features))
    return session.events_to_send()


def of_type(events: Iterable[Event | ChannelEvent], kind: type[Any]) -> list[Any]:
    """Return the events of one kind, in their order."""
    return [event for event in events if isinstance(event, kind)]


def read_until_error(chunks: Iterable[bytes]) -> tuple[list[bytes], str]:
    """Return what came before the SourceError, and what that says."""
    received = []
    with pytest.raises(SourceError) as caught:
        for chunk in chunks:
            received.append(chunk)
    return received, str(caught.value)


def comparable(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Return what any two runs over the same audio must agree on: all but clock and session id."""
    fields = [json.loads(encode_event(event)) for event in events]
    for event in fields:
        for name in ("lag_ms", "max_lag_ms", "session"):
            event.pop(name, None)
    return fields


def assert_same_events(found: Iterable[Event], expected: Iterable[Event]) -> None:
    """Compare two runs exactly, but for scores: batching may move their last bits, so 1e-4."""
    ours, theirs = comparable(found), comparable(expected)
    for one, other in zip(ours, theirs, strict=False):
        for name in ("scores", "raw"):
            assert one.pop(name, {}) == pytest.approx(other.pop(name, {}), abs=1e-4)
        assert one == other
    assert len(ours) == len(theirs)
