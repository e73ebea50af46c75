"""A call's newest events: consecutive, bounded, and which of them are stale."""

from __future__ import annotations

import pytest

from streamer.event_log import MAX_EVENTS, MAX_TOLD, EventLog
from streamer.events import Emotion, Event, Speech


def speech(seq: int) -> Event:
    return Speech(seq=seq, channel=0, active=True, time_s=0.0)


def emotion(seq: int, channel: int = 0) -> Event:
    return Emotion(
        seq=seq,
        channel=channel,
        start_s=0.0,
        end_s=1.0,
        label="sad",
        scores={},
        raw={},
        speech=1.0,
        warming_up=False,
    )


def filled(count: int) -> EventLog:
    log = EventLog()
    for seq in range(count):
        log.append(speech(seq))
    return log


def test_events_are_found_by_number() -> None:
    log = filled(3)
    assert [log.get(seq) for seq in (-1, 0, 2, 3)] == [None, speech(0), speech(2), None]
    assert (log.first_seq, log.next_seq, log.num_untold) == (0, 3, 3)
    with pytest.raises(AssertionError, match="expected 3"):
        log.append(speech(4))


def test_what_nobody_takes_is_bounded() -> None:
    log = filled(MAX_EVENTS + 10)
    assert (log.first_seq, log.next_seq) == (10, MAX_EVENTS + 10)
    assert log.num_untold == MAX_EVENTS


def test_what_was_told_is_kept_for_a_while() -> None:
    log = filled(MAX_TOLD + 100)
    log.told(MAX_TOLD + 9)
    assert (log.first_seq, log.num_untold) == (10, 90)
    log.begin_from(500)
    assert log.num_untold == MAX_TOLD + 99 - 500


def test_what_has_arrived_is_forgotten() -> None:
    log = filled(5)
    log.forget(3)
    assert (log.first_seq, log.next_seq, log.get(3), log.get(4)) == (4, 5, None, speech(4))
    log.forget(4)
    assert log.is_empty and log.num_untold == 0


def test_a_slow_reader_gets_the_newest_emotion_of_each_channel_and_all_else() -> None:
    log = EventLog()
    events = [emotion(0), emotion(1, channel=1), speech(2), emotion(3), speech(4)]
    for event in events:
        log.append(event)
    seq, read = -1, []
    while (found := log.next_after(seq, skip_stale=True)) is not None:
        seq = found.seq
        read.append(seq)
    assert read == [1, 2, 3, 4]
    assert log.next_after(-1) == events[0] and log.next_after(4) is None


def test_events_of_another_process_are_gone_on_from() -> None:
    log = EventLog([speech(7), emotion(8)])
    log.append(emotion(9))
    assert (log.first_seq, log.next_seq) == (7, 10)
    assert log.next_after(6, skip_stale=True) == speech(7)
    assert log.next_after(7, skip_stale=True) == emotion(9)
    assert EventLog(first_seq=4).next_seq == 4
