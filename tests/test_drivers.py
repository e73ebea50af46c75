"""The blocking driver, `recognize`; `converse` is in test_converse.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streamer.arrays import WindowFeatures
from streamer.audio import AudioFormat
from streamer.call import Call, Chunk, Lost
from streamer.drivers import recognize
from streamer.errors import SourceError
from streamer.events import Emotion, Error, Gap, Lag, Speech, Summary, Turn
from tests.golden.synthetic import silence
from tests.scorers import (
    FakeScorer,
    OwnScorer,
    assert_same_events,
    cut,
    encode_audio,
    fake_logits,
    hear,
    make_card,
    new_call,
    of_type,
    tone_speech,
    two_turns,
)

CARD = make_card()
PCM16 = AudioFormat()
AUDIO = two_turns()
ONE_TURN = AUDIO[: 2 * 16000 * 2]


class OnDemand(Future[NDArray[np.float32]]):
    """An answer that comes when somebody waits for it, and no sooner."""

    def __init__(self, features: WindowFeatures) -> None:
        super().__init__()
        self.features = features

    def exception(self, timeout: float | None = None) -> BaseException | None:
        if not self.done():
            self.set_result(fake_logits(self.features))
        return super().exception(timeout)


def answered(logits: Any) -> Future[NDArray[np.float32]]:
    future: Future[NDArray[np.float32]] = Future()
    future.set_result(logits)
    return future


def cancelled(_: WindowFeatures) -> Future[NDArray[np.float32]]:
    future: Future[NDArray[np.float32]] = Future()
    future.cancel()
    return future


@pytest.mark.parametrize("size", [640, 7777, len(AUDIO)])
def test_recognize_gives_the_events_of_the_call(size: int) -> None:
    expected = hear(new_call(), [AUDIO])
    assert len(of_type(expected, Turn)) == 2
    assert_same_events(recognize(new_call(), cut(AUDIO, size), FakeScorer(CARD)), expected)
    with FakeScorer(CARD, answer="thread") as scorer:
        assert_same_events(recognize(new_call(), cut(AUDIO, size), scorer), expected)
    with FakeScorer(CARD, answer="thread") as scorer:
        assert_same_events(recognize(new_call(), cut(AUDIO, size), scorer, live=True), expected)


def test_recognize_is_ready_before_audio_is_asked_for() -> None:
    def chunks() -> Iterator[bytes]:
        raise AssertionError("nobody has listened to `ready` yet")
        yield b""

    assert next(recognize(new_call(), chunks(), FakeScorer(CARD))).seq == 0


def test_recognize_stops_reading_while_too_much_is_out() -> None:
    call = new_call()

    def chunks() -> Iterator[bytes]:
        for chunk in cut(AUDIO, 6400):
            assert call.num_outstanding <= 3
            yield chunk

    scorer = OwnScorer(OnDemand)
    events = list(recognize(call, chunks(), scorer, max_outstanding=3))
    assert_same_events(events, hear(new_call(), [AUDIO]))


def test_an_empty_chunk_lets_out_what_has_settled() -> None:
    scorer = OwnScorer(OnDemand)
    call = new_call()
    seen: list[str] = []

    def chunks() -> Iterator[bytes]:
        yield AUDIO[: len(AUDIO) // 2]
        for window, future in enumerate(list(scorer.futures)):
            future.exception()  # on demand: it is answered now
            assert seen.count("Emotion") <= window
        yield b""
        assert seen.count("Emotion") == len(scorer.futures) > 0
        yield AUDIO[len(AUDIO) // 2 :]

    for event in recognize(call, chunks(), scorer):
        seen.append(type(event).__name__)
    assert seen[-1] == "Summary"


def test_live_audio_skips_the_oldest_windows_and_no_final() -> None:
    turns = [tone_speech(0.5, 2), tone_speech(2.6, 1), tone_speech(0.5, 2)]
    audio = encode_audio([np.concatenate([np.append(turn, silence(0.8)) for turn in turns])], PCM16)
    finals: list[bool] = []
    hear(new_call(), [audio], answer=lambda call, window: note(call, window, finals))
    assert finals == [True, *[False] * (len(finals) - 2), True] and len(finals) > 6
    scorer = OwnScorer(OnDemand)
    events = list(recognize(new_call(), cut(audio, 640), scorer, live=True, max_outstanding=3))
    kept = [not future.cancelled() for future in scorer.futures]
    assert kept == [True, *[False] * (len(finals) - 3), True, True], "the finals, the newest other"
    assert [turn.windows for turn in of_type(events, Turn)] == [1, 1, 1]
    (lag,) = of_type(events, Lag)
    assert lag.reason == "overload"
    assert events[-1].channels[0].dropped == of_type(events, Emotion)[-1].dropped == len(kept) - 3


def note(call: Call, window: Any, finals: list[bool]) -> None:
    finals.append(window.is_last)
    call.receive_scores(window, fake_logits(window.features))


@pytest.mark.parametrize(
    "make",
    [
        cancelled,
        lambda features: answered(np.full(4, np.nan, np.float32)),
        lambda features: answered(np.zeros(3, np.float32)),
    ],
    ids=["cancelled", "not finite", "wrong shape"],
)
def test_answers_that_are_no_scores_cost_their_windows_alone(
    make: Callable[[WindowFeatures], Future[NDArray[np.float32]]], caplog: pytest.LogCaptureFixture
) -> None:
    numbers = iter(range(1000))
    scorer = OwnScorer(
        lambda features: (
            make(features) if next(numbers) in (1, 2) else answered(fake_logits(features))
        )
    )
    events = list(recognize(new_call(), [AUDIO], scorer))
    (error,) = of_type(events, Error)
    assert (error.code, error.fatal) == ("scorer_failed", False)
    assert events[-1].channels[0].dropped == 2
    assert len(of_type(events, Turn)) == 2
    assert caplog.text.count("could not be scored") == 1, "of two in a row the first is logged"


def test_a_scorer_that_raises_costs_its_window_alone() -> None:
    numbers = iter(range(1000))
    scorer = FakeScorer(CARD, fails=lambda features: next(numbers) == 2)
    events = list(recognize(new_call(), [AUDIO], scorer))
    assert [error.code for error in of_type(events, Error)] == ["scorer_failed"]
    assert len(of_type(events, Turn)) == 2


def breaking_off(error: Exception) -> Iterator[bytes]:
    yield ONE_TURN
    raise error


def test_a_source_that_breaks_off_still_ends_with_what_there_was() -> None:
    chunks = breaking_off(SourceError("found half"))
    *events, error, summary = recognize(new_call(), chunks, FakeScorer(CARD))
    assert isinstance(error, Error) and (error.code, error.fatal) == ("bad_source", True)
    assert isinstance(summary, Summary) and summary.duration_s == 2.0
    assert len(of_type(events, Turn)) == 1


def test_what_is_no_error_of_ours_goes_through() -> None:
    scorer = FakeScorer(CARD, answer="held")
    with pytest.raises(ZeroDivisionError):
        list(recognize(new_call(), breaking_off(ZeroDivisionError()), scorer))
    assert scorer.num_held > 0
    scorer.release()
    assert scorer.num_scored == 0, "nobody waits for these: they are taken back"


def test_bytes_that_are_no_audio_end_the_reading() -> None:
    num_asked = 0

    def chunks() -> Iterator[bytes]:
        nonlocal num_asked
        for _ in range(5):
            num_asked += 1
            yield np.full(16000, np.nan, "<f4").tobytes()

    call = new_call(AudioFormat(encoding="pcm_f32le"))
    events = list(recognize(call, chunks(), FakeScorer(CARD)))
    assert [type(event).__name__ for event in events] == ["Ready", "Error", "Summary"]
    assert num_asked == 1


def test_lost_audio_is_a_gap_in_its_place() -> None:
    chunks: list[Chunk] = [ONE_TURN, Lost(8000, "not_fetched"), AUDIO[-32000:]]
    events = list(recognize(new_call(), chunks, FakeScorer(CARD)))
    (gap,) = of_type(events, Gap)
    assert (gap.start_s, gap.end_s, gap.reason) == (2.0, 2.5, "not_fetched")
    assert events[-1].duration_s == 3.5


def test_closing_recognize_closes_its_source() -> None:
    closed = []

    def chunks() -> Iterator[bytes]:
        try:
            yield from cut(AUDIO, 640)
        finally:
            closed.append(True)

    scorer = FakeScorer(CARD, answer="held")
    events = recognize(new_call(), chunks(), scorer)
    for event in events:
        if isinstance(event, Speech):
            break
    events.close()  # type: ignore[attr-defined]
    assert closed == [True]
    scorer.release()
    assert scorer.num_scored == 0
