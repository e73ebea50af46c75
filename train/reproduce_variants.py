"""What the paper's tables and figures are made of: CAN with a part left out, and its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from streamer.errors import ConfigError
from train.config import FitConfig
from train.systems import BASELINES

Protocol = Literal["paper", "speakers"]
PROTOCOLS: dict[Protocol, str] = {
    "paper": (
        "the paper's: random 5-fold, SPEAKERS SHARED between training and test; features "
        "normalised "
        "by the whole of each speaker's speech; the last epoch counts"
    ),
    "speakers": (
        "speaker-independent: a speaker's fold is its place among its corpus's sorted speakers, "
        "modulo 5; causal normalisation from a cold start, as served; the next fold's speakers "
        "pick "
        "the epoch"
    ),
}

ALPHAS = tuple(round(0.1 * tenths, 1) for tenths in range(1, 10))
MARGINS = tuple(round(0.1 * tenths, 1) for tenths in range(1, 6))


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One line of a table: a system, and what is changed in CAN or in its loss."""

    title: str
    system: str = "can"
    network: dict[str, Any] = field(default_factory=dict)
    loss: dict[str, Any] = field(default_factory=dict)

    def config(self, base: FitConfig, seed: int) -> FitConfig:
        """Return the configuration of one of its trainings; ``base`` is that of the full CAN."""
        if self.system != "can":
            return replace(base, loss=BASELINES[self.system].loss, seed=seed)
        network, loss = replace(base.network, **self.network), replace(base.loss, **self.loss)
        return replace(base, network=network, loss=loss, seed=seed)


def _alpha_name(alpha: float) -> str:
    return "can" if alpha == 0.3 else f"alpha-{alpha}"


def _margin_name(margin: float) -> str:
    return "can" if margin == 0.2 else f"margin-{margin}"


def _open_name(margin: float) -> str:
    return f"open-margin-{margin}"


def _variants() -> dict[str, Variant]:
    parts = {
        "can": Variant(title="Proposed"),
        "no-mfcc": Variant(title="without MFCC", network={"use_static": False}),
        "no-delta": Variant(title="without delta", network={"use_delta": False}),
        "no-delta-delta": Variant(title="without delta-delta", network={"use_delta_delta": False}),
        "no-channel": Variant(
            title="without channel attention", network={"channel_attention": False}
        ),
        "no-spatial": Variant(
            title="without spatial attention", network={"spatial_attention": False}
        ),
        "no-self": Variant(title="without self-attention", network={"self_attention": False}),
        "no-triplet": Variant(title="without triplet loss", loss={"alpha": 0.0}),
    }
    alphas = {_alpha_name(a): Variant(title=f"alpha {a}", loss={"alpha": a}) for a in ALPHAS}
    margins = {
        _margin_name(m): Variant(title=f"margin {m}, Eq. 11", loss={"margin": m}) for m in MARGINS
    }
    opened = {
        _open_name(m): Variant(
            title=f"margin {m}, open hinges",
            loss={"margin": m, "mining": "semi_hard_or_hard"},
        )
        for m in MARGINS
    }
    others = {name: Variant(title=item.title, system=name) for name, item in BASELINES.items()}
    return {**alphas, **margins, **opened, **others, **parts}


VARIANTS = _variants()
TABLES: dict[str, tuple[str, ...]] = {
    "table2": ("can", "no-mfcc", "no-delta", "no-delta-delta"),
    "table3": ("can", "no-channel", "no-spatial", "no-self"),
    "table4": ("can", "no-triplet"),
}
SWEEPS: dict[str, dict[float, str]] = {
    "alpha": {alpha: _alpha_name(alpha) for alpha in ALPHAS},
    "margin, Eq. 11": {margin: _margin_name(margin) for margin in MARGINS},
    "margin, open hinges": {margin: _open_name(margin) for margin in MARGINS},
}
FUNCTIONALS = {"egemaps": "eGeMAPS, linear SVM", "compare": "ComParE, linear SVM"}
STUDIES = (*TABLES, "table5", "fig3", "fig4", "fig5", "fig6", "fig7", "fig8", "functionals")

PUBLISHED: dict[str, tuple[float | None, float]] = {
    "can": (80.34, 77.91),
    "no-mfcc": (76.17, 75.25),
    "no-delta": (77.64, 75.98),
    "no-delta-delta": (79.36, 75.70),
    "no-channel": (77.64, 75.15),
    "no-spatial": (78.36, 76.33),
    "no-self": (76.76, 74.88),
    "no-triplet": (78.05, 77.30),
    "cnn-lstm": (67.30, 62.00),
    "acrnn": (None, 64.74),
    "acrnn-full": (None, 64.74),
    "attention-pooling": (71.75, 68.06),
    "self-attention": (70.17, 70.85),
    "head-fusion": (76.18, 76.36),
    "triplet-cnn-lstm": (77.85, 76.78),
}
"""WA and UA in per cent as Tables 2-5 print them (IEMOCAP, improvised, speakers shared)."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Which studies are made, with how much of each.

    ``sparse`` keeps the ends of Fig. 3's sweeps and the paper's choice; ``full_width`` trains the
    3-D ACRNN as wide as its paper has it.

    Raises:
        ConfigError: an unknown study, no seed, or one given twice.
    """

    studies: Sequence[str] = STUDIES
    protocols: Sequence[Protocol] = tuple(PROTOCOLS)
    seeds: Sequence[int] = (1, 2)
    num_folds: int = 5
    sparse: bool = False
    full_width: bool = False

    def __post_init__(self) -> None:
        unknown = sorted(set(self.studies) - set(STUDIES))
        if unknown:
            raise ConfigError(f"study {unknown[0]!r}: expected some of {', '.join(STUDIES)}")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds {list(self.seeds)}: expected one or more, each once")

    @property
    def baselines(self) -> tuple[str, ...]:
        """Table 5's systems beside CAN."""
        left_out = "acrnn" if self.full_width else "acrnn-full"
        return tuple(name for name in BASELINES if name != left_out)

    @property
    def sweeps(self) -> dict[str, dict[float, str]]:
        """Fig. 3's points, by what is swept."""
        if not self.sparse:
            return SWEEPS
        kept = {"alpha": 0.3}
        return {
            what: {
                value: name
                for value, name in points.items()
                if value in (min(points), kept.get(what, 0.2), max(points))
            }
            for what, points in SWEEPS.items()
        }

    def variants(self, protocol: Protocol) -> tuple[str, ...]:
        """Names of what is trained under a protocol, the full CAN first."""
        wanted = {"can"}
        figures = {"fig4": "table2", "fig5": "table3", "fig6": "table4", "fig8": "table4"}
        for study in self.studies:
            wanted.update(TABLES.get(figures.get(study, study), ()))
        if "fig7" in self.studies:
            wanted.update(("no-channel", "no-spatial"))
        if "table5" in self.studies:
            wanted.update(self.baselines)
        if "fig3" in self.studies and protocol == self.protocols[0]:
            wanted.update(name for points in self.sweeps.values() for name in points.values())
        parts = [name for names in TABLES.values() for name in names]
        order = [*dict.fromkeys(parts), *BASELINES, *VARIANTS]
        return tuple(name for name in dict.fromkeys(order) if name in wanted)
