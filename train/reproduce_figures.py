"""The paper's figures from finished trainings, and the numbers that go with two of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from train import figures
from train.corpora import LABELS
from train.report import Figure
from train.reproduce_fit import Training, load_network, segments_of_split
from train.reproduce_maps import attended_map, can_project, embed, quiet_share, three_samples
from train.reproduce_variants import TABLES, VARIANTS, Plan, Protocol

Bar: TypeAlias = Callable[[str, float], AbstractContextManager[Callable[[float], None]]]
"""Shows a progress bar of a name and a number of steps; yields what moves it on."""

_CONFUSIONS = {"fig4": "table2", "fig5": "table3", "fig6": "table4"}
_ATTENTIONS = {
    "no-channel": "without channel attention",
    "no-spatial": "without spatial attention",
    "can": "with both",
}


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Figures by study (``fig3``, ``fig4-paper``...), and numbers for ``results.json``."""

    figures: dict[str, Figure] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)


def draw(
    results: dict[str, Any], trainings: Sequence[Training], plan: Plan, output: Path, bar: Bar
) -> Drawn:
    """Draw what the plan asks for into ``output``, as far as the packages are there."""
    drawn = Drawn()
    if not figures.available():
        return drawn
    if "fig3" in plan.studies:
        drawn.figures["fig3"] = _fig3(results, plan, output)
    for protocol in plan.protocols:
        for study, table in _CONFUSIONS.items():
            if study in plan.studies:
                name = f"{study}-{protocol}"
                drawn.figures[name] = _confusions(results, protocol, study, table, output)
    if "fig7" in plan.studies:
        drawn.figures["fig7"], drawn.numbers["attention"] = _fig7(trainings, plan, output)
    if "fig8" in plan.studies and can_project():
        drawn.numbers["embeddings"] = {}
        for protocol in plan.protocols:
            name = f"fig8-{protocol}"
            drawn.figures[name], numbers = _fig8(trainings, protocol, output, bar)
            drawn.numbers["embeddings"][protocol] = numbers
    return drawn


def first_scope(results: dict[str, Any], protocol: str) -> tuple[str, dict[str, Any]]:
    """The only corpus and its summaries, or those of all corpora together."""
    name, summaries = next(iter(results["protocols"][protocol]["scopes"].items()))
    return name, summaries


def _fig3(results: dict[str, Any], plan: Plan, output: Path) -> Figure:
    protocol = plan.protocols[0]
    scope, summaries = first_scope(results, protocol)
    titles = {
        "alpha": ("(a) weight of the triplet loss", "alpha"),
        "margin, Eq. 11": ("(b) margin, triplets by Eq. 11", "margin"),
        "margin, open hinges": ("(c) margin, every open hinge", "margin"),
    }
    curves = []
    for what, points in plan.sweeps.items():
        found = [summaries[name] for name in points.values()]
        title, axis = titles[what]
        curves.append(
            figures.Curve(
                title=title,
                axis=axis,
                values=list(points),
                wa=[one["wa"] for one in found],
                ua=[one["ua"] for one in found],
                ua_interval=[one["ua_interval"] for one in found],
            )
        )
    path = output / "fig3.png"
    figures.draw_sweeps(path, curves)
    caption = (
        f"Fig. 3 on {scope}, protocol {protocol!r}: WA and UA over the triplet loss's weight and "
        "its "
        "margin; shaded, the UA's 95 % interval. (b) keeps the triplets of Eq. 11, whose margin "
        "has no "
        "gradient; (c) keeps those with d(a, n) < d(a, p) + M, where the margin acts."
    )
    return Figure(caption=caption, path=path, alt="WA and UA over alpha and over the margin")


def _confusions(
    results: dict[str, Any], protocol: Protocol, study: str, table: str, output: Path
) -> Figure:
    scope, summaries = first_scope(results, protocol)
    panels = {VARIANTS[name].title: summaries[name]["confusion"] for name in TABLES[table]}
    path = output / f"{study}-{protocol}.png"
    figures.draw_confusions(path, panels)
    caption = (
        f"Fig. {study[3:]} on {scope}, protocol {protocol!r}: confusions over all folds and seeds, "
        "counts above, recall in per cent below."
    )
    return Figure(caption=caption, path=path, alt=f"confusion matrices of the lines of {table}")


def _fig7(trainings: Sequence[Training], plan: Plan, output: Path) -> tuple[Figure, dict[str, Any]]:
    """Three test segments of the first fold, under the three networks that the fold trained."""
    first = {
        cell.variant: cell
        for cell in reversed(trainings)
        if cell.protocol == plan.protocols[0] and cell.variant in _ATTENTIONS
    }
    test = segments_of_split(first["can"])[2]
    rows = three_samples(test)
    owners = [first["can"].split.test[int(test.owners[row])] for row in rows]
    columns = [[test.windows[row, 0].float().numpy() for row in rows]]
    shares = {}
    for name in _ATTENTIONS:
        maps = attended_map(load_network(first[name]), test.windows)
        columns.append([maps[row] for row in rows])
        shares[name] = round(quiet_share(maps, test.windows), 3)
    names = ("anchor", "positive", "negative")
    samples = {
        f"{name}: {owner.label}": [column[i] for column in columns]
        for i, (name, owner) in enumerate(zip(names, owners, strict=True))
    }
    path = output / "fig7.png"
    figures.draw_maps(path, samples, ["MFCC", *_ATTENTIONS.values()])
    caption = (
        "Fig. 7: MFCCs of three test segments, a triplet of the first fold, and what attention "
        "leaves of the last convolution's map (|F2|, 64 channels), each on its own scale."
    )
    return Figure(caption=caption, path=path, alt="feature maps of three samples"), shares


def _fig8(
    trainings: Sequence[Training], protocol: Protocol, output: Path, bar: Bar
) -> tuple[Figure, dict[str, Any]]:
    """Embeddings of the first fold drawn; the numbers are means over the first seed's folds."""
    panels, numbers = {}, {}
    seed = trainings[0].config.seed
    for name, title in (("no-triplet", "(a) without triplet loss"), ("can", "(b) proposed")):
        cells = [
            cell
            for cell in trainings
            if (cell.variant, cell.protocol, cell.config.seed) == (name, protocol, seed)
        ]
        with bar(f"embeddings {name}", len(cells)) as advance:
            found = []
            for index, cell in enumerate(cells):
                found.append(embed(cell, project=index == 0))
                advance(1.0)
        panels[title] = (found[0].points, found[0].labels)
        numbers[name] = {
            "silhouette": round(float(np.nanmean([one.silhouette for one in found])), 3),
            "neighbours": round(float(np.mean([one.neighbours for one in found])), 3),
            "folds": len(found),
        }
    path = output / f"fig8-{protocol}.png"
    figures.draw_embeddings(path, panels)
    caption = (
        f"Fig. 8, protocol {protocol!r}: test utterances of the first fold, their embeddings "
        "projected by "
        f"t-SNE (seed 0); {', '.join(LABELS)}. Distances between clusters mean nothing in such a "
        "picture: "
        "the table has the numbers."
    )
    return Figure(caption=caption, path=path, alt="t-SNE of embeddings"), numbers
