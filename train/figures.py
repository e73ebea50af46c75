"""The paper's figures as PNG files. Matplotlib is an extra: ask `available` before drawing."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from train.corpora import LABELS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DPI = 150
_BLUE, _ORANGE, _GRID = "#0b5cad", "#d55e00", "#dfe3e8"
_COLOURS = {"neutral": "#0b5cad", "angry": "#2a8a3e", "happy": "#c8102e", "sad": "#e69f00"}
_MARKS = {"neutral": "o", "angry": "^", "happy": "s", "sad": "D"}


def available() -> bool:
    """Tell whether figures can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One sweep of Fig. 3: ``wa`` and ``ua`` at each value, the UA's intervals, in per cent.

    ``chosen`` is the paper's value, which is marked.
    """

    title: str
    axis: str
    values: Sequence[float]
    wa: Sequence[float]
    ua: Sequence[float]
    ua_interval: Sequence[Sequence[float]]
    chosen: float | None = None


def draw_confusions(
    path: Path, panels: Mapping[str, ArrayLike], labels: Sequence[str] = LABELS
) -> None:
    """Draw confusion matrices (rows the truth), counts above and recall per cent below.

    Both are coloured by the share of the row, 0 to 100 %, in every panel: colours compare.
    """
    figure, axes = _canvas(2, len(panels), width=2.7 * len(panels) + 1.2, height=6.1)
    for column, (title, given) in enumerate(panels.items()):
        counts = np.asarray(given, np.float64)
        shares = 100.0 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
        for row, texts in enumerate((counts, shares)):
            axis = axes[row][column]
            image = axis.imshow(shares, cmap="Blues", vmin=0, vmax=100)
            for (i, j), value in np.ndenumerate(texts):
                colour = "white" if shares[i, j] > 55 else "#1b1f24"
                text = f"{value:.0f}" if row == 0 else f"{value:.1f}"
                axis.text(j, i, text, ha="center", va="center", color=colour, fontsize=10)
            axis.set_xticks(range(len(labels)), labels if row == 1 else [], fontsize=9)
            axis.set_yticks(range(len(labels)), labels if column == 0 else [], fontsize=9)
            axis.tick_params(length=0)
            axis.spines[:].set_color(_GRID)
        axes[0][column].set_title(title, fontsize=10)
        axes[1][column].set_xlabel("answer", fontsize=10)
    axes[0][0].set_ylabel("truth (utterances)", fontsize=10)
    axes[1][0].set_ylabel("truth (% of the row)", fontsize=10)
    bar = figure.colorbar(image, ax=axes, shrink=0.5, aspect=25)
    bar.set_label("% of the row", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_edgecolor(_GRID)
    _save(figure, path)


def draw_sweeps(path: Path, curves: Sequence[Curve]) -> None:
    """Draw Fig. 3: WA and UA over what is swept, the UA's 95 % interval shaded."""
    figure, axes = _canvas(1, len(curves), width=3.8 * len(curves), height=3.8, sharey=True)
    for axis, curve in zip(axes[0], curves, strict=True):
        low, high = np.asarray(curve.ua_interval, np.float64).T
        if curve.chosen is not None:
            axis.axvline(curve.chosen, color="#8a939c", linestyle=":", label="the paper's choice")
        axis.fill_between(
            curve.values, low, high, color=_ORANGE, alpha=0.15, linewidth=0, label="UA, 95 %"
        )
        axis.plot(curve.values, curve.wa, color=_BLUE, marker="o", markersize=4, label="WA")
        axis.plot(curve.values, curve.ua, color=_ORANGE, marker="s", markersize=4, label="UA")
        axis.set_title(curve.title, fontsize=10)
        axis.set_xlabel(curve.axis, fontsize=9)
        axis.set_xticks(list(curve.values))
        axis.grid(color=_GRID, linewidth=0.7)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("per cent", fontsize=9)
    # Above all panels: in one of them it might lie on a curve.
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper center", ncols=len(names), frameon=False, fontsize=9
    )
    _save(figure, path)


def draw_maps(
    path: Path, samples: Mapping[str, Sequence[NDArray[np.float32]]], titles: Sequence[str]
) -> None:
    """Draw Fig. 7: a row a sample, MFCCs, then a column a network.

    Each map (rows, frames) has its own scale: MFCCs blue below 0 and red above it, sizes from
    black, which is 0, to the brightest, their 99th percentile.
    """
    figure, axes = _canvas(
        len(samples), len(titles), width=2.9 * len(titles), height=2.1 * len(samples) + 0.6
    )
    for row, (name, maps) in enumerate(samples.items()):
        for column, values in enumerate(maps):
            axis = axes[row][column]
            top = float(np.quantile(np.abs(values), 0.99)) or 1.0
            if column == 0:
                axis.imshow(
                    values, aspect="auto", origin="lower", cmap="RdBu_r", vmin=-top, vmax=top
                )
            else:
                axis.imshow(values, aspect="auto", origin="lower", cmap="magma", vmin=0, vmax=top)
            axis.tick_params(labelsize=8)
            axis.set_ylabel("coefficient" if column == 0 else "channel", fontsize=8)
            if row == 0:
                axis.set_title(titles[column], fontsize=10)
            if row == len(samples) - 1:
                axis.set_xlabel("frame (10 ms)", fontsize=9)
        axes[row][0].set_ylabel(f"{name}\ncoefficient", fontsize=9)
    _save(figure, path)


def draw_embeddings(
    path: Path, panels: Mapping[str, tuple[NDArray[np.float32], NDArray[np.int64]]]
) -> None:
    """Draw Fig. 8: points (n, 2) and their labels (n,), coloured as in the paper."""
    figure, axes = _canvas(1, len(panels), width=4.4 * len(panels), height=4.6)
    for axis, (title, (points, labels)) in zip(axes[0], panels.items(), strict=True):
        for index, name in enumerate(LABELS):
            mine = points[labels == index]
            axis.scatter(
                mine[:, 0],
                mine[:, 1],
                s=26,
                c=_COLOURS[name],
                marker=_MARKS[name],
                alpha=0.8,
                linewidths=0,
                label=name,
            )
        axis.set_title(title, fontsize=10)
        axis.set_xticks([])
        axis.set_yticks([])
        axis.margins(0.06)
        axis.spines[:].set_color(_GRID)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=10
    )
    _save(figure, path)


def _canvas(
    rows: int, columns: int, *, width: float, height: float, **options: Any
) -> tuple[Figure, NDArray[Any]]:
    """A figure without pyplot, which would keep every one of them and choose a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes: NDArray[Any] = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, axes


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the program's version the same figures give the same file.
    figure.savefig(path, dpi=_DPI, metadata={"Software": None})
