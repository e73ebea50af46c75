"""The order of numbered, timed pieces: what is put right, what is told, what is not believed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.call import Lost, TrackChunk
from streamer.dialects import PeerError
from streamer.dialects.tracks import (
    LOST,
    MAX_GAP_MS,
    MAX_LOST_MS,
    NOT_SENT,
    STALLED,
    Output,
    Pacing,
    Piece,
    Tracks,
)
from tests.phone_calls import gaps, heard

MS = 16
"""Samples of a gap's millisecond."""
HOUR_MS = 3_600_000


def piece(number: int | None, time_ms: int | None, *, length_ms: int = 20) -> Piece:
    """Return a piece of 8 kHz mu-law whose bytes say its number."""
    return Piece(number, time_ms, bytes([(number or 0) % 256]) * 8 * length_ms)


def pieces(numbers: Iterable[int], *, begin_ms: int = 0) -> list[Piece]:
    """Return pieces 1, 2, 3, ... as they are sent, 20 ms each."""
    return [piece(number, begin_ms + 20 * (number - 1)) for number in numbers]


def two_tracks(num_tracks: int = 2) -> Tracks:
    return Tracks(num_tracks, sample_rate=8000, bytes_per_sample=1)


def put(order: Iterable[Piece], *, end: bool = True, tracks: Tracks | None = None) -> list[Output]:
    """Return what one track's pieces become."""
    tracks = tracks or two_tracks(1)
    outputs = [output for item in order for output in tracks.receive(0, item)]
    return outputs + (tracks.receive_end() if end else [])


def numbers_of(outputs: Iterable[Output]) -> list[int | str]:
    """Return the pieces' numbers and the gaps' reasons, in their order."""
    return [item.data[0] if isinstance(item, TrackChunk) else item.reason for item in outputs]


def test_pieces_in_order_come_out_at_once() -> None:
    assert numbers_of(put(pieces(range(1, 100)), end=False)) == list(range(1, 100))


@given(st.lists(st.integers(0, 8), min_size=60, max_size=60))
def test_order_within_the_window_is_put_right(delays: list[int]) -> None:
    # A piece that is up to 8 places late finds no more than 8 pieces, 160 ms, waiting for it.
    late = sorted(range(1, 60), key=lambda number: number + delays[number])
    outputs = put(pieces([0, *late]))
    assert numbers_of(outputs) == list(range(60))


@given(st.lists(st.integers(1, 30), max_size=60))
def test_nothing_comes_twice(numbers: list[int]) -> None:
    found = [number for number in numbers_of(put(pieces(numbers))) if isinstance(number, int)]
    assert found == sorted(set(found))


def test_a_platform_that_sends_everything_twice_is_heard_once() -> None:
    order = [item for item in pieces(range(1, 200)) for _ in range(2)]
    assert numbers_of(put(order)) == list(range(1, 200))


def test_no_more_than_ten_pieces_wait() -> None:
    order = [Piece(1, None, b"x"), *(Piece(n, None, b"x") for n in range(3, 30))]
    outputs = put(order, end=False)
    assert len(heard(outputs)) == 28 and len(gaps(outputs)) == 1
    assert len(heard(put(order[:11], end=False))) == 1


def test_a_missing_number_is_waited_for_and_then_lost() -> None:
    tracks = two_tracks(1)
    first = put(pieces([1, 2, *range(4, 14)]), end=False, tracks=tracks)
    assert numbers_of(first) == [1, 2]  # 200 ms wait
    outputs = put(pieces([14]), end=False, tracks=tracks)
    assert outputs[0] == Lost(20 * MS, LOST, 0)
    assert numbers_of(outputs) == [LOST, *range(4, 15)]
    assert put(pieces([3]), end=False, tracks=tracks) == []  # too late


def test_what_waits_at_the_end_comes_with_its_gaps() -> None:
    outputs = put(pieces([1, 2, 5, 6]))
    assert numbers_of(outputs) == [1, 2, LOST, 5, 6]
    assert gaps(outputs) == [Lost(40 * MS, LOST, 0)]


def test_the_times_say_how_much_is_lost_where_pieces_differ_in_length() -> None:
    outputs = put([piece(1, 0), piece(3, 60), piece(4, 80)])
    assert gaps(outputs) == [Lost(40 * MS, LOST, 0)]


def test_without_times_the_numbers_say_how_much_is_lost() -> None:
    outputs = put([piece(1, None), piece(5, None)])
    assert gaps(outputs) == [Lost(60 * MS, LOST, 0)]


def test_without_numbers_what_comes_is_what_there_is() -> None:
    outputs = put([piece(None, 0), piece(None, None), piece(None, 40)])
    assert numbers_of(outputs) == [0, 0, 0]


def test_numbers_may_count_both_tracks() -> None:
    # Twilio's example has outbound 1 and inbound 2 at one time: the times say that all is there.
    tracks = two_tracks()
    outputs: list[Output] = []
    for count in range(100):
        outputs += tracks.receive(0, piece(2 * count + 1, 20 * count))
        outputs += tracks.receive(1, piece(2 * count + 2, 20 * count))
    assert len(outputs) == 200 and not gaps(outputs)


def test_silence_that_was_not_sent_is_a_gap() -> None:
    outputs = put([piece(1, 0), piece(2, 20), piece(3, 5040), piece(4, 5060)])
    assert numbers_of(outputs) == [1, 2, NOT_SENT, 3, 4]
    assert gaps(outputs) == [Lost(5000 * MS, NOT_SENT, 0)]


def test_a_track_that_begins_later_begins_with_a_gap() -> None:
    tracks = two_tracks()
    assert numbers_of(put(pieces(range(1, 26)), end=False, tracks=tracks)) == list(range(1, 26))
    outputs = tracks.receive(1, piece(1, 500))
    assert outputs == [Lost(500 * MS, NOT_SENT, 1), TrackChunk(1, b"\x01" * 160)]


def test_a_call_begins_with_its_first_piece_whatever_the_clock_says() -> None:
    assert not gaps(put(pieces(range(1, 50), begin_ms=1_705_312_200_000)))


@pytest.mark.parametrize("jitter_ms", [-100, -60, 60, 100])
def test_times_that_tremble_mean_nothing(jitter_ms: int) -> None:
    order = [piece(n, 1000 + 20 * n + jitter_ms * (n % 2)) for n in range(1, 200)]
    assert numbers_of(put(order)) == list(range(1, 200))


def test_how_much_times_may_tremble_is_the_platforms() -> None:
    tracks = Tracks(1, sample_rate=8000, bytes_per_sample=1, pacing=Pacing(jitter_ms=500))
    assert not gaps(put([piece(1, 0), piece(2, 500)], tracks=tracks))
    assert gaps(put([piece(1, 0), piece(2, 500)])) == [Lost(480 * MS, NOT_SENT, 0)]


def test_a_silent_track_is_told_so_once_a_second() -> None:
    tracks = two_tracks()
    first = put(pieces(range(1, 51)), end=False, tracks=tracks)
    assert not gaps(first)
    rest = put(pieces(range(51, 154)), end=False, tracks=tracks)
    assert gaps(rest) == [Lost(1020 * MS, STALLED, 1)] * 3


def test_a_track_that_was_silent_goes_on_where_the_time_is() -> None:
    tracks = two_tracks()
    put(pieces(range(1, 52)), end=False, tracks=tracks)
    assert tracks.receive(1, piece(1, 1020)) == [TrackChunk(1, b"\x01" * 160)]
    assert tracks.receive(1, piece(2, 1040)) == [TrackChunk(1, b"\x02" * 160)]


def test_what_waited_on_a_silent_track_is_not_lost() -> None:
    tracks = two_tracks()
    tracks.receive(1, piece(1, 0))
    assert tracks.receive(1, piece(3, 40)) == []
    outputs = put(pieces(range(1, 60)), end=False, tracks=tracks)
    assert [item for item in outputs if item.channel == 1] == [
        Lost(20 * MS, LOST, 1),
        TrackChunk(1, b"\x03" * 160),
        Lost(980 * MS, STALLED, 1),
    ]


def test_what_comes_after_it_was_given_up_is_dropped() -> None:
    tracks = two_tracks()
    tracks.receive(1, piece(1, 0))
    put(pieces(range(1, 258)), end=False, tracks=tracks)  # the first 5120 ms are given up
    assert put_second(tracks, pieces(range(2, 257))) == []
    assert numbers_of(put_second(tracks, pieces([257, 258]))) == [1, 2]


def put_second(tracks: Tracks, order: Iterable[Piece]) -> list[Output]:
    return [output for item in order for output in tracks.receive(1, item)]


def test_a_track_that_is_always_late_is_heard_after_a_second() -> None:
    tracks = two_tracks()
    outputs: list[Output] = []
    for count in range(300):
        outputs += tracks.receive(0, piece(count + 1, 20 * count))
        if count >= 100:
            outputs += tracks.receive(1, piece(count - 99, 20 * (count - 100)))
    assert len(heard(outputs, 0)) == 300 * 160
    assert len(heard(outputs, 1)) > 100 * 160
    assert len(gaps(outputs)) <= 3


@pytest.mark.parametrize("jump_ms", [-HOUR_MS, -5000, -101, HOUR_MS + 200, 5 * HOUR_MS, 2**50])
def test_a_clock_that_was_set_tells_nothing(jump_ms: int) -> None:
    order = [piece(n, 10**9 + 20 * n) for n in range(1, 50)]
    order += [piece(n, max(0, 10**9 + 20 * n + jump_ms)) for n in range(50, 100)]
    assert numbers_of(put(order)) == list(range(1, 100))


def test_after_a_clock_was_set_gaps_are_told_by_it() -> None:
    order = [piece(1, 10_000), piece(2, 10_020), piece(3, 40), piece(4, 560)]
    assert gaps(put(order)) == [Lost(500 * MS, NOT_SENT, 0)]


def test_a_clock_that_was_set_back_after_a_silence_loses_nothing() -> None:
    tracks = two_tracks()
    put(pieces(range(1, 52)), end=False, tracks=tracks)  # 1020 ms are given up on track 1
    order = [piece(1, 1020), piece(2, 1040), piece(3, 500), piece(4, 520)]
    assert numbers_of(put_second(tracks, order)) == [1, 2, 3, 4]


def test_a_gap_of_an_hour_is_believed() -> None:
    outputs = put([piece(1, 0), piece(2, 20 + MAX_GAP_MS)])
    assert gaps(outputs) == [Lost(MAX_GAP_MS * MS, NOT_SENT, 0)]


def test_a_number_that_jumps_by_hours_tells_nothing() -> None:
    assert numbers_of(put([piece(1, None), piece(10**9, None), piece(10**9 + 1, None)])) == [
        1,
        10**9 % 256,
        (10**9 + 1) % 256,
    ]


def test_a_clock_that_jumps_again_and_again_ends_the_call() -> None:
    order = [piece(n, n * HOUR_MS) for n in range(30)]
    with pytest.raises(PeerError, match="s lost of one track: expected at most 86400 s in one ca"):
        put(order)


def test_counters_that_begin_anew_are_followed() -> None:
    order = pieces(range(1, 200)) + pieces(range(1, 200))
    found = numbers_of(put(order))
    assert found[:199] == list(range(1, 200))
    # The first second of the new count is taken for late pieces.
    assert found[199:] == list(range(50, 200))


def test_numbers_that_begin_anew_while_the_time_goes_on_lose_nothing() -> None:
    order = pieces(range(1, 101)) + [piece(n, 2000 + 20 * (n - 1)) for n in range(1, 101)]
    assert numbers_of(put(order)) == [*range(1, 101), *range(1, 101)]


def test_half_a_sample_is_refused() -> None:
    tracks = Tracks(1, sample_rate=8000, bytes_per_sample=2)
    with pytest.raises(PeerError, match="audio of 3 bytes: expected samples of 2 bytes") as caught:
        tracks.receive(0, Piece(1, 0, b"abc"))
    assert caught.value.code == "bad_audio"


def test_an_empty_piece_is_nothing() -> None:
    assert put([piece(1, 0), Piece(2, 20, b""), piece(2, 20)]) == put(pieces([1, 2]))


def test_thirds_of_a_sample_do_not_add_up() -> None:
    # One sample of 24 kHz is 2/3 of one at 16 kHz.
    tracks = Tracks(1, sample_rate=24_000, bytes_per_sample=1, pacing=Pacing(jitter_ms=0))
    order = [Piece(2 * n, None, b"\x00") for n in range(300)]
    lost = gaps(put(order, tracks=tracks))
    assert len(lost) == 299
    assert sum(item.num_samples for item in lost) == pytest.approx(200, abs=1)


@pytest.mark.parametrize("platform", ["twilio", "telnyx", "plivo", "exotel"])
def test_the_pages_name_what_a_gap_says(platform: str) -> None:
    page = (Path(__file__).parents[1] / "docs" / "dialects" / f"{platform}.md").read_text("utf-8")
    assert all(f"| `{reason}` |" in page for reason in (LOST, NOT_SENT, STALLED))
    assert all(f"| `{name}` |" in page for name in ("call_id", "step_ms", "roles"))


PIECES = st.builds(
    lambda channel, number, time_ms, length: (channel, Piece(number, time_ms, b"x" * length)),
    st.integers(0, 1),
    st.none() | st.integers(0, 40) | st.integers(0, 2**53),
    st.none() | st.integers(0, 2000) | st.integers(0, 10**8) | st.integers(0, 2**53),
    st.sampled_from([0, 1, 160, 160, 160, 1600, 8000]),
)


@given(st.lists(PIECES, max_size=60))
def test_anything_is_bounded(sent: list[tuple[int, Piece]]) -> None:
    tracks = two_tracks()
    outputs: list[Output] = []
    try:
        for channel, item in sent:
            outputs += tracks.receive(channel, item)
        outputs += tracks.receive_end()
    except PeerError as fault:
        assert "lost of one track" in str(fault)
    for channel in (0, 1):
        num_sent = sum(len(item.data) for side, item in sent if side == channel)
        assert len(heard(outputs, channel)) <= num_sent
        lost = [item.num_samples for item in gaps(outputs) if item.channel == channel]
        assert all(0 < num_samples <= 2 * MAX_GAP_MS * MS for num_samples in lost)
        assert sum(lost) <= MAX_LOST_MS * MS
