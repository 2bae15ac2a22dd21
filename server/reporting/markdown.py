"""Renders a report as Markdown, with user text escaped."""

from __future__ import annotations

from server.reporting.answer import Report
from server.reporting.document import Chart, Quote, Section, Table, document
from trainer.contract import text, units


def markdown(report: Report) -> str:
    lines = [f"# {text.markdown(report.title or report.name)}", ""]
    lines += [
        f"Run {text.markdown(report.name)} ({report.id}), {units.utc(report.generated_at)}.",
        "",
    ]
    for section in document(report):
        lines += _section(section)
    return "\n".join(lines).rstrip() + "\n"


def _section(section: Section) -> list[str]:
    lines = [f"## {section.title}", ""]
    for part in section.parts:
        if isinstance(part, Table):
            lines += [*_table(part), ""]
        elif isinstance(part, Quote):
            lines += [*text.markdown_lines(part.text), ""]
        elif isinstance(part, Chart):
            lines += [_course(part), ""]
        else:
            lines += [text.markdown(part), ""]
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
    head = "| " + " | ".join(text.markdown(cell) for cell in table.head) + " |"
    rule = "|" + "---|" * len(table.head)
    return [
        head,
        rule,
        *("| " + " | ".join(text.markdown(c) for c in row) + " |" for row in table.rows),
    ]
