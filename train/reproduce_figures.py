"""The paper's figures from finished trainings, and the numbers that go with two of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from train import figures
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
        "alpha": ("(a) weight of the triplet loss", "alpha", 0.3),
        "margin, Eq. 11": ("(b) margin, triplets by Eq. 11", "margin", 0.2),
        "margin, open hinges": ("(c) margin, every open hinge", "margin", 0.2),
    }
    curves = []
    for what, points in plan.sweeps.items():
        found = [summaries[name] for name in points.values()]
        title, axis, chosen = titles[what]
        curves.append(
            figures.Curve(
                title=title,
                axis=axis,
                values=list(points),
                wa=[one["wa"] for one in found],
                ua=[one["ua"] for one in found],
                ua_interval=[one["ua_interval"] for one in found],
                chosen=chosen,
            )
        )
    path = output / "fig3.png"
    figures.draw_sweeps(path, curves)
    caption = (
        f"Fig. 3 on {scope}, protocol {protocol!r}: WA and UA over the triplet loss's weight and "
        "its margin, measured at the marks and at no value between; shaded, the UA's 95 % "
        "interval; dotted, the paper's choice. (b) keeps the triplets of Eq. 11, whose margin has "
        "no gradient; (c) keeps those with d(a, n) < d(a, p) + M, where the margin acts."
    )
    return Figure(caption=caption, path=path, alt="WA and UA over alpha and over the margin")


def _confusions(
    results: dict[str, Any], protocol: Protocol, study: str, table: str, output: Path
) -> Figure:
    scope, summaries = first_scope(results, protocol)
    panels = {
        f"{VARIANTS[name].title}\nWA {one['wa']:.1f}, UA {one['ua']:.1f}": one["confusion"]
        for name in TABLES[table]
        for one in [summaries[name]]
    }
    path = output / f"{study}-{protocol}.png"
    figures.draw_confusions(path, panels)
    num_seeds = len(results["plan"]["seeds"])
    seeds = f", each counted once for each of {num_seeds} seeds" if num_seeds > 1 else ""
    caption = (
        f"Fig. {study[3:]}: the confusions behind Table {table[5:]}, {scope}, protocol "
        f"{protocol!r}. All folds' test utterances, {summaries['can']['n']}{seeds}: numbers above, "
        "per cent of each row below. Both are coloured by the latter."
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
    num_channels = first["can"].config.network.conv_channels[-1]
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
        f"Fig. 7: three test segments of fold {first['can'].split.fold}, protocol "
        f"{plan.protocols[0]!r}, under three networks of Table 3: normalised MFCCs (blue below 0, "
        "red above) and what attention leaves of the last convolution's map, |F2|, "
        f"{num_channels} channels (black is 0). Each panel has its own scale, and channels of one "
        "network are not those of another."
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
        num_drawn = len(found[0].labels)
        numbers[name] = {
            "silhouette": round(float(np.nanmean([one.silhouette for one in found])), 3),
            "neighbours": round(float(np.mean([one.neighbours for one in found])), 3),
            "folds": len(found),
        }
    path = output / f"fig8-{protocol}.png"
    figures.draw_embeddings(path, panels)
    caption = (
        f"Fig. 8, protocol {protocol!r}: the {num_drawn} test utterances of fold "
        f"{cells[0].split.fold}, seed {seed}, under the two networks of Table 4: embeddings "
        "projected by t-SNE (its seed 0; axes have no unit). Distances between clusters mean "
        "nothing in such a picture: the table below has numbers."
    )
    return Figure(caption=caption, path=path, alt="t-SNE of embeddings"), numbers
