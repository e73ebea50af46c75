"""An evaluation's plots as PNG files. Matplotlib is an extra: ask ``train.figures.available``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamer.card import UNCERTAIN
from train.corpora import LABELS

_INK, _SOFT, _LINE = "#1b1f24", "#5b6570", "#dfe3e8"
_SERIES = ("#0b5cad", "#d55e00", "#2a8a3e", "#8e44ad", "#b8860b", "#008b8b")
_COLOURS = {
    "angry": "#c8102e",
    "happy": "#e69f00",
    "neutral": "#8a939c",
    "sad": "#0b5cad",
    UNCERTAIN: "#d9dde2",
    "noise": "#eceff2",
}
_KINDS = {"window": "a window", "smoothed": "smoothed", "turn": "a turn"}


def draw_conditions(path: Path, conditions: dict[str, Any]) -> None:
    """Draw each corpus's UAR in each condition, with its interval."""
    corpora = [*next(iter(conditions.values()))["corpora"], "mean"]
    figure, (axis,) = _canvas(1, width=9.2, height=3.9)
    width = 0.8 / len(conditions)
    for place, (name, report) in enumerate(conditions.items()):
        rows = [report["corpora"].get(corpus, report["mean"]) for corpus in corpora]
        uars = np.array([row["uar"] for row in rows])
        low, high = np.array([row["interval"] for row in rows]).T
        x = np.arange(len(corpora)) + (place - (len(conditions) - 1) / 2) * width
        whiskers = np.maximum([uars - low, high - uars], 0.0)
        colour = _SERIES[place % len(_SERIES)]
        axis.bar(x, uars, 0.9 * width, color=colour, label=name)
        axis.errorbar(x, uars, whiskers, fmt="none", ecolor=_INK, elinewidth=0.9, capsize=1.5)
    axis.axhline(1 / len(LABELS), color=_SOFT, linewidth=0.9, linestyle=":")
    axis.text(-0.48, 1 / len(LABELS) + 0.01, "chance", ha="right", color=_SOFT, fontsize=8)
    axis.set_xlim(-0.8, len(corpora) - 0.5)
    axis.set_xticks(range(len(corpora)), corpora)
    axis.set_ylim(0, 1)
    axis.set_ylabel("UAR")
    axis.legend(ncols=len(conditions), loc="upper center", bbox_to_anchor=(0.5, 1.14))
    _save(figure, path)


def draw_heard(path: Path, heard: dict[str, Any]) -> None:
    """Draw UAR against the seconds heard since the onset."""
    figure, (axis,) = _canvas(1, width=7.4, height=3.7)
    names = list(heard)
    corpora = list(heard["all"]["corpora"])
    x = np.arange(len(names))
    for place, corpus in enumerate(corpora):
        uars = [heard[name]["corpora"][corpus] for name in names]
        axis.plot(x, uars, color=_SERIES[place % len(_SERIES)], marker="o", label=corpus, alpha=0.8)
    low, high = np.array([heard[name]["interval"] for name in names]).T
    axis.fill_between(x, low, high, color=_INK, alpha=0.1, linewidth=0)
    axis.plot(x, [heard[name]["uar"] for name in names], color=_INK, linewidth=2.4, label="mean")
    mark = 0.8 * heard["all"]["uar"]
    # Named beside the picture: in it the words would lie on whatever corpus is near.
    axis.axhline(mark, color=_SOFT, linewidth=1.2, linestyle=":", label="80 % of the mean")
    axis.set_xticks(x, names)
    axis.set_xlabel("seconds heard since the onset")
    axis.set_ylabel("UAR")
    axis.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    _save(figure, path)


def draw_reliability(path: Path, bins: dict[str, Any], errors: dict[str, Any]) -> None:
    """Draw accuracy against confidence, for windows, smoothed scores and turns."""
    figure, axes = _canvas(len(bins), width=9.2, height=3.4, sharey=True)
    for axis, (kind, rows) in zip(axes, bins.items(), strict=True):
        confidence, accuracy, number = np.array(rows).T
        axis.plot([0, 1], [0, 1], color=_SOFT, linewidth=0.9, linestyle=":")
        area = 10 + 190 * number / number.max()
        axis.scatter(confidence, accuracy, area, color=_SERIES[0], alpha=0.75, linewidth=0)
        axis.set_title(f"{_KINDS[kind]}: error {errors[kind]['after']:.3f}")
        axis.set_xlabel("confidence")
        axis.set_xlim(0.2, 1.0)
        axis.set_ylim(0.0, 1.0)
    axes[0].set_ylabel("share that is right")
    _save(figure, path)


def draw_risk_coverage(path: Path, curves: dict[str, Any], said: dict[str, Any]) -> None:
    """Draw the share of wrong answers against the share that is answered, and where we are."""
    figure, (axis,) = _canvas(1, width=6.4, height=3.7)
    for place, (kind, points) in enumerate(curves.items()):
        coverage, risk = np.array(points).T
        axis.plot(coverage, risk, color=_SERIES[place], label=_KINDS[kind])
    if "labelled" in said and "right" in said:
        coverage, risk = 1 - said["labelled"]["all"][UNCERTAIN], 1 - said["right"]
        axis.plot(coverage, risk, "o", color=_INK, markersize=8, label="turns as served")
    axis.set_xlim(0, 1)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("coverage: share of answers given")
    axis.set_ylabel("risk: share of those that are wrong")
    axis.legend()
    _save(figure, path)


def draw_said(path: Path, said: dict[str, Any]) -> None:
    """Draw what turns of each emotion were called: the four labels, then the others."""
    rows = [
        (name, words, group)
        for group in ("labelled", "other")
        for name, words in said.get(group, {}).get("emotions", {}).items()
    ]
    figure, (axis,) = _canvas(1, width=9.2, height=0.9 + 0.34 * len(rows))
    places = [-(number + 0.6 * (group == "other")) for number, (_, _, group) in enumerate(rows)]
    left = np.zeros(len(rows))
    for word in (*LABELS, UNCERTAIN):
        shares = np.array([words[word] for _, words, _ in rows])
        axis.barh(places, shares, 0.78, left, color=_COLOURS[word], label=word)
        for place, start, share in zip(places, left, shares, strict=True):
            if share >= 0.06:
                light = word in ("angry", "sad", "neutral")
                axis.text(
                    start + share / 2,
                    place,
                    f"{100 * share:.0f}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if light else _INK,
                )
        left += shares
    axis.set_yticks(places, [f"{name} ({words['turns']})" for name, words, _ in rows])
    axis.set_xlim(0, 1)
    axis.set_xlabel("share of turns (number of turns in brackets)")
    axis.grid(visible=False)
    axis.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    _save(figure, path)


def draw_call(path: Path, example: dict[str, Any]) -> None:
    """Draw a spliced call over time: what was spoken, the scores, the label that was shown."""
    figure, (axis,) = _canvas(1, width=9.2, height=3.7)
    for label, start_s, end_s in example["parts"]:
        axis.axvspan(start_s, end_s, color=_COLOURS[label], alpha=0.14, linewidth=0)
        axis.text((start_s + end_s) / 2, 1.03, label, ha="center", fontsize=9, color=_SOFT)
    times = np.array([row[0] for row in example["shown"]])
    scores = np.array([row[2:] for row in example["shown"]]).reshape(len(times), len(LABELS))
    gaps = np.flatnonzero(np.diff(times) > 0.6) + 1
    for number, label in enumerate(LABELS):
        x, y = np.insert(times, gaps, np.nan), np.insert(scores[:, number], gaps, np.nan)
        axis.plot(x, y, color=_COLOURS[label], linewidth=1.8, label=label)
    for (time_s, word, *_), next_s in zip(
        example["shown"], [*times[1:], times[-1:].sum() + 0.25], strict=True
    ):
        end_s = min(next_s, time_s + 0.25)
        axis.fill_between([time_s, end_s], -0.13, -0.04, color=_COLOURS[word], linewidth=0)
    axis.text(0, -0.085, "shown ", ha="right", va="center", fontsize=9, color=_SOFT)
    axis.set_ylim(-0.15, 1.1)
    axis.set_xlim(0, max(part[2] for part in example["parts"]))
    axis.set_yticks(np.arange(0, 1.01, 0.25))
    axis.set_xlabel("seconds")
    handles, names = axis.get_legend_handles_labels()
    handles.append(axis.fill_between([], [], color=_COLOURS[UNCERTAIN]))
    axis.legend(
        handles, [*names, UNCERTAIN], ncols=5, loc="upper center", bbox_to_anchor=(0.5, -0.16)
    )
    _save(figure, path)


def _canvas(columns: int, *, width: float, height: float, sharey: bool = False) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Sequence[Any] = figure.subplots(1, columns, sharey=sharey, squeeze=False)[0]
    for axis in axes:
        axis.grid(color=_LINE, linewidth=0.7)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    for axis in figure.axes:
        axis.tick_params(labelsize=9, length=0, colors=_INK)
        for text in (axis.xaxis.label, axis.yaxis.label, axis.title):
            text.set_fontsize(10)
        if legend := axis.get_legend():
            legend.set_frame_on(False)
            for text in legend.get_texts():
                text.set_fontsize(9)
    figure.savefig(path, dpi=150)
