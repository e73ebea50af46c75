"""A report of tables, figures and text, as Markdown and as one HTML page without companions."""

from __future__ import annotations

import base64
import html
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table with a caption, its first column text, the others figures; notes come below.

    What follows a line break in a cell, such as an interval, is set small below it in HTML, and in
    brackets in Markdown.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    bold: Sequence[int] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A PNG beside the report, with a caption; ``alt`` says what is to be seen."""

    caption: str
    path: Path
    alt: str


@dataclass(frozen=True, kw_only=True)
class Section:
    """A heading, paragraphs, then tables and figures in the order given."""

    title: str
    text: Sequence[str] = ()
    parts: Sequence[Table | Figure] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """A whole report; ``facts`` are what stands above everything: name and value."""

    title: str
    lead: str
    facts: Sequence[tuple[str, str]] = ()
    sections: Sequence[Section] = field(default_factory=tuple)


def markdown_table(table: Table) -> str:
    """Return a table as Markdown: caption, rows, notes."""
    lines = [f"**{table.caption}**", ""]
    lines.append("| " + " | ".join(_cell(text) for text in table.header) + " |")
    lines.append("|" + "|".join(["---"] + ["--:"] * (len(table.header) - 1)) + "|")
    for index, row in enumerate(table.rows):
        cells = [
            f"**{_cell(text)}**" if index in table.bold and text else _cell(text) for text in row
        ]
        lines.append("| " + " | ".join(cells) + " |")
    for note in table.notes:
        lines += ["", note]
    return "\n".join(lines) + "\n"


def markdown(report: Report) -> str:
    """Return the report as Markdown; figures are linked by name, to lie beside it."""
    blocks = [f"# {report.title}", report.lead]
    blocks.append("\n".join(f"- **{name}**: {value}" for name, value in report.facts))
    for section in report.sections:
        blocks += [f"## {section.title}", *section.text]
        for part in section.parts:
            if isinstance(part, Table):
                blocks.append(markdown_table(part).rstrip())
            else:
                blocks.append(f"![{part.alt}]({part.path.name})\n\n{part.caption}")
    return "\n\n".join(block for block in blocks if block) + "\n"


def page(report: Report) -> str:
    """Return the report as an HTML page: style and images are inside, nothing is fetched."""
    facts = "".join(
        f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in report.facts
    )
    links = "".join(
        f'<a href="#s{number}">{_text(section.title)}</a>'
        for number, section in enumerate(report.sections)
    )
    body = "".join(_section(number, section) for number, section in enumerate(report.sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(report.title)}</title><style>{_STYLE}</style></head><body><main>"
        f'<h1>{_text(report.title)}</h1><p class="lead">{_text(report.lead)}</p>'
        f"<nav>{links}</nav><dl>{facts}</dl>{body}</main></body></html>\n"
    )


def _section(number: int, section: Section) -> str:
    text = "".join(f"<p>{_text(paragraph)}</p>" for paragraph in section.text)
    parts = "".join(
        _html_table(part) if isinstance(part, Table) else _html_figure(part)
        for part in section.parts
    )
    return f'<section id="s{number}"><h2>{_text(section.title)}</h2>{text}{parts}</section>'


def _html_table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in table.header)
    rows = ""
    for index, (first, *others) in enumerate(table.rows):
        style = ' class="best"' if index in table.bold else ""
        cells = "".join(f"<td>{_html_cell(text)}</td>" for text in others)
        rows += f'<tr{style}><th scope="row">{_text(first)}</th>{cells}</tr>'
    notes = "".join(f'<p class="note">{_text(note)}</p>' for note in table.notes)
    return (
        f'<div class="wide"><table><caption>{_text(table.caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{notes}"
    )


def _html_figure(figure: Figure) -> str:
    png = figure.path.read_bytes()
    coded = base64.b64encode(png).decode()
    return (
        f'<figure><img alt="{_text(figure.alt)}" width="{_png_width(png)}" '
        f'src="data:image/png;base64,{coded}">'
        f"<figcaption>{_text(figure.caption)}</figcaption></figure>"
    )


def _png_width(png: bytes) -> int:
    """CSS pixels at which the text of a figure has about the size of the text around it."""
    width: int = struct.unpack(">I", png[16:20])[0]
    return round(width * _CSS_PIXELS)


def _cell(text: str) -> str:
    first, _, second = text.replace("|", "\\|").partition("\n")
    return f"{first} ({second})" if second else first


def _html_cell(text: str) -> str:
    first, _, second = text.partition("\n")
    return _text(first) + (f"<small>{_text(second)}</small>" if second else "")


def _text(text: str) -> str:
    return html.escape(text, quote=True)


_CSS_PIXELS = 0.6  # of one of a figure's: figures have 150 dots an inch and text of 9 points

_STYLE = """
:root{color-scheme:light;--ink:#1b1f24;--soft:#5b6570;--line:#dfe3e8;--tint:#f5f7f9;--mark:#0b5cad}
*{box-sizing:border-box}
body{margin:0;background:#fff;color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",
Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:66rem;margin:0 auto;padding:2.5rem 1.25rem 5rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .5rem}
h2{font-size:1.3rem;margin:0 0 .6rem;padding-top:2.2rem}
p{max-width:46rem;margin:.5rem 0 .9rem}
.lead{font-size:1.08rem;color:var(--soft)}
nav{display:flex;flex-wrap:wrap;gap:.35rem 1rem;margin:1.2rem 0;font-size:.92rem}
nav a{color:var(--mark);text-decoration:none}
nav a:hover,nav a:focus{text-decoration:underline}
dl{margin:0;padding:1rem 1.2rem;background:var(--tint);border:1px solid var(--line);
border-radius:8px;display:grid;gap:.35rem}
dl div{display:grid;grid-template-columns:9rem 1fr;gap:.8rem}
dt{color:var(--soft)}
dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:1.4rem 0 .4rem}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums;
min-width:min(34rem,100%)}
caption{text-align:left;font-weight:600;padding-bottom:.5rem}
th,td{padding:.4rem .55rem;border-bottom:1px solid var(--line);text-align:right;
white-space:nowrap;vertical-align:top}
td small{display:block;font-size:.84em;font-weight:400;color:var(--soft)}
th[scope=row],th[scope=col]:first-child{text-align:left;position:sticky;left:0;background:#fff}
thead th{color:var(--soft);font-weight:600;border-bottom:2px solid var(--line);
white-space:normal;vertical-align:bottom}
tbody th{font-weight:400;white-space:normal;min-width:8.5rem}
.best th[scope=row],.best td{font-weight:650;background:var(--tint)}
.note{font-size:.86rem;color:var(--soft);margin:.3rem 0}
figure{margin:1.6rem 0}
img{max-width:100%;height:auto;border:1px solid var(--line);border-radius:6px}
figcaption{font-size:.88rem;color:var(--soft);max-width:46rem;margin-top:.4rem}
@media (max-width:40rem){dl div{grid-template-columns:1fr;gap:0}}
@media print{nav{display:none}main{padding:0}h2{break-after:avoid}figure,table{break-inside:avoid}}
"""
