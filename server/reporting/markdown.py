"""Renders a report as Markdown, with user text escaped."""

from __future__ import annotations

import re

from server.reporting.answer import Report
from server.reporting.document import Chart, Quote, Section, Table, document
from server.text import spaced
from trainer.contract import units

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|])")


def markdown(report: Report) -> str:
    lines = [f"# {_text(report.title or report.name)}", ""]
    lines += [f"Run {_text(report.name)} ({report.id}), {units.utc(report.generated_at)}.", ""]
    for section in document(report):
        lines += _section(section)
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section) -> list[str]:
    lines = [f"## {section.title}", ""]
    for part in section.parts:
        if isinstance(part, Table):
            lines += [*_table(part), ""]
        elif isinstance(part, Quote):
            lines += [*_quote(part), ""]
        elif isinstance(part, Chart):
            lines += [_course(part), ""]
        else:
            lines += [_text(part), ""]
    return lines


def _course(chart: Chart) -> str:
    """Where a curve began and ended. A point of several steps is a mean, and is called one."""
    first, last = chart.points[0], chart.points[-1]
    low, high = min(p[2] for p in chart.points), max(p[3] for p in chart.points)
    begin, end, lowest, highest = map(units.significant, (first[1], last[1], low, high))
    if chart.bin_steps == 1:
        between = f"from {begin} at step {first[0]:,} to {end} at step"
        return f"{chart.title}: {between} {last[0]:,}; lowest {lowest}, highest {highest}."
    between = f"{begin} over the first {chart.bin_steps:,} steps, {end} over"
    return (
        f"{chart.title}: mean {between} the last ones; lowest single step {lowest}, highest "
        f"{highest}."
    )


def _table(table: Table) -> list[str]:
    head = "| " + " | ".join(_text(cell) for cell in table.head) + " |"
    rule = "|" + "---|" * len(table.head)
    return [head, rule, *("| " + " | ".join(_text(c) for c in row) + " |" for row in table.rows)]


def _quote(quote: Quote) -> list[str]:
    longest = max((len(run) for run in re.findall(r"`+", quote.text)), default=0)
    fence = "`" * max(3, longest + 1)
    clean = "".join(c for c in quote.text if c in "\n\t" or c.isprintable())
    return [fence, *clean.split("\n"), fence]


def _text(cell: str) -> str:
    flat = " ".join(spaced(cell).split())
    return _SPECIAL.sub(r"\\\1", flat)
