"""One channel's signal path: samples in, turns and windows out, no scores yet.

Training and serving both get their windows here. Everything happens at block boundaries counted
from the first sample, so how the audio was cut cannot show.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from streamer.arrays import Frames, Samples, WindowFeatures
from streamer.errors import ConfigError
from streamer.features import FeatureConfig, FeatureStream
from streamer.normalization import CausalNormalizer, NormalizationConfig
from streamer.vad import BLOCK_S, SpeechTracker, VadConfig, VoiceDetector
from streamer.windows import Span, WindowConfig, WindowSchedule, cut_window


@dataclass(frozen=True, kw_only=True)
class FrontEndConfig:
    """What a channel's signal path is made of.

    ``features``, ``normalization`` and ``window`` are the card's (no normalisation leaves frames
    as they are); ``vad`` and ``step_s`` an operator's. With ``analyse`` off only speech is told, no
    window is cut, no feature computed.

    Raises:
        ConfigError: a step that is not a whole number of frames, or out of range.
    """

    features: FeatureConfig
    normalization: NormalizationConfig | None
    window: WindowConfig = field(default_factory=WindowConfig)
    vad: VadConfig = field(default_factory=VadConfig)
    step_s: float = 0.25
    analyse: bool = True

    def __post_init__(self) -> None:
        shift_s = self.features.frame_shift_s
        in_range = 0.01 <= self.step_s <= 10.0
        if not in_range or abs(self.step_s / shift_s - round(self.step_s / shift_s)) > 1e-6:
            raise ConfigError(
                f"step of {self.step_s:g} s: expected 0.01 to 10 s, a multiple of {shift_s:g} s"
            )
        block_length = round(BLOCK_S * self.features.sample_rate)
        if block_length % self.features.frame_shift:
            raise ConfigError(
                f"frame shift of {self.features.frame_shift} samples: expected one that divides "
                f"the {block_length} of a block"
            )
        if self.normalization and len(self.normalization.mean) > self.features.num_rows:
            raise ConfigError(
                f"a normalisation mean of {len(self.normalization.mean)} coefficients: expected "
                f"at most {self.features.num_rows}"
            )


@dataclass(frozen=True, kw_only=True)
class SpeechStart:
    """A turn began: its first speech sample, and how far audio had been processed then."""

    position: int
    start_sample: int


@dataclass(frozen=True, kw_only=True)
class SpeechEnd:
    """A turn ended with the sample before ``end_sample``."""

    position: int
    start_sample: int
    end_sample: int


@dataclass(frozen=True, kw_only=True, eq=False)
class WindowCut:
    """A window is due: its place, its features (3, num_rows, num_frames), its share of speech."""

    position: int
    span: Span
    features: WindowFeatures
    speech_ratio: float


Happening: TypeAlias = SpeechStart | SpeechEnd | WindowCut


class FrontEnd:
    """Audio of one channel to what happens in it, in order.

    Args:
        config: the signal path.
        history_frames: frames kept for windows to come; what serving needs by default. Training
            asks for all of them and reads them with :meth:`frames`.
        normalizer: what an earlier stretch of the same channel has learnt of its mean.
    """

    def __init__(
        self,
        config: FrontEndConfig,
        *,
        history_frames: int | None = None,
        normalizer: CausalNormalizer | None = None,
    ) -> None:
        self.config = config
        features = config.features
        self._detector = VoiceDetector(config.vad, features.sample_rate)
        self._tracker = SpeechTracker(config.vad)
        step_frames = round(config.step_s / features.frame_shift_s)
        self._schedule = WindowSchedule(config.window, step_frames=step_frames)
        self._feature_stream = FeatureStream(features)
        if normalizer is None and config.normalization is not None:
            normalizer = CausalNormalizer(config.normalization)
        self._normalizer = normalizer
        hang_over_frames = round(config.vad.hang_over_s / features.frame_shift_s)
        needed = config.window.num_frames + hang_over_frames + step_frames
        self._frames = _FrameStore(history_frames or needed, features.num_rows)
        self._block_length = self._detector.block_length
        self._step_samples = step_frames * features.frame_shift
        self._frames_per_block = self._block_length // features.frame_shift
        self._pre_roll_frames = round(config.vad.pre_roll_s / features.frame_shift_s)
        self._waiting: list[Samples] = []
        self._num_waiting = 0
        self._tail = np.zeros(0, np.float32)
        self._flags: list[bool] = []
        self._first_flag = 0
        self.num_samples = 0
        """Samples processed, which is what positions count."""

    @property
    def num_frames_computed(self) -> int:
        """Static frames computed so far, each of them once."""
        return self._feature_stream.num_frames_computed

    @property
    def is_speaking(self) -> bool:
        """Whether a turn is open."""
        return self._tracker.active

    def receive(self, samples: Samples) -> list[Happening]:
        """Take audio, shape (n,), any n; return what happened in it, in order."""
        audio = np.concatenate([self._tail, samples]) if len(self._tail) else samples
        happenings: list[Happening] = []
        length = self._block_length
        num_blocks = len(audio) // length
        for number in range(num_blocks):
            self._process(audio[number * length : (number + 1) * length], happenings)
        self._tail = audio[num_blocks * length :].copy()
        return happenings

    def flush(self) -> list[Happening]:
        """End the audio: the unfinished block and the open turn are brought to their end."""
        happenings: list[Happening] = []
        tail, self._tail = self._tail, np.zeros(0, np.float32)
        if len(tail):
            block = np.zeros(self._block_length, np.float32)
            block[: len(tail)] = tail
            self._decide(block, tail, happenings)
        if self.config.analyse:
            self._compute_frames()
            self._store(self._feature_stream.flush())
        if self._tracker.active:
            self._cut_due(self._frames.end, happenings)
            self._tracker.close()
            self._end_turn(happenings)
        return happenings

    def successor(self) -> FrontEnd:
        """Return a front end for audio after a gap: fresh, but for the channel's mean."""
        return FrontEnd(self.config, normalizer=self._normalizer)

    def frames(self, start: int, end: int) -> tuple[Frames, NDArray[np.bool_]]:
        """Return normalised frames ``[start, end)`` that are still kept, and which are speech."""
        return self._frames.get(start, end)

    def _process(self, block: Samples, happenings: list[Happening]) -> None:
        self._decide(block, block, happenings)
        if self._tracker.active and self.config.analyse:
            self._cut_due(self._num_ready(), happenings)

    def _decide(self, block: Samples, heard: Samples, happenings: list[Happening]) -> None:
        """Take one block's speech decision; ``heard`` is the block less any padding."""
        is_speech = self._detector.is_speech(block)
        self.num_samples += len(heard)
        if self.config.analyse:
            self._flags.append(is_speech)
            self._waiting.append(heard.copy())  # the caller may use its buffer again
            self._num_waiting += len(heard)
            if self._num_waiting >= self._step_samples:
                self._compute_frames()
        if self._tracker.receive(is_speech):
            if self._tracker.active:
                self._start_turn(happenings)
            else:
                self._end_turn(happenings)

    def _start_turn(self, happenings: list[Happening]) -> None:
        onset_frame = self._tracker.onset_block * self._frames_per_block
        self._schedule.open_turn(onset_frame, max(0, onset_frame - self._pre_roll_frames))
        start = self._tracker.onset_block * self._block_length
        happenings.append(SpeechStart(position=self.num_samples, start_sample=start))

    def _end_turn(self, happenings: list[Happening]) -> None:
        if self.config.analyse:
            self._compute_frames()
            end_frame = min(self._tracker.end_block * self._frames_per_block, self._frames.end)
            span = self._schedule.close_turn(end_frame)
            if span is not None:
                happenings.append(self._cut(span))
        happenings.append(
            SpeechEnd(
                position=self.num_samples,
                start_sample=self._tracker.onset_block * self._block_length,
                end_sample=min(self._tracker.end_block * self._block_length, self.num_samples),
            )
        )

    def _cut_due(self, num_ready: int, happenings: list[Happening]) -> None:
        speech_end = self._tracker.end_block * self._frames_per_block
        for span in self._schedule.due(num_ready, speech_end):
            if span.end_frame > self._frames.end:
                self._compute_frames()
            happenings.append(self._cut(span))

    def _cut(self, span: Span) -> WindowCut:
        frames, is_speech = self._frames.get(span.start_frame, span.end_frame)
        return WindowCut(
            position=self.num_samples,
            span=span,
            features=cut_window(frames, self.config.window.num_frames),
            speech_ratio=float(is_speech.mean()),
        )

    def _num_ready(self) -> int:
        """Frames whose deltas the audio so far allows, computed yet or not."""
        features = self.config.features
        return features.count_frames(self.num_samples) - 2 * features.delta_window

    def _compute_frames(self) -> None:
        """Compute the frames that the waiting audio completes: a whole step's in one call."""
        if self._waiting:
            audio = np.concatenate(self._waiting)
            self._waiting.clear()
            self._num_waiting = 0
            self._store(self._feature_stream.receive(audio))

    def _store(self, frames: Frames) -> None:
        """Normalise and keep frames; each counts as speech if the block at its centre does."""
        first = self._frames.end
        blocks = self._centre_block(np.arange(first, first + len(frames)))
        is_speech = np.array([self._flags[block - self._first_flag] for block in blocks], np.bool_)
        if self._normalizer:
            frames = self._normalizer.normalize(frames, is_speech)
        self._frames.append(frames, is_speech)
        done = int(self._centre_block(np.array(self._frames.end))) - self._first_flag
        del self._flags[:done]
        self._first_flag += done

    def _centre_block(self, frame: NDArray[np.intp]) -> NDArray[np.intp]:
        features = self.config.features
        return (frame * features.frame_shift + features.frame_length // 2) // self._block_length


class _FrameStore:
    """The newest frames by absolute number: at least ``capacity`` of them, at most twice that."""

    def __init__(self, capacity: int, num_rows: int) -> None:
        self._capacity = capacity
        self._frames = np.zeros((0, 3, num_rows), np.float32)
        self._is_speech = np.zeros(0, np.bool_)
        self.end = 0

    def append(self, frames: Frames, is_speech: NDArray[np.bool_]) -> None:
        self._frames = np.concatenate([self._frames[-self._capacity :], frames])
        self._is_speech = np.concatenate([self._is_speech[-self._capacity :], is_speech])
        self.end += len(frames)

    def get(self, start: int, end: int) -> tuple[Frames, NDArray[np.bool_]]:
        first = self.end - len(self._frames)
        if not first <= start <= end <= self.end:
            raise IndexError(f"frames {start}-{end}: expected within {first}-{self.end}")
        part = slice(start - first, end - first)
        return self._frames[part], self._is_speech[part]
