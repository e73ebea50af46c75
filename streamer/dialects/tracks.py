"""The order of numbered, timed pieces of audio: what a telephone platform sends track by track.

Each track (inbound, outbound) is one channel. Its pieces carry a number that counts up by one and
a time in milliseconds, and become the channel's bytes in their order, or the news that some were
lost. The rules, all of them bounded:

- A piece is in its place if its number is the next one, or its time is where the audio stands.
  Otherwise it waits for those before it until ``window_ms`` of audio wait, or 10 pieces.
- Numbers that never came are a gap: as long as the times say, or as many pieces as are missing.
- A time that runs ahead by more than ``jitter_ms`` though no number is missing is a gap, too: the
  platform did not send its silence.
- Pieces that come twice, or too late, are dropped. After a second of nothing else, in which the
  other side went on by as much, the counters are taken to have begun anew.
- A time that goes back, or a gap over ``MAX_GAP_MS``, is a clock that was set: it tells nothing
  about the audio, which goes on where it is. All gaps of a track may be ``MAX_LOST_MS`` together.
- A track that falls more than ``STALL_MS`` behind the other one is told to be silent up to there:
  a call's events come in the order of the audio, and would wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from streamer.audio import SAMPLE_RATE
from streamer.call import Lost, TrackChunk
from streamer.dialects import PeerError

MAX_GAP_MS = 3_600_000
"""The longest gap that is believed: an hour, longer than anybody is kept on hold in silence."""
MAX_LOST_MS = 86_400_000
"""The most that one track may have lost in one call: a day."""
STALL_MS = 1_000
LATE_MS = 1_000
"""So much audio that is late, and nothing else between it, says that the counters began anew."""
_MAX_WAITING = 10

LOST = "lost on the way"
NOT_SENT = "not sent"
STALLED = "nothing came while the other side went on"

Output: TypeAlias = TrackChunk | Lost


@dataclass(frozen=True, kw_only=True)
class Pacing:
    """How exact a platform's times are.

    ``jitter_ms`` is what they may differ from the audio without meaning anything; ``window_ms`` is
    how much audio may wait for a missing piece.
    """

    jitter_ms: int = 100
    window_ms: int = 200


class Piece(NamedTuple):
    """Audio of one track, as it came: ``number`` and ``time_ms`` are None where it had none."""

    number: int | None
    time_ms: int | None
    data: bytes


class Tracks:
    """The tracks of one call, one a channel.

    Args:
        num_tracks: one or two.
        sample_rate: of the audio, in Hz; a multiple of 1000.
        bytes_per_sample: of one track's audio.
        pacing: how exact the times are.
    """

    def __init__(
        self,
        num_tracks: int,
        *,
        sample_rate: int,
        bytes_per_sample: int,
        pacing: Pacing | None = None,
    ) -> None:
        pacing = pacing or Pacing()
        self._samples_per_ms = sample_rate // 1000
        self._tracks = [
            Track(
                channel,
                sample_rate=sample_rate,
                bytes_per_sample=bytes_per_sample,
                pacing=pacing,
            )
            for channel in range(num_tracks)
        ]
        self._has_clock = False

    def receive(self, channel: int, piece: Piece) -> list[Output]:
        """Take a piece of one track; return what it settles, on any track.

        Raises:
            PeerError: half a sample, or more lost than a call can lose.
        """
        if not self._has_clock and piece.time_ms is not None:
            # The call's time begins with what came first, whatever the platform's clock says then.
            self._has_clock = True
            for track in self._tracks:
                track.start_clock(piece.time_ms)
        outputs = self._tracks[channel].receive(piece)
        leading = max(track.num_samples for track in self._tracks)
        for track in self._tracks:
            if leading - track.num_samples > STALL_MS * self._samples_per_ms:
                outputs += track.catch_up(leading)
        return outputs

    def receive_end(self) -> list[Output]:
        """Return what still waited for missing pieces."""
        return [output for track in self._tracks for output in track.flush()]


class Track:
    """One track; see the module's rules. Positions are samples of the track's own rate."""

    def __init__(
        self, channel: int, *, sample_rate: int, bytes_per_sample: int, pacing: Pacing
    ) -> None:
        self._channel = channel
        self._sample_rate = sample_rate
        self._bytes_per_sample = bytes_per_sample
        self._samples_per_ms = sample_rate // 1000
        self._jitter = pacing.jitter_ms * self._samples_per_ms
        self._window = pacing.window_ms * self._samples_per_ms
        self._max_gap = MAX_GAP_MS * self._samples_per_ms
        self._zero_ms: float | None = None  # the platform's time at sample 0
        self._last: int | None = None  # the number of the newest piece given out
        self._piece_length = 0
        self._waiting: dict[int, Piece] = {}  # by number
        self._num_lost = 0
        self._num_stalled = 0  # told lost since the last piece, because nothing came
        self._num_late = 0  # in a row
        self._num_stalled_when_late = 0  # when that row began
        self.num_samples = 0

    def start_clock(self, time_ms: int) -> None:
        """Say what the platform's time is at the call's first sample."""
        self._zero_ms = time_ms

    def receive(self, piece: Piece) -> list[Output]:
        """Take a piece; return what it settles.

        Raises:
            PeerError: half a sample, or more lost than a call can lose.
        """
        if len(piece.data) % self._bytes_per_sample:
            raise PeerError(
                f"audio of {len(piece.data)} bytes: expected samples of "
                f"{self._bytes_per_sample} bytes",
                code="bad_audio",
            )
        if not piece.data:
            return []
        outputs: list[Output] = []
        if self._is_late(piece):
            if not self._is_late_for_good(piece):
                return []
            outputs = self.flush()
            self._last = None
        self._num_late = 0
        if self._is_next(piece):
            outputs += self._give(piece)
        elif piece.number is not None:  # only what has a number can be out of order
            self._waiting.setdefault(piece.number, piece)
        if self._waiting:
            outputs += self._give_waiting()
        while len(self._waiting) > _MAX_WAITING or self._num_waiting() > self._window:
            outputs += self._give_first() + self._give_waiting()
        return outputs

    def catch_up(self, position: int) -> list[Output]:
        """Give up what has not come before ``position``; return what waited, and the gap."""
        outputs = self.flush()
        num_stalled = position - self.num_samples
        if num_stalled > 0:
            outputs += self._lose(num_stalled, STALLED)
            self._num_stalled += num_stalled
        return outputs

    def flush(self) -> list[Output]:
        """Return what waited for missing pieces: they will not come."""
        outputs: list[Output] = []
        while self._waiting:
            outputs += self._give_first()
        return outputs

    def _give_waiting(self) -> list[Output]:
        """Return the pieces whose turn has come."""
        outputs: list[Output] = []
        while self._waiting and self._is_next(self._waiting[min(self._waiting)]):
            outputs += self._give_first()
        return outputs

    def _give_first(self) -> list[Output]:
        return self._give(self._waiting.pop(min(self._waiting)))

    def _give(self, piece: Piece) -> list[Output]:
        """Return a piece and the gap before it: nothing before it is waited for any longer."""
        outputs = self._gap_before(piece)
        outputs.append(TrackChunk(self._channel, piece.data))
        self._last = piece.number
        self._piece_length = self._length(piece)
        self.num_samples += self._piece_length
        self._num_stalled = 0
        return outputs

    def _gap_before(self, piece: Piece) -> list[Output]:
        num_missing = self._num_missing(piece) * self._piece_length
        ahead = self._ahead(piece)
        is_clock_set = not -self._jitter <= ahead <= self._max_gap
        if is_clock_set:
            ahead = num_missing
        gap = ahead if ahead > (self._half(piece) if num_missing else self._jitter) else 0
        outputs: list[Output] = []
        if 0 < gap <= self._max_gap:
            outputs = self._lose(gap, LOST if num_missing else NOT_SENT)
        if is_clock_set:
            self._set_clock(piece)
        return outputs

    def _lose(self, num_samples: int, reason: str) -> list[Output]:
        self._num_lost += num_samples
        if self._num_lost > MAX_LOST_MS * self._samples_per_ms:
            raise PeerError(
                f"{self._num_lost // self._sample_rate} s lost of one track: expected at most "
                f"{MAX_LOST_MS // 1000} s in one call"
            )
        start = self.num_samples
        self.num_samples += num_samples
        # Rounded where it lies, not by its length: thirds of a sample must not add up at 24 kHz.
        num_at_16k = self._at_16k(self.num_samples) - self._at_16k(start)
        return [Lost(num_at_16k, reason, self._channel)]

    def _is_late(self, piece: Piece) -> bool:
        """Whether a piece came already, or its place was given up."""
        if piece.number is None or self._last is None:
            return False
        if piece.number > self._last and not self._num_stalled:
            return False
        behind = -self._ahead(piece)
        if piece.number <= self._last:
            # Numbers that went back while the time went on are counted anew, not late.
            return behind > self._half(piece)
        return self._half(piece) < behind <= self._num_stalled + self._half(piece)

    def _is_late_for_good(self, piece: Piece) -> bool:
        """Whether a late piece is one of so many that the ones to come would be late, too."""
        if not self._num_late:
            self._num_stalled_when_late = self._num_stalled
        self._num_late += self._length(piece)
        enough = LATE_MS * self._samples_per_ms
        is_new = piece.number is not None and self._last is not None and piece.number > self._last
        if is_new and self._num_stalled - self._num_stalled_when_late < enough:
            return False  # its place was given up; a burst catches up, unless the other goes on
        return self._num_late >= enough

    def _is_next(self, piece: Piece) -> bool:
        if piece.number is None or self._last is None or piece.number <= self._last + 1:
            return True
        return abs(self._ahead(piece)) <= self._half(piece)

    def _ahead(self, piece: Piece) -> int:
        """Samples between where the audio stands and where a piece begins; below 0 if behind."""
        if piece.time_ms is None or self._zero_ms is None:
            if piece.number is None or self._last is None:
                return 0
            return (piece.number - self._last - 1) * self._piece_length
        return round((piece.time_ms - self._zero_ms) * self._samples_per_ms) - self.num_samples

    def _num_missing(self, piece: Piece) -> int:
        if piece.number is None or self._last is None:
            return 0
        return max(0, piece.number - self._last - 1)

    def _set_clock(self, piece: Piece) -> None:
        """Let a piece's time be where the audio stands."""
        if piece.time_ms is not None:
            self._zero_ms = piece.time_ms - self.num_samples / self._samples_per_ms

    def _num_waiting(self) -> int:
        return sum(self._length(piece) for piece in self._waiting.values())

    def _length(self, piece: Piece) -> int:
        return len(piece.data) // self._bytes_per_sample

    def _half(self, piece: Piece) -> int:
        return self._length(piece) // 2

    def _at_16k(self, position: int) -> int:
        return position * SAMPLE_RATE // self._sample_rate
