"""Tables in a file or a pipe are as wide as their cells, unless somebody says how wide."""

from __future__ import annotations

import io
import sys

import pytest
from rich.table import Table

from train.commands import results_console


def _printed(monkeypatch: pytest.MonkeyPatch) -> str:
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    table = Table(*(f"column {number}" for number in range(13)))
    table.add_row(*["0.1234"] * 13)
    results_console().print(table)
    return output.getvalue()


def test_no_cell_is_cut_short_where_nobody_says_how_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert _printed(monkeypatch).count("0.1234") == 13


def test_who_says_how_wide_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    assert max(map(len, _printed(monkeypatch).splitlines())) <= 60
