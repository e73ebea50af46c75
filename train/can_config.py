"""What a Cascaded Attention Network, or a committee of them, is built of: every part a switch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from streamer.errors import ConfigError

NUM_FEATURES = 3  # static MFCC, delta, delta-delta: the channels of one window, in this order
FRAMES_A_STEP = 4  # of a voice encoder, and of what its teacher says


@dataclass(frozen=True, kw_only=True)
class CanConfig:
    """What a network is built of: by default the paper's; `dataclasses.asdict` makes JSON of it.

    Where the paper is silent or contradicts itself, the field says which reading it selects.

    Raises:
        ConfigError: a field is out of range, or no input feature is left.
    """

    use_static: bool = True  # Table 2: M1-2 drops it
    use_delta: bool = True  # Table 2: M1-3
    use_delta_delta: bool = True  # Table 2: M1-4
    num_rows: int = 26  # coefficients, and pitch where the features have it
    num_frames: int = 200  # frames in a window of 2 s; the weights themselves do not depend on it
    # "paper" is Table 1, a picture of rows and frames. "temporal" convolves along time alone, with
    # the rows as channels: neighbouring cepstra are no neighbours as neighbouring pixels are.
    front: Literal["paper", "temporal"] = "paper"
    conv_channels: tuple[int, ...] = (8, 16, 32, 64)  # Table 1; the last one is the (26, 1) layer
    time_stride: int = 1  # frames a step of the first layer; not with "paper"
    # Table 1 names no activation. With one after the last layer, the ReLU on F3 is idle.
    last_conv_activation: bool = False
    channel_attention: bool = True  # Table 3: M2-2 drops it
    channel_reduction: int = 4  # not stated
    # Eq. 1's two sides are equal for a linear shared network only ("eq1"); its text names a ReLU.
    channel_attention_form: Literal["cbam", "eq1"] = "cbam"
    spatial_attention: bool = True  # Table 3: M2-3 drops it
    # Eq. 2 says 7x7, but the map is one row high: only the middle row meets data, as with (1, 7).
    spatial_kernel: tuple[int, int] = (7, 7)
    skip_connection: bool = True  # F3 = ReLU(F0 + F2), else ReLU(F2)
    lstm_cells: int = 32  # a direction
    self_attention: bool = True  # Table 3: M2-4 drops it; then the BLSTM output is averaged
    num_heads: int = 4  # not stated
    head_width: int = 64  # not stated; the width of the embedding
    attention_scaled: bool = False  # Eq. 3 has no 1 / sqrt(head_width)
    dropout: float = 0.0  # on the BLSTM's input and on the classifier's; not in the paper
    # Adds mean and deviation over time of the BLSTM's output to the embedding.
    statistics_pooling: bool = False
    num_emotions: int = 0  # words of the corpora's own for a second classifier, in training alone
    # Scales the returned embedding, which the triplet loss sees, to length 1; the classifier reads
    # it as it was.
    normalize_embedding: bool = False
    # Networks whose mean probability is the answer, see train/committee.py: CANs, and networks that
    # hear statistics alone, of `statistics_width` cells; and one of `gate_width` cells, 0 for none,
    # which takes back the answer where there is no speech. Of statistics, rows' are of the frames
    # within `statistics_range_db` of the loudest, 0 for all.
    members: int = 1
    statistics_members: int = 0
    statistics_width: int = 256
    statistics_range_db: float = 0.0
    gate_width: int = 0
    # Networks of `voice_width` cells that are told what an encoder hears, as a larger network does,
    # see train/voice.py: it has `voice_blocks` of `voice_channels` (0: there is none).
    voice_members: int = 0
    voice_width: int = 224
    voice_channels: int = 0
    voice_blocks: int = 8
    # What is heard of a window: its first coefficients (0: all) and every row below them; and with
    # a floor under its spectrum, in dB under the loudest (0: none; see train/floor.py). A
    # committee's CANs, and its networks of statistics, have these floors in turn.
    heard_ceps: int = 0
    floors_db: tuple[float, ...] = (0.0,)
    num_ceps: int = 26  # coefficients among the rows
    num_labels: int = 4

    def __post_init__(self) -> None:
        if not self.kept_features:
            raise ConfigError("no input feature is used: expected static, delta or delta-delta")
        if len(self.conv_channels) < 2:
            raise ConfigError(f"conv_channels is {self.conv_channels}: expected two layers or more")
        if self.channel_attention_form not in ("cbam", "eq1"):
            raise ConfigError(
                f"channel_attention_form is {self.channel_attention_form!r}: "
                "expected 'cbam' or 'eq1'"
            )
        if any(size % 2 == 0 for size in self.spatial_kernel):
            raise ConfigError(f"spatial_kernel is {self.spatial_kernel}: expected odd sizes")
        if self.front not in ("paper", "temporal") or not 1 <= self.time_stride <= 8:
            raise ConfigError(
                f"front {self.front!r}, time_stride {self.time_stride}: expected 'paper' or "
                "'temporal', and 1 to 8"
            )
        if self.front == "paper" and self.time_stride != 1:
            raise ConfigError(
                f"time_stride is {self.time_stride}: expected 1, the front is Table 1"
            )
        self._check_members()
        if not 0 <= self.heard_ceps <= self.num_ceps:
            raise ConfigError(
                f"heard_ceps is {self.heard_ceps}: expected 0 to {self.num_ceps}, the coefficients"
            )
        if not self.floors_db or not all(0.0 <= floor <= 100.0 for floor in self.floors_db):
            raise ConfigError(f"floors_db is {self.floors_db}: expected one or more of 0 to 100 dB")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout is {self.dropout}: expected 0 or more and less than 1")
        if self.conv_channels[-1] < self.channel_reduction:
            raise ConfigError(
                f"channel_reduction is {self.channel_reduction}: expected at most "
                f"{self.conv_channels[-1]}, the channels of the last layer"
            )

    def _check_members(self) -> None:
        """Refuse a committee that nobody could build, or of nobody."""
        if not (0 <= self.members <= 16 and 0 <= self.statistics_members <= 16) or not (
            self.members or self.statistics_members or self.voice_members
        ):
            raise ConfigError(
                f"{self.members} members, {self.statistics_members} of statistics: expected 0 to "
                "16 of both, and one at least"
            )
        if self.gate_width < 0 or (
            self.gate_width and not (self.statistics_members or self.voice_members)
        ):
            raise ConfigError(
                f"gate_width is {self.gate_width}, of {self.statistics_members} networks of "
                f"statistics and {self.voice_members} of voice: expected 0, or more where there is "
                "such a network"
            )
        if bool(self.voice_members) != bool(self.voice_channels) or not (
            0 <= self.voice_members <= 16
            and 0 <= self.voice_channels <= 1024
            and 1 <= self.voice_blocks <= 32
        ):
            raise ConfigError(
                f"{self.voice_members} members over a voice encoder of {self.voice_blocks} blocks "
                f"of {self.voice_channels}: expected 1 to 16 over 1 to 32, or none of either"
            )
        if not 0.0 <= self.statistics_range_db <= 100.0:
            raise ConfigError(
                f"statistics_range_db is {self.statistics_range_db:g}: expected 0 to 100 dB"
            )

    @classmethod
    def paper(cls) -> Self:
        """The faithful network: every default."""
        return cls()

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The configuration whose `dataclasses.asdict` is `fields`, even by way of JSON."""
        arguments: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in fields.items()
        }
        return cls(**arguments)

    @property
    def kept_features(self) -> tuple[int, ...]:
        """Channels of the input that the network reads: 0 static, 1 delta, 2 delta-delta."""
        switches = (self.use_static, self.use_delta, self.use_delta_delta)
        return tuple(i for i, used in enumerate(switches) if used)

    @property
    def heard_rows(self) -> tuple[int, ...]:
        """Rows of a window that the network hears."""
        heard = self.heard_ceps or self.num_ceps
        return tuple(row for row in range(self.num_rows) if not heard <= row < self.num_ceps)

    @property
    def embedding_width(self) -> int:
        """Length of the embedding."""
        width = self.head_width if self.self_attention else 2 * self.lstm_cells
        return width + (4 * self.lstm_cells if self.statistics_pooling else 0)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """Shape of one window: (3, num_rows, num_frames)."""
        return NUM_FEATURES, self.num_rows, self.num_frames
