"""What a training is: one frozen configuration, read from TOML, changed by ``key=value``."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any, Literal

import msgspec

from streamer.errors import ConfigError
from streamer.features import FeatureConfig
from streamer.windows import WindowConfig
from train.augment import AugmentConfig
from train.can_config import CanConfig
from train.copies import CHANGED, VOICES
from train.loss import JointLossConfig


@dataclass(frozen=True, kw_only=True)
class StatisticsFitConfig:
    """How networks of statistics are trained: AdamW, one cycle, mixup of statistics.

    A share ``anywhere`` of the draws are windows that begin anywhere in an utterance, in the
    silence around its speech too: where a turn begins and ends depends on the detector. The gate
    has ``gate_steps`` batches, half of them speech and half noise alone.
    """

    epochs: int = 30
    draws_per_clip: int = 3
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    mixup: float = 0.4
    anywhere: float = 0.0
    gate_steps: int = 800

    def __post_init__(self) -> None:
        if not 0.0 <= self.anywhere <= 1.0:
            raise ConfigError(f"statistics.anywhere {self.anywhere:g}: expected a share, 0 to 1")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How a voice encoder learns from the teacher, see ``train.distill``: AdamW, one cycle.

    It hears the copies that have a share of a training's draws, and of each utterance so many made
    ``voices`` (``train.copies``). Before that, for ``listening_epochs``, labels choose what of the
    teacher is worth learning (``train.emphasis``); and after it so many ``strangers`` learn, each
    without its part of the speakers (``train.strangers``).
    """

    epochs: int = 40
    listening_epochs: int = 36
    voices: int = 0
    strangers: int = 0
    batch_size: int = 32
    learning_rate: float = 4e-3
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.voices <= len(VOICES):
            raise ConfigError(f"distill.voices {self.voices}: expected 0 to {len(VOICES)}")
        if not (self.strangers == 0 or 2 <= self.strangers <= 8):
            raise ConfigError(f"distill.strangers {self.strangers}: expected 0, or 2 to 8")


_PARTS: dict[str, Any] = {
    "network": CanConfig,
    "loss": JointLossConfig,
    "features": FeatureConfig,
    "window": WindowConfig,
    "augment": AugmentConfig,
    "statistics": StatisticsFitConfig,
    "distill": DistillConfig,
}
CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """A network, its loss, its input and how it is trained.

    ``windows_per_clip`` windows of each clip are drawn anew every epoch among those that serving
    would score, a share ``answers`` of them among those that a turn's answer comes from; a share
    ``warm`` from a channel on which the speaker has spoken before; ``augment`` changes each draw.
    ``telephone``, ``voip``, ``slow``, ``fast``, ``noise`` and ``room`` are shares of draws from
    copies (see ``train.copies``), the rest is clean; ``noise_alone``, as a share of the speech's,
    are draws of noise without speech, which is to have no emotion: the same probability for all.
    ``paste`` is the share of windows that begin with another utterance of the same speaker and
    emotion (as CopyPaste, Pappagari et al. 2021, puts utterances one after the other), so that a
    window of little speech is not always one phrase over and over. ``mixup`` is the beta
    distribution's parameter, 0 for none. Each window weighs as much as its
    corpus and emotion are rare, to the power ``balance``. ``emotion_weight`` is that of a second
    classifier's loss, over all emotions that the corpora have a word for: with it, utterances of
    those that are not among the four train, too. ``clip_gradient`` bounds the gradient's norm, 0
    for no bound.
    ``precision`` is that of the forward and backward pass; weights are float32. ``schedule`` is
    ``constant`` or ``onecycle``; the last epoch and each ``validate_every``-th one are validated,
    and training stops after ``patience`` epochs without a better
    validation, or after ``stop_after`` epochs (0: never), as where nobody validates and the folds
    have told how many are good. What is validated and kept is the running average of the weights,
    of decay ``weight_average`` a step (0: the last ones). With ``refit`` each fold trains a second
    network, to the last epoch, on validation speakers too: the first one tells temperatures, the
    second one, which has heard more people, is tested.
    """

    name: str
    network: CanConfig = field(default_factory=CanConfig)
    loss: JointLossConfig = field(default_factory=JointLossConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    window: WindowConfig = field(default_factory=WindowConfig)
    normalize: bool = True
    prior_frames: int = 200
    memory_frames: int = 3000
    epochs: int = 40
    patience: int = 12
    validate_every: int = 1
    refit: bool = False
    stop_after: int = 0
    batch_size: int = 32
    learning_rate: float = 1e-4
    weight_decay: float = 1e-6
    optimizer: Literal["adam", "adamw"] = "adam"
    schedule: Literal["constant", "onecycle"] = "constant"
    weight_average: float = 0.99
    windows_per_clip: int = 1
    answers: float = 0.5
    telephone: float = 0.4
    slow: float = 0.0
    fast: float = 0.0
    voip: float = 0.0
    noise: float = 0.0
    room: float = 0.0
    noise_alone: float = 0.0
    warm: float = 0.3
    paste: float = 0.0
    mixup: float = 0.0
    balance: float = 0.0
    emotion_weight: float = 0.0
    clip_gradient: float = 0.0
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    statistics: StatisticsFitConfig = field(default_factory=StatisticsFitConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = 1

    def __post_init__(self) -> None:
        shares = [getattr(self, name) for name in CHANGED]
        if min(shares) < 0.0 or sum(shares) > 1.0:
            raise ConfigError(f"shares of copies {shares}: expected 0 or more, at most 1 in all")
        if not 0.0 <= self.paste <= 1.0 or not 0.0 <= self.answers <= 1.0:
            raise ConfigError(
                f"paste {self.paste:g}, answers {self.answers:g}: expected shares, 0 to 1"
            )
        if self.network.gate_width and not self.noise_alone:
            raise ConfigError(
                f"network.gate_width {self.network.gate_width} with noise_alone 0: expected noise "
                "for the gate to learn from"
            )
        if self.mixup and self.loss.alpha:
            raise ConfigError(
                f"mixup {self.mixup:g} with loss.alpha {self.loss.alpha:g}: expected one of them "
                "to be 0, since a mixture is neither positive nor negative"
            )
        if self.network.num_rows != self.features.num_rows:
            raise ConfigError(
                f"network.num_rows {self.network.num_rows}: expected the features' "
                f"{self.features.num_rows}"
            )

    @property
    def shares(self) -> dict[str, float]:
        """Share of the draws by condition, those that have one; they sum to 1."""
        others = {name: float(getattr(self, name)) for name in CHANGED}
        shares = {"clean": 1.0 - sum(others.values()), **others}
        return {name: share for name, share in shares.items() if share > 0.0 or name == "clean"}

    @property
    def copies_taught(self) -> tuple[str, ...]:
        """Copies that a voice encoder hears, or none where the network has no such part."""
        voices = VOICES[: self.distill.voices]
        return (*self.shares, *voices) if self.network.voice_members else ()

    @property
    def num_epochs(self) -> int:
        """Epochs to be run at most; the schedule is laid out over ``epochs``."""
        return min(self.epochs, self.stop_after or self.epochs)


def load_config(name: str, changes: Sequence[str] = ()) -> FitConfig:
    """Read ``train/configs/NAME.toml`` (or a path to a TOML file) and apply ``key=value`` changes.

    A key may be dotted: ``network.num_heads=2``. Values are TOML; what is not TOML is a string.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, or a value of another type.
    """
    path = Path(name) if name.endswith(".toml") else CONFIGS / f"{name}.toml"
    if not path.is_file():
        known = ", ".join(sorted(item.stem for item in CONFIGS.glob("*.toml")))
        raise ConfigError(f"no configuration {name!r}: expected a path or one of {known}")
    try:
        fields: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    fields.setdefault("name", path.stem)
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ConfigError(f"change {change!r}: expected key=value")
        *parents, last = key.strip().split(".")
        place = fields
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise ConfigError(f"change {change!r}: {parent} is a value: expected a table")
        place[last] = _toml_value(value.strip())
    return config_from_dict(fields, f"{path}")


def config_from_dict(fields: dict[str, Any], origin: str) -> FitConfig:
    """Build a configuration from plain data, as :func:`config_to_dict` makes it."""
    unknown = set(fields) - set(FitConfig.__dataclass_fields__)
    if unknown:
        raise ConfigError(f"{origin}: unknown key {sorted(unknown)[0]!r} in the configuration")
    for part, kind in _PARTS.items():
        if not isinstance(fields.get(part, {}), dict):
            raise ConfigError(f"{origin}: {part} is {fields[part]!r}: expected a table")
        wrong = set(fields.get(part, {})) - {item.name for item in fields_of(kind)}
        if wrong:
            raise ConfigError(f"{origin}: unknown key {part}.{sorted(wrong)[0]!r}")
    try:
        return msgspec.convert(fields, FitConfig)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"{origin}: {error}") from error


def config_to_dict(config: FitConfig) -> dict[str, Any]:
    """Return plain data that JSON can hold."""
    plain: dict[str, Any] = msgspec.to_builtins(asdict(config))
    return plain


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
