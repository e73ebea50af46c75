from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from train.report import Figure, Report, Section, Table, markdown, markdown_table, page

PNG = bytes.fromhex("89504e470d0a1a0a 0000000d 49484452 00000384 00000258 0802000000")
"""The head of a picture of 900 by 600."""

VOID = {"meta", "img", "link", "br"}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    (tmp_path / "one.png").write_bytes(PNG)
    table = Table(
        caption="Table <1>",
        header=("", "UA"),
        rows=[["a | b", "1.0"], ["c", ""]],
        bold=(1,),
        notes=["a note"],
    )
    figure = Figure(caption="seen & said", path=tmp_path / "one.png", alt='a "picture"')
    section = Section(title="First", text=["x < y"], parts=[table, figure])
    return Report(title="Title", lead="Lead.", facts=[("Data", "emodb")], sections=[section])


class Balance(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_else(report: Report) -> None:
    text = page(report)
    assert 'src="data:image/png;base64,iVBORw0KGgo' in text
    assert "http" not in text and "<script" not in text and "url(" not in text
    parser = Balance()
    parser.feed(text)
    assert parser.open == []


def test_figures_are_as_large_as_their_text_wants_and_no_wider_than_the_page(
    report: Report,
) -> None:
    text = page(report)
    assert 'width="540"' in text  # 900 dots at 150 an inch, 90 CSS pixels an inch
    assert "img{max-width:100%;height:auto" in text


def test_a_second_line_is_small_in_html_and_in_brackets_in_markdown() -> None:
    table = Table(caption="t", header=("", "UA"), rows=[["a", "1.0\n0.5 to <2"]], bold=(0,))
    report = Report(title="T", lead="L", sections=[Section(title="S", parts=[table])])
    assert "<td>1.0<small>0.5 to &lt;2</small></td>" in page(report)
    assert "| **a** | **1.0 (0.5 to <2)** |" in markdown_table(table)


def test_text_is_escaped(report: Report) -> None:
    text = page(report)
    assert "Table &lt;1&gt;" in text and "x &lt; y" in text and "seen &amp; said" in text
    assert 'alt="a &quot;picture&quot;"' in text


def test_markdown_links_figures_beside_it(report: Report) -> None:
    text = markdown(report)
    assert text.startswith("# Title\n\nLead.\n\n- **Data**: emodb\n\n## First\n\nx < y\n\n")
    assert '![a "picture"](one.png)' in text
    assert text.endswith("seen & said\n")


def test_markdown_tables(report: Report) -> None:
    table = report.sections[0].parts[0]
    assert isinstance(table, Table)
    assert markdown_table(table) == (
        "**Table <1>**\n\n|  | UA |\n|---|--:|\n| a \\| b | 1.0 |\n| **c** |  |\n\na note\n"
    )
