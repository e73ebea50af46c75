"""Voice encoders that some of the training speakers are strangers to.

What an encoder says of people it has learnt from is truer than what it says of anybody else, and
networks that were told only that would believe it too much. So each training speaker is heard, too,
by an encoder taught without a part of the speakers, this one among them (cross-fitting, as stacked
generalisation has it: Wolpert 1992). It is there for their training alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from streamer.errors import ConfigError
from train.config import FitConfig
from train.dataset import NormalizedClip
from train.distill import distill
from train.material import Material
from train.progress import Advance, part_of
from train.teacher import States
from train.voice import VoiceEncoder, pool_states

FILE_NAME = "strangers.pt"


@dataclass(frozen=True)
class Stranger:
    """An encoder, and the speakers that it has not heard."""

    encoder: VoiceEncoder
    speakers: frozenset[str]

    def is_new_to(self, clip: NormalizedClip) -> bool:
        """Tell whether a clip's speaker is among them."""
        return clip.utterance.speaker_id in self.speakers

    def statistics(self, x: Tensor) -> Tensor:
        """(n, 3, num_rows, T) -> (n, 128), as :meth:`train.voice.VoiceNetworks.statistics`."""
        return pool_states(self.encoder(x))


def teach_strangers(
    material: Material,
    states: Mapping[str, States],
    config: FitConfig,
    advance: Advance = lambda share: None,
) -> list[Stranger]:
    """Teach ``config.distill.strangers`` encoders, each without a part of the training speakers.

    Raises:
        ConfigError: fewer speakers than parts.
    """
    count = config.distill.strangers
    clips = material.train["clean", "cold"][: material.num_speech]
    speakers = sorted({clip.utterance.speaker_id for clip in clips})
    if len(speakers) < count:
        raise ConfigError(
            f"distill.strangers {count}: expected {len(speakers)} or fewer, the training speakers"
        )
    strangers = []
    for number in range(count):
        torch.manual_seed(config.seed * 100_003 + number)
        one = Stranger(
            VoiceEncoder(
                config.network,
                torch.from_numpy(material.mean),
                torch.from_numpy(material.deviation),
            ),
            frozenset(speakers[number::count]),
        )
        part = part_of(advance, number / count, (number + 1) / count)
        distill(one.encoder, material, states, config, part, without=one.speakers)
        strangers.append(one)
    return strangers


def write_strangers(strangers: Sequence[Stranger], path: Path) -> None:
    """Keep them beside a checkpoint, for a later training that takes its encoder over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save([(one.encoder.state_dict(), sorted(one.speakers)) for one in strangers], path)


def read_strangers(path: Path, config: FitConfig) -> list[Stranger]:
    """Read what :func:`write_strangers` kept.

    Raises:
        ConfigError: no such file, or not of so many encoders of this configuration.
    """
    count = config.distill.strangers
    strangers = []
    try:
        for weights, speakers in torch.load(path, map_location="cpu", weights_only=True):
            encoder = VoiceEncoder(config.network, None, None)
            encoder.load_state_dict(weights)
            encoder.eval().requires_grad_(requires_grad=False)
            strangers.append(Stranger(encoder, frozenset(speakers)))
    except Exception as error:  # torch, zipfile and pickle each raise their own
        raise ConfigError(f"{path} cannot be read as voice encoders: {error}") from error
    if len(strangers) != count:
        raise ConfigError(f"{path} holds {len(strangers)} voice encoders: expected {count}")
    return strangers
