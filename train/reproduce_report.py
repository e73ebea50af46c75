"""The reproduction's results as a report: the paper's tables with its own figures beside ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from train.devices import CPU
from train.report import Figure, Report, Section, Table
from train.reproduce_findings import findings
from train.reproduce_variants import FUNCTIONALS, PUBLISHED, TABLES, VARIANTS

_TITLES = {
    "table2": "Table 2: what each input is worth",
    "table3": "Table 3: what each attention is worth",
    "table4": "Table 4: what the triplet loss is worth",
}
_FIGURES = {"table2": "fig4", "table3": "fig5", "table4": "fig6"}
_FOOTNOTE_4 = (
    "The paper's text gives the triplet loss 0.47 points of WA and 0.94 of UA; its Table 4, quoted "
    "here, says 2.29 and 0.61."
)
_CHANGES = ("change of WA", "paper's", "change of UA", "paper's", "UA worse in")
_HEADER = ("", "WA", "UA", *_CHANGES, "paper WA", "paper UA")
_COST = ("parameters", "ms a window")
_SYSTEM_HEADER = (
    *_HEADER[:3],
    "change of WA",
    "change of UA",
    "UA worse in",
    *_COST,
    *_HEADER[-2:],
)
_UNITS = "in per cent, with 95 % intervals"


def build_report(results: dict[str, Any], figures: dict[str, Figure]) -> Report:
    """Lay the results out as the paper does."""
    studies = results["plan"]["studies"]
    sections = [Section(title="What came out", text=findings(results)), _summary(results)]
    sections += [_ablation(results, figures, study) for study in studies if study in TABLES]
    if not set(TABLES) & set(studies):  # figures alone
        sections += [
            Section(title=f"Fig. {study[3:]}", parts=_of(figures, study))
            for study in ("fig4", "fig5", "fig6")
            if study in studies
        ]
    if "fig3" in studies:
        sections.append(_fig3(results, figures))
    if "table5" in studies or "functionals" in studies:
        sections.append(_table5(results))
    if "attention" in results:
        sections.append(_fig7(results, figures))
    if "embeddings" in results:
        sections.append(_fig8(results, figures))
    sections.append(_readings(results))
    corpora = ", ".join(results["data"])
    return Report(
        title="Cascaded attention with joint loss: the paper's tables and figures",
        lead=(
            f"Liu et al. 2023, reproduced on {corpora}. The paper's own figures, beside ours, are "
            "of IEMOCAP; where the data are others, what compares is the direction and size of a "
            "change, not the rate itself."
        ),
        facts=_facts(results),
        sections=sections,
    )


def _facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    data = [
        f"{name}: {one['utterances']} utterances, {one['speakers']} speakers, {one['hours']} h ("
        + ", ".join(f"{count} {label}" for label, count in one["labels"].items())
        + ")"
        + (f", {one['sentences']} sentences" if one.get("sentences") else "")
        for name, one in results["data"].items()
    ]
    machine, seeds = results["machine"], results["plan"]["seeds"]
    is_cpu_alone = all(cell.get("device", CPU) == CPU for cell in results["trainings"])
    return [
        ("Data", "; ".join(data)),
        (
            "Folds, seeds",
            f"{results['plan']['num_folds']} folds; {'seed' if len(seeds) == 1 else 'seeds'} "
            f"{_list(seeds)}",
        ),
        ("Training", _recipe(results["config"])),
        ("Trainings", _wall_time(results)),
        (
            "Machine",
            f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python "
            f"{machine['python']}, torch {machine['torch']}"
            + ("" if is_cpu_alone else "; it made this report"),
        ),
        ("Command", results["command"] or "-"),
        ("Not run", "; ".join(results["not_run"]) or "nothing was left out"),
    ]


def _recipe(config: dict[str, Any]) -> str:
    epochs, decay = config["epochs"], config["weight_average"]
    schedule = {"onecycle": "one cycle of the rate up to"}.get(config["schedule"], "constant rate")
    averaged = f"weights averaged by {decay:g} a step" if decay else "weights not averaged"
    return (
        f"{_number(epochs, 'epoch')}, {config['optimizer'].capitalize()}, "
        f"{schedule} {config['learning_rate']:g}, weight decay {config['weight_decay']:g}, batches "
        f"of {config['batch_size']}, {config['precision']}, {averaged}, no augmentation. The paper "
        "states Adam, rate 1e-4, weight decay 1e-6 and batches of 32; neither epochs nor schedule"
    )


def _wall_time(results: dict[str, Any]) -> str:
    cells, seconds = results["trainings"], results["seconds"]
    parts = ", ".join(
        (
            _number(len({cell["variant"] for cell in cells}), "network"),
            _number(len(results["protocols"]), "protocol"),
            _number(results["plan"]["num_folds"], "fold"),
            _number(len(results["plan"]["seeds"]), "seed"),
        )
    )
    mean = _duration(seconds["trainings"] / max(1, len(cells)))
    return (
        f"{len(cells)} ({parts}), {_devices(cells)}, one thread each: wall times of "
        f"{mean} on average, {_duration(seconds['trainings'])} in all. This command itself: "
        f"{_duration(seconds['this_command'])}, without what was finished before it"
    )


def _devices(cells: Sequence[dict[str, Any]]) -> str:
    """Say how many trainings ran on what."""
    counts = Counter(cell.get("device", CPU) for cell in cells)
    num_on_cpu = counts.pop(CPU, 0)
    if not counts:
        return "all on the CPU"
    named = [f"{count} on {name}" for name, count in sorted(counts.items())]
    return ", ".join([*named, f"{num_on_cpu} on the CPU"])


def _summary(results: dict[str, Any]) -> Section:
    text = [
        f"Protocol {name!r}: {one['description']}." for name, one in results["protocols"].items()
    ]
    text.append(
        "WA is the share of utterances that are right, UA the mean recall of the four labels, in "
        "per cent, means over seeds of all folds' test utterances together. An utterance's answer "
        "is the mean of its segments' probabilities; segments are cut at the corpus's own "
        "boundaries (offline)."
    )
    text.append(
        "Intervals are 95 % by bootstrap over speakers or, where training knows the speakers, over "
        "utterances, which says less: they are then too narrow for people unheard. A change is "
        'against the full network on the same folds and seeds, its interval paired. "UA worse in" '
        "counts the folds, over all seeds, in which the UA is lower than the full network's. No "
        "interval is corrected for how many there are: of twenty changes that are none, one leaves "
        "out 0."
    )
    if any(one.get("sentences") for one in results["data"].values()):
        text.append(
            "Where all speakers say the same sentences, these are in training and test alike, "
            "under either protocol: that makes a corpus easier than speech that nobody wrote."
        )
    return Section(title="How to read this", text=text)


def _ablation(results: dict[str, Any], figures: dict[str, Figure], study: str) -> Section:
    parts: list[Table | Figure] = []
    for protocol, one in results["protocols"].items():
        for scope, summaries in one["scopes"].items():
            rows = [_row(VARIANTS[name].title, name, summaries[name]) for name in TABLES[study]]
            parts.append(
                Table(
                    caption=(
                        f"{_TITLES[study].partition(':')[0]}, {scope}, protocol {protocol!r}: "
                        f"{summaries['can']['n']} utterances, {_UNITS}"
                    ),
                    header=_HEADER,
                    rows=rows,
                    bold=(0,),
                    notes=[_FOOTNOTE_4] if study == "table4" else [],
                )
            )
        parts += _of(figures, f"{_FIGURES[study]}-{protocol}")
    return Section(title=_TITLES[study], parts=parts)


def _row(title: str, name: str, summary: dict[str, Any]) -> list[str]:
    """One line: ours, each change against the full network beside the paper's, the paper's."""
    delta = summary.get("delta")
    cells = [title, *(_rate(summary, rate) for rate in ("wa", "ua"))]
    published, best = PUBLISHED.get(name, (None, None)), PUBLISHED["can"]
    if delta is None:
        cells += [""] * len(_CHANGES)
    else:
        for rate, quoted, full in zip(("wa", "ua"), published, best, strict=True):
            theirs = "-" if quoted is None or full is None else f"{quoted - full:+.2f}"
            cells += [_change(delta, rate), theirs]
        cells.append(f"{delta['ua_folds_worse']} of {delta['num_folds']}")
    return cells + ["-" if value is None else f"{value:.2f}" for value in published]


def _fig3(results: dict[str, Any], figures: dict[str, Figure]) -> Section:
    eq11 = results["eq11"]
    apart = eq11["largest_difference"]
    text = [
        "Eq. 11 keeps only triplets whose negative is nearer than their positive. For these the "
        "hinge of Eq. 8 is open by more than the margin, so the margin adds a constant: its "
        "gradient is nil, and Fig. 3(b) cannot show an effect of it under the stated rule.",
        f"Measured: of {eq11['pairs']} trainings with another margin than 0.2, alike in all else, "
        + (
            "every test probability is the same to the last bit."
            if apart == 0
            else f"the largest difference of a test probability is {apart:.1e}."
        ),
        "Where every triplet with d(a, n) < d(a, p) + M counts, the margin acts (c).",
    ]
    protocol = results["plan"]["protocols"][0]
    summaries = next(iter(results["protocols"][protocol]["scopes"].values()))
    rows = [
        [VARIANTS[name].title, _rate(one, "wa"), _rate(one, "ua")]
        for name, one in summaries.items()
        if name.startswith(("alpha-", "margin-", "open-margin-")) or name == "can"
    ]
    titles = {"Proposed": "Proposed: alpha 0.3, margin 0.2, Eq. 11"}
    rows = sorted([titles.get(row[0], row[0]), *row[1:]] for row in rows)
    table = Table(
        caption=f"Fig. 3's points, protocol {protocol!r}, {_UNITS}",
        header=("", "WA", "UA"),
        rows=rows,
        bold=(0,),
    )
    return Section(
        title="Fig. 3: alpha and margin", text=text, parts=[*_of(figures, "fig3"), table]
    )


def _table5(results: dict[str, Any]) -> Section:
    parts: list[Table | Figure] = []
    cost = results.get("cost", {})
    for protocol, one in results["protocols"].items():
        for scope, summaries in one["scopes"].items():
            names = [name for name in (*cost, *FUNCTIONALS) if name in summaries]
            rows = [_system_row(name, summaries[name], cost.get(name)) for name in names]
            parts.append(
                Table(
                    caption=(
                        f"Table 5, {scope}, protocol {protocol!r}: "
                        f"{summaries['can']['n']} utterances, {_UNITS}"
                    ),
                    header=_SYSTEM_HEADER,
                    rows=rows,
                    bold=[i for i, name in enumerate(names) if name == "can"],
                )
            )
    text = [
        "The other systems' papers were not at hand: each is rebuilt on this project's input (2 s "
        "of MFCC, delta and delta-delta), its assumptions at the head of its file in "
        "train/baselines, and trained on the same folds with the same budget as CAN. The quoted "
        "figures are of the paper's Table 5.",
        "Milliseconds are of one window in PyTorch on one thread of this machine, the systems in "
        "turns; x CAN is the median of the quotients. eGeMAPS and ComParE (openSMILE, for research "
        "only) hear whole utterances; their linear SVM (C 1e-3, standardised, balanced) has "
        "nothing to choose, so it trains on the validation speakers, too.",
    ]
    return Section(title="Table 5: beside other systems", text=text, parts=parts)


def _system_row(name: str, summary: dict[str, Any], cost: dict[str, Any] | None) -> list[str]:
    title = FUNCTIONALS.get(name) or ("CAN (proposed)" if name == "can" else VARIANTS[name].title)
    cells = _row(title, name, summary)
    measured = ["-", "-"]
    if cost is not None:
        measured = [f"{cost['parameters']:,}", f"{cost['ms']:.2f}\n{cost['ratio']:.2f} x CAN"]
    # Against another system a change of the paper's says nothing that its rates do not.
    return [*cells[:4], cells[5], cells[7], *measured, *cells[8:]]


def _fig7(results: dict[str, Any], figures: dict[str, Figure]) -> Section:
    shares = results["attention"]
    table = Table(
        caption="|F2| in the quietest quarter of a segment's frames over that in the loudest",
        header=("", "quiet / loud"),
        rows=[
            [VARIANTS[name].title if name != "can" else "with both", f"{share:.3f}"]
            for name, share in shares.items()
        ],
        notes=[
            "Mean over the first fold's test segments, loudness being c0. The paper reads from its "
            "picture that attention suppresses silence: a smaller number would say so."
        ],
    )
    return Section(title="Fig. 7: what attention leaves", parts=[*_of(figures, "fig7"), table])


def _fig8(results: dict[str, Any], figures: dict[str, Figure]) -> Section:
    parts: list[Table | Figure] = []
    for protocol, numbers in results["embeddings"].items():
        parts += _of(figures, f"fig8-{protocol}")
        rows = [
            [VARIANTS[name].title, f"{one['silhouette']:.3f}", f"{100 * one['neighbours']:.1f}"]
            for name, one in numbers.items()
        ]
        folds = next(iter(numbers.values()))["folds"]
        parts.append(
            Table(
                caption=f"Embeddings of test utterances, protocol {protocol!r}",
                header=("", "silhouette", "5 nearest, %"),
                rows=rows,
                notes=[
                    f"Means over {folds} folds of one seed. Silhouette: of the labels, in the "
                    "embedding space. 5 nearest: test utterances whose label is that of most of "
                    "their five nearest training utterances."
                ],
            )
        )
    return Section(title="Fig. 8: embeddings with and without triplets", parts=parts)


def _readings(results: dict[str, Any]) -> Section:
    text = [
        "Segments of 2 s at a shift of 1 s in training and 0.4 s in the test (the code behind [10] "
        "has an overlap of 1.6 s, where the paper says a shift); short utterances are padded, "
        "never dropped.",
        "Not stated by the paper and chosen: reduction ratio 4, four heads of 64, no dropout, no "
        "activation after the last convolution; epochs, schedule and averaging of weights as "
        'above. "N triplets" is read as the triplets mined in a batch of 32 segments.',
        "Without the triplet loss, cross-entropy has the whole weight. Without self-attention, the "
        "BLSTM's output is averaged over time.",
    ]
    return Section(title="Readings", text=text)


def _of(figures: dict[str, Figure], name: str) -> list[Table | Figure]:
    return [figure for key, figure in figures.items() if key == name or key.startswith(f"{name}-")]


def _rate(summary: dict[str, Any], name: str) -> str:
    low, high = summary[f"{name}_interval"]
    return f"{summary[name]:.1f}\n{low:.1f} to {high:.1f}"


def _change(delta: dict[str, Any], name: str) -> str:
    low, high = delta[f"{name}_interval"]
    return f"{delta[name]:+.1f}\n{low:+.1f} to {high:+.1f}"


def _number(count: int, name: str) -> str:
    return f"{count} {name}" if count == 1 else f"{count} {name}s"


def _list(values: Sequence[int]) -> str:
    return ", ".join(str(value) for value in values)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
