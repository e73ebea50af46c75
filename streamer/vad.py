"""Where speech is: WebRTC voice activity by 20 ms blocks, with onset and hang-over.

Speech between two pauses is a turn. Times are absolute block numbers: block ``b`` covers samples
``[b * block_length, (b + 1) * block_length)``.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import webrtcvad

from streamer.arrays import Samples
from streamer.errors import ConfigError

BLOCK_S = 0.02
"""Seconds in a block, the unit in which speech is decided."""


@dataclass(frozen=True, kw_only=True)
class VadConfig:
    """How speech is told from silence; an operator may change it.

    ``mode`` is WebRTC's aggressiveness, 0 to 3. It hears ``gain_db`` more than was said, because
    at -45 dBFS it loses one block in ten of real speech without and one in thirty with it. A block
    below ``floor_dbfs`` is never speech. ``onset_s`` of speech (all but one block of it) opens a
    turn, ``hang_over_s`` without any closes it; a turn's windows may reach ``pre_roll_s`` before
    its onset.

    Raises:
        ConfigError: a value outside its range.
    """

    mode: int = 2
    gain_db: float = 12.0
    floor_dbfs: float = -65.0
    onset_s: float = 0.1
    hang_over_s: float = 0.5
    pre_roll_s: float = 0.2

    def __post_init__(self) -> None:
        if self.mode not in (0, 1, 2, 3):
            raise ConfigError(f"VAD mode {self.mode!r}: expected 0, 1, 2 or 3")
        if not 0.06 <= self.onset_s <= 1.0:
            raise ConfigError(f"onset of {self.onset_s:g} s: expected 0.06 to 1 s")
        if not 0.0 <= self.gain_db <= 60.0:
            raise ConfigError(f"gain of {self.gain_db:g} dB: expected 0 to 60 dB")
        if not -100.0 <= self.floor_dbfs <= 0.0:
            raise ConfigError(f"floor of {self.floor_dbfs:g} dBFS: expected -100 to 0 dBFS")
        if not 0.1 <= self.hang_over_s <= 5.0:
            raise ConfigError(f"hang-over of {self.hang_over_s:g} s: expected 0.1 to 5 s")
        if not 0.0 <= self.pre_roll_s <= self.hang_over_s:
            raise ConfigError(
                f"pre-roll of {self.pre_roll_s:g} s: expected 0 to the hang-over, "
                f"{self.hang_over_s:g} s, so that no turn reaches into the one before"
            )


class VoiceDetector:
    """One decision a block, from WebRTC's voice activity detector."""

    def __init__(self, config: VadConfig, sample_rate: int = 16000) -> None:
        self.block_length = round(sample_rate * BLOCK_S)
        self._sample_rate = sample_rate
        self._vad = webrtcvad.Vad(config.mode)
        self._scale = 32768.0 * 10.0 ** (config.gain_db / 20.0)
        self._floor = 10.0 ** (config.floor_dbfs / 10.0)

    def is_speech(self, block: Samples) -> bool:
        """Tell whether a block of ``block_length`` samples is speech; call in order, once each."""
        pcm = np.clip(np.rint(block * self._scale), -32768, 32767).astype("<i2")
        voiced = bool(self._vad.is_speech(pcm.tobytes(), self._sample_rate))
        return voiced and float(np.dot(block, block)) >= self._floor * len(block)


class SpeechTracker:
    """Turns out of block decisions: opened by an onset, closed by a hang-over."""

    def __init__(self, config: VadConfig) -> None:
        num_onset = round(config.onset_s / BLOCK_S)
        self._needed = num_onset
        self._recent: deque[bool] = deque(maxlen=num_onset + 1)
        # Up, never down: a pre-roll as long as the hang-over must stay out of the turn before.
        self._hang_over_blocks = math.ceil(config.hang_over_s / BLOCK_S - 1e-6)
        self.num_blocks = 0
        self.active = False
        self.onset_block = 0
        """First speech block of the latest turn."""
        self.end_block = 0
        """One past the last speech block so far."""

    def receive(self, is_speech: bool) -> bool:
        """Take the next block's decision; return whether ``active`` changed with it."""
        self._recent.append(is_speech)
        self.num_blocks += 1
        if is_speech:
            self.end_block = self.num_blocks
        if not self.active and sum(self._recent) >= self._needed:
            self.active = True
            first = list(self._recent).index(True)
            self.onset_block = self.num_blocks - len(self._recent) + first
            return True
        if self.active and self.num_blocks - self.end_block >= self._hang_over_blocks:
            self.close()
            return True
        return False

    def close(self) -> None:
        """End the turn that is open: its audio has ended."""
        self.active = False
        self._recent.clear()
