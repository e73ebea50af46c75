"""What the tables come to, in sentences: no more than their figures and intervals say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from train.reproduce_variants import PUBLISHED, TABLES, VARIANTS


def findings(results: dict[str, Any]) -> list[str]:
    """Return a paragraph for each protocol and corpus, then what holds of all of them."""
    text = [
        _of_scope(f"{scope}, protocol {protocol!r}", summaries)
        for protocol, one in results["protocols"].items()
        for scope, summaries in one["scopes"].items()
    ]
    full = {
        protocol: next(iter(one["scopes"].values()))["can"]
        for protocol, one in results["protocols"].items()
    }
    if set(full) >= {"paper", "speakers"}:
        known, unheard = full["paper"]["ua"], full["speakers"]["ua"]
        text.append(
            f"The full network's UA is {known:.1f} where training knows the speakers and "
            f"{unheard:.1f} where it does not. The protocols differ in normalisation and in the "
            "epoch that counts, too, so that not all of the difference is the speakers'."
        )
    by_seed = [f"{ua:.1f}" for ua in next(iter(full.values()))["ua_by_seed"]]
    if len(by_seed) == 1:
        text.append(
            "There is one seed: how far another one moves these figures was not measured, and the "
            "intervals do not hold it."
        )
    else:
        text.append(
            f"The full network's UA by seed, protocol {next(iter(full))!r}: {', '.join(by_seed)}."
        )
    return text


def _of_scope(name: str, summaries: dict[str, Any]) -> str:
    can = summaries["can"]
    wa, ua = (f"{can[rate]:.1f} ({_interval(can, rate)})" for rate in ("wa", "ua"))
    text = f"{name}: the full network has a WA of {wa} and a UA of {ua} on {can['n']} utterances."
    parts = [
        part
        for part in dict.fromkeys(part for names in TABLES.values() for part in names)
        if part in summaries and "delta" in summaries[part]
    ]
    if not parts:
        return text
    changes = {part: summaries[part]["delta"] for part in parts}
    lower = sum(change["ua"] < 0 for change in changes.values())
    paper = sum(PUBLISHED[part][1] < PUBLISHED["can"][1] for part in parts)
    text += (
        f" Of {len(parts)} parts, each left out alone, {lower} leave a lower UA; in the paper, "
        f"{paper} do."
    )
    surely_lower = [part for part in parts if changes[part]["ua_interval"][1] < 0]
    surely_higher = [part for part in parts if changes[part]["ua_interval"][0] > 0]
    unsure = [part for part in parts if part not in (*surely_lower, *surely_higher)]
    for group, word in (
        (surely_lower, "is lower without"),
        (surely_higher, "is higher without"),
        (unsure, "may be the same without"),
    ):
        if group:
            text += f" By its interval, the UA {word} {_titles(group)}."
    return text


def _titles(parts: Sequence[str]) -> str:
    *others, last = (VARIANTS[part].title.removeprefix("without ") for part in parts)
    return f"{', '.join(others)} and {last}" if others else last


def _interval(summary: dict[str, Any], rate: str) -> str:
    low, high = summary[f"{rate}_interval"]
    return f"{low:.1f} to {high:.1f}"
