"""An evaluation's results as one HTML page: tables and plots, nothing fetched from elsewhere."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from streamer.card import UNCERTAIN
from train.corpora import LABELS
from train.evaluation_plots import (
    draw_call,
    draw_conditions,
    draw_heard,
    draw_reliability,
    draw_risk_coverage,
    draw_said,
)
from train.figures import draw_confusions
from train.report import Figure, Report, Section, Table, page
from train.tables import FOLDS_PROTOCOLS


def evaluation_page(results: dict[str, Any]) -> str:
    """Return the page of an evaluation's results, as `train.evaluate.evaluate` returns them.

    Raises:
        ImportError: matplotlib is not installed; ask ``train.figures.available``.
    """
    with tempfile.TemporaryDirectory() as folder:
        pngs = Path(folder)
        sections = [
            _conditions(results, pngs),
            _corpora(results, pngs),
            _heard(results, pngs),
            _sureness(results, pngs),
            _said(results, pngs),
        ]
        if "offline" in results:
            sections.append(_offline(results))
        if "spliced" in results or "noise" in results:
            sections.append(_spliced(results, pngs))
        sections.append(_how(results))
        mean = results["conditions"]["clean"]["mean"]
        report = Report(
            title=f"How well {results['model']} hears emotions",
            lead=f"{_sentence(results['protocol'])} UAR {_with_interval(mean)}, mean over corpora; "
            f"chance is {1 / len(LABELS):g}.",
            facts=_facts(results),
            sections=sections,
        )
        return page(report)


def _facts(results: dict[str, Any]) -> list[tuple[str, str]]:
    facts = [("model", results["model"])]
    if results["folds"]:
        numbers = ", ".join(str(fold["fold"]) for fold in results["folds"])
        facts.append(("folds", f"{numbers}; seed {results['folds'][0]['seed']}"))
    num = sum(corpus["n"] for corpus in results["corpora"].values())
    speakers = sum(corpus["speakers"] for corpus in results["corpora"].values())
    facts.append(("tested on", f"{num} utterances of {speakers} speakers, four labels"))
    if "command" in results:
        facts.append(("made by", results["command"]))
    if "seconds" in results:
        facts.append(("in", f"{results['seconds']:.0f} s"))
    return facts


def _conditions(results: dict[str, Any], pngs: Path) -> Section:
    conditions = results["conditions"]
    draw_conditions(pngs / "conditions.png", conditions)
    corpora = list(conditions["clean"]["corpora"])
    rows = [
        [
            name,
            *(_in_a_cell(report["corpora"][corpus]) for corpus in corpora),
            _in_a_cell(report["mean"]),
            f"{100 * (report['mean']['uar'] - conditions['clean']['mean']['uar']):+.1f}",
        ]
        for name, report in conditions.items()
    ]
    return Section(
        title="By corpus and condition",
        text=(
            "UAR and 95 % interval by bootstrap over speakers. Telephone: 300 to 3400 Hz, 8 kHz, "
            "G.711. Noise: a recording that no network of the fold has trained on, at 20, 10 and "
            "0 dB below the speech. Room: through a measured room response.",
        ),
        parts=(
            _figure(pngs / "conditions.png", "UAR of each corpus in each condition."),
            Table(
                caption="UAR by condition",
                header=("condition", *corpora, "mean", "points"),
                rows=rows,
                bold=(0,),
            ),
        ),
    )


def _corpora(results: dict[str, Any], pngs: Path) -> Section:
    corpora = results["corpora"]
    genders = sorted({name for corpus in corpora.values() for name in corpus["gender"]})
    draw_confusions(
        pngs / "confusions.png", {name: corpus["confusion"] for name, corpus in corpora.items()}
    )
    rows = [
        [
            name,
            str(corpus["speakers"]),
            str(corpus["n"]),
            _in_a_cell(corpus),
            f"{corpus['wa']:.3f}",
            *(
                f"{corpus['gender'][gender]['uar']:.3f}" if gender in corpus["gender"] else "-"
                for gender in genders
            ),
            str(sum(corpus["unanswered"])),
        ]
        for name, corpus in corpora.items()
    ]
    together = results["gender"]
    if genders:
        rows.append(
            [
                "all together",
                *("" for _ in range(4)),
                *(f"{together[gender]['uar']:.3f}" for gender in genders),
                "",
            ]
        )
    notes = []
    if "gap" in together:
        notes.append(f"Between genders, all together: {100 * together['gap']:.1f} points.")
    return Section(
        title="Clean, in full",
        text=(
            "Answers go by the highest score, however unsure; utterances without a turn count "
            "as wrong.",
        ),
        parts=(
            Table(
                caption="Clean speech",
                header=("corpus", "speakers", "n", "UAR", "WA", *genders, "no turn"),
                rows=rows,
                notes=notes,
            ),
            _figure(pngs / "confusions.png", "Confusions: counts above, recall below."),
        ),
    )


def _heard(results: dict[str, Any], pngs: Path) -> Section:
    heard = results["heard_s"]
    draw_heard(pngs / "heard.png", heard)
    corpora = list(heard["all"]["corpora"])
    rows = [
        [
            name,
            *(f"{found['corpora'][corpus]:.3f}" for corpus in corpora),
            _in_a_cell(found),
            f"{found['uar'] / heard['all']['uar']:.0%}" if heard["all"]["uar"] else "-",
        ]
        for name, found in heard.items()
    ]
    return Section(
        title="Against seconds heard",
        text=(
            "What the answer would be, had the call ended so long after the first onset: the "
            "average of the windows so far.",
        ),
        parts=(
            _figure(pngs / "heard.png", "UAR against the seconds heard since the onset."),
            Table(
                caption="UAR by seconds heard",
                header=("seconds", *corpora, "mean", "of all"),
                rows=rows,
            ),
        ),
    )


def _sureness(results: dict[str, Any], pngs: Path) -> Section:
    draw_reliability(pngs / "reliability.png", results["reliability"], results["ece"])
    draw_risk_coverage(pngs / "risk.png", results["risk_coverage"], results["said"])
    rejection = results["rejection"]
    rows = [
        [
            kind,
            f"{results['calibration'][kind]:.3f}",
            f"{results['ece'][kind]['before']:.3f}",
            f"{results['ece'][kind]['after']:.3f}",
            f"{rejection[kind]:.3f}" if kind in rejection else "-",
        ]
        for kind in results["ece"]
    ]
    return Section(
        title="How sure it may be",
        text=(
            "Temperatures and thresholds are fitted to validation speakers, clean and by telephone "
            "mixed, and measured on test speakers, clean. Below its threshold the label is "
            "uncertain: there the next answers would be wrong more often than right.",
        ),
        parts=(
            Table(
                caption="Calibration",
                header=("scores", "temperature", "error before", "error after", "uncertain below"),
                rows=rows,
            ),
            _figure(pngs / "reliability.png", "Reliability; the area is the number of answers."),
            _figure(pngs / "risk.png", "Risk against coverage, by calibrated top score."),
        ),
    )


def _said(results: dict[str, Any], pngs: Path) -> Section:
    said = results["said"]
    draw_said(pngs / "said.png", said)
    rows = [
        [title, *_words(words)]
        for group in ("labelled", "other")
        if group in said
        for title, words in (("all " + group, said[group]["all"]), *said[group]["emotions"].items())
    ]
    return Section(
        title="What turns are called",
        text=(
            "The four labels, and feelings that the model has no word for: those should be "
            "uncertain more often.",
        ),
        parts=(
            _figure(pngs / "said.png", "What turns of each emotion are called, in per cent."),
            Table(
                caption="Share of turns",
                header=("emotion", "turns", *LABELS, UNCERTAIN),
                rows=rows,
                notes=(f"Of the labelled turns that got a label, {said['right']:.0%} are right.",)
                if "right" in said
                else (),
            ),
        ),
    )


def _words(words: dict[str, Any]) -> list[str]:
    return [str(words["turns"]), *(f"{words[word]:.0%}" for word in (*LABELS, UNCERTAIN))]


def _offline(results: dict[str, Any]) -> Section:
    offline = results["offline"]
    corpora = list(offline["causal"]["corpora"])
    streamed = results["conditions"]["clean"]
    rows = [
        [name, *(_in_a_cell(found["corpora"][c]) for c in corpora), f"{mean:.3f}"]
        for name, found, mean in (
            ("streamed", streamed, streamed["mean"]["uar"]),
            ("offline, causal mean", offline["causal"], offline["causal"]["mean"]["uar"]),
            ("offline, whole speaker's mean", offline["whole"], offline["whole"]["mean"]["uar"]),
        )
    ]
    return Section(
        title="Offline beside streamed",
        text=(
            "Offline, a file is one turn from end to end, by the corpus's own boundaries. With the "
            "whole speaker's mean from the first frame on it is a bound that no stream reaches.",
        ),
        parts=(
            Table(
                caption="UAR, clean",
                header=("", *corpora, "mean"),
                rows=rows,
                bold=(0,),
                notes=(
                    f"Streaming costs {offline['gap_points']:.1f} points against offline, "
                    f"{offline['gap_to_whole_points']:.1f} against the bound.",
                ),
            ),
        ),
    )


def _spliced(results: dict[str, Any], pngs: Path) -> Section:
    parts: list[Table | Figure] = []
    rows = []
    if spliced := results.get("spliced"):
        draw_call(pngs / "call.png", spliced["example"])
        caption = (
            f"A call of {spliced['example']['speaker']}: the one with the median delay. Below, "
            "the label shown."
        )
        parts.append(_figure(pngs / "call.png", caption))
        rows += [
            ["calls", str(spliced["calls"])],
            ["anger shown at all", f"{spliced['detected']:.0%}"],
            ["median delay, never shown being infinite", _seconds(spliced["median_delay_s"])],
            ["median delay where shown", _seconds(spliced["median_delay_of_detected_s"])],
            ["flips a minute of one emotion", f"{spliced['flips_a_minute']:.2f}"],
            ["of them between emotions", f"{spliced['flips_between_emotions_a_minute']:.2f}"],
        ]
    if noise := results.get("noise"):
        rows += [
            ["emotions newly shown a minute of noise", f"{noise['alarms_a_minute']:.2f}"],
            ["turns called emotional a minute of noise", f"{noise['turns_a_minute']:.2f}"],
            ["emotional events a minute of noise", f"{noise['events_a_minute']:.2f}"],
        ]
    return Section(
        title="Whole calls",
        text=(
            "Neutral, angry, neutral again: utterances of one test speaker with pauses, noise "
            "between the stretches. A delay counts from the first speech of the angry stretch; a "
            "flip is a change of the label shown within a stretch, but for its first arrival at "
            "the truth. Noise alone should be called nothing.",
        ),
        parts=(*parts, Table(caption="Calls", header=("", ""), rows=rows)),
    )


def _how(results: dict[str, Any]) -> Section:
    if not results["folds"]:
        return Section(title="Protocol", text=(_sentence(results["protocol"]),))
    corpora = list(results["corpora"])
    rows = [
        [
            str(fold["fold"]),
            str(fold["epoch"] + 1),
            *(
                f"{fold['test'][corpus]:.3f}" if corpus in fold["test"] else "-"
                for corpus in corpora
            ),
            *(f"{value:.3f}" for value in fold["temperatures"].values()),
        ]
        for fold in results["folds"]
    ]
    return Section(
        title="Folds",
        text=(
            "A fold tests one corpus; a fifth of the other corpora's speakers validate."
            if results["protocol"] == FOLDS_PROTOCOLS["corpora"]
            else "A speaker's fold is his place among his corpus's sorted speakers, modulo 5.",
        ),
        parts=(
            Table(
                caption="Each fold's test speakers, clean",
                header=(
                    "fold",
                    "epoch kept",
                    *(f"UAR {corpus}" for corpus in corpora),
                    *(f"T {kind}" for kind in results["folds"][0]["temperatures"]),
                ),
                rows=rows,
            ),
        ),
    )


def _figure(path: Path, caption: str) -> Figure:
    return Figure(caption=caption, path=path, alt=caption)


def _with_interval(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['uar']:.3f} [{low:.3f}, {high:.3f}]"


def _in_a_cell(found: dict[str, Any]) -> str:
    return _with_interval(found).replace(" ", "\n", 1)


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.2f} s"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
