"""What the reproduction's report says of results that are known."""

from __future__ import annotations

from typing import Any

import pytest

from train.report import Report, Section, Table, markdown
from train.reproduce_findings import findings
from train.reproduce_report import build_report
from train.reproduce_variants import PUBLISHED, TABLES, VARIANTS

CHANGES = {
    "no-mfcc": (-10.0, [-14.0, -6.0]),
    "no-delta": (-1.0, [-4.0, 2.0]),
    "no-delta-delta": (0.0, [-2.0, 2.0]),
    "no-channel": (-3.0, [-5.0, -1.0]),
    "no-spatial": (3.5, [1.0, 6.0]),
    "no-self": (1.0, [-2.0, 4.0]),
    "no-triplet": (-2.0, [-3.0, -0.5]),
}
"""Changes of the UA, and their intervals, of the parts that are left out."""


def summary(ua: float, change: tuple[float, list[float]] | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "n": 266,
        "wa": ua + 1,
        "ua": ua,
        "wa_interval": [ua - 1, ua + 3],
        "ua_interval": [ua - 2, ua + 2],
        "ua_by_seed": [ua],
    }
    if change is not None:
        delta, interval = change
        found["delta"] = {"wa": delta, "wa_interval": interval, "ua": delta}
        found["delta"] |= {"ua_interval": interval, "ua_folds_worse": 4, "num_folds": 5}
    return found


def summaries(ua: float) -> dict[str, Any]:
    parts = {name: summary(ua + change[0], change) for name, change in CHANGES.items()}
    return {"can": summary(ua), **parts}


def results(studies: tuple[str, ...] = tuple(TABLES)) -> dict[str, Any]:
    """Return what a grid of two protocols, five folds and one seed would have found."""
    return {
        "plan": {"studies": list(studies), "seeds": [1], "num_folds": 5},
        "data": {
            "emodb": {
                "utterances": 266,
                "speakers": 8,
                "hours": 0.21,
                "labels": {"angry": 100, "happy": 54, "neutral": 63, "sad": 49},
                "sentences": 10,
            }
        },
        "protocols": {
            "paper": {"description": "shared", "scopes": {"emodb": summaries(90.0)}},
            "speakers": {"description": "apart", "scopes": {"emodb": summaries(70.0)}},
        },
        "trainings": [
            {"variant": name, "protocol": protocol, "seed": 1, "fold": fold, "seconds": 30.0}
            for protocol in ("paper", "speakers")
            for name in ("can", *CHANGES)
            for fold in range(5)
        ],
        "config": {
            "epochs": 30,
            "weight_average": 0.0,
            "optimizer": "adam",
            "learning_rate": 1e-3,
            "schedule": "onecycle",
            "weight_decay": 1e-6,
            "batch_size": 32,
            "precision": "bfloat16",
        },
        "machine": {
            "processor": "a processor",
            "cores": 2,
            "system": "Linux",
            "python": "3.11",
            "torch": "2.13",
        },
        "seconds": {"this_command": 65.0, "trainings": 2400.0},
        "not_run": ["table5: not asked for"],
        "command": "python -m train reproduce",
    }


@pytest.fixture
def report() -> Report:
    return build_report(results(), {})


def section(report: Report, start: str) -> Section:
    (found,) = [one for one in report.sections if one.title.startswith(start)]
    return found


# Tables


@pytest.mark.parametrize("number", [2, 3, 4])
def test_the_papers_change_is_beside_ours(report: Report, number: int) -> None:
    names = TABLES[f"table{number}"]
    parts = section(report, f"Table {number}").parts
    assert len(parts) == 2, "one of each protocol"
    for part, protocol in zip(parts, ("paper", "speakers"), strict=True):
        assert isinstance(part, Table)
        assert part.caption == (
            f"Table {number}, emodb, protocol {protocol!r}: 266 utterances, in per cent, with "
            "95 % intervals"
        )
        assert [row[0] for row in part.rows] == [VARIANTS[name].title for name in names]
        assert all(len(row) == len(part.header) for row in part.rows)
        for name, row in list(zip(names, part.rows, strict=True))[1:]:
            wa, ua = PUBLISHED[name]
            assert wa is not None
            low, high = CHANGES[name][1]
            ours, theirs = part.header.index("change of UA"), PUBLISHED["can"][1]
            assert row[ours] == f"{CHANGES[name][0]:+.1f}\n{low:+.1f} to {high:+.1f}"
            assert row[ours + 1] == f"{ua - theirs:+.2f}"
            assert list(row[-3:]) == ["4 of 5", f"{wa:.2f}", f"{ua:.2f}"]


def test_the_papers_text_that_contradicts_its_table_is_told(report: Report) -> None:
    for part in section(report, "Table 4").parts:
        assert isinstance(part, Table)
        assert "0.47 points of WA and 0.94 of UA" in part.notes[0]


def test_a_system_whose_wa_nobody_published_has_none() -> None:
    found = results(("table5",))
    for one in found["protocols"].values():
        one["scopes"]["emodb"]["acrnn"] = summary(60.0, (-30.0, [-40.0, -20.0]))
        one["scopes"]["emodb"]["egemaps"] = summary(65.0, (-25.0, [-30.0, -20.0]))
    found["cost"] = {
        "can": {"parameters": 100_000, "ms": 1.0, "ratio": 1.0},
        "acrnn": {"parameters": 6_500_000, "ms": 3.25, "ratio": 3.2},
    }
    table = section(build_report(found, {}), "Table 5").parts[0]
    assert isinstance(table, Table)
    assert all(len(row) == len(table.header) for row in table.rows)
    can, acrnn, functionals = table.rows
    assert list(acrnn[-4:]) == ["6,500,000", "3.25\n3.20 x CAN", "-", "64.74"]
    assert list(functionals[-4:]) == ["-", "-", "-", "-"]
    assert can[0] == "CAN (proposed)" and list(can[3:6]) == ["", "", ""]


# Words


def test_what_was_done_is_told(report: Report) -> None:
    facts = dict(report.facts)
    assert facts["Data"] == (
        "emodb: 266 utterances, 8 speakers, 0.21 h (100 angry, 54 happy, 63 neutral, 49 sad), 10 "
        "sentences"
    )
    assert facts["Folds, seeds"] == "5 folds; seed 1"
    assert facts["Training"].startswith("30 epochs, Adam, one cycle of the rate up to 0.001, ")
    assert "The paper states Adam, rate 1e-4" in facts["Training"]
    assert facts["Trainings"] == (
        "80 (8 networks, 2 protocols, 5 folds, 1 seed), all on the CPU, one thread each: wall "
        "times of 30 s on average, 40 min 0 s in all. This command itself: 1 min 5 s, without what "
        "was finished before it"
    )
    assert facts["Machine"] == "a processor, 2 cores, Linux, Python 3.11, torch 2.13"
    assert facts["Not run"] == "table5: not asked for"


def test_what_trained_is_told() -> None:
    found = results()
    for cell in found["trainings"]:
        cell["device"] = "NVIDIA A (torch 2.13)" if cell["protocol"] == "paper" else "CPU"
    facts = dict(build_report(found, {}).facts)
    assert "1 seed), 40 on NVIDIA A (torch 2.13), 40 on the CPU, one thread" in facts["Trainings"]
    assert facts["Machine"].endswith("torch 2.13; it made this report")


def test_findings_say_what_the_intervals_say() -> None:
    paper, speakers, between, seed = findings(results())
    assert paper == (
        "emodb, protocol 'paper': the full network has a WA of 91.0 (89.0 to 93.0) and a UA of "
        "90.0 (88.0 to 92.0) on 266 utterances. Of 7 parts, each left out alone, 4 leave a lower "
        "UA; in the paper, 7 do. By its interval, the UA is lower without MFCC, channel attention "
        "and triplet loss. By its interval, the UA is higher without spatial attention. By its "
        "interval, the UA may be the same without delta, delta-delta and self-attention."
    )
    assert speakers.startswith("emodb, protocol 'speakers': the full network has a WA of 71.0")
    assert "UA is 90.0 where training knows the speakers and 70.0 where it does not" in between
    assert "There is one seed" in seed


def test_findings_of_several_seeds_and_of_no_ablation() -> None:
    found = results()
    del found["protocols"]["speakers"]
    found["protocols"]["paper"]["scopes"]["emodb"] = {
        "can": {**summary(90.0), "ua_by_seed": [89.0, 91.0]}
    }
    alone, seeds = findings(found)
    assert alone.endswith("on 266 utterances.")
    assert seeds == "The full network's UA by seed, protocol 'paper': 89.0, 91.0."


def test_shared_sentences_are_told_where_they_are_known(report: Report) -> None:
    assert "say the same sentences" in markdown(report)
    found = results()
    found["data"]["emodb"]["sentences"] = 0
    assert "same sentences" not in markdown(build_report(found, {}))
