"""A report as Markdown. Whatever a user named cannot break a table, a list or a fence."""

from __future__ import annotations

import re

from server.reporting.answer import Report
from server.reporting.document import Chart, Quote, Section, Table, document, moment

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|])")


def markdown(report: Report) -> str:
    lines = [f"# {_text(report.title or report.name)}", ""]
    lines += [f"Run {_text(report.name)} ({report.id}), {moment(report.generated_at)}.", ""]
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
            first, last = part.points[0], part.points[-1]
            lines += [
                f"{part.title}: {first[1]:.4g} at step {first[0]:,}, {last[1]:.4g} at step "
                f"{last[0]:,}; lowest {min(p[2] for p in part.points):.4g}, highest "
                f"{max(p[3] for p in part.points):.4g}.",
                "",
            ]
        else:
            lines += [_text(part), ""]
    return lines


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
    flat = " ".join("".join(c if c.isprintable() else " " for c in cell).split())
    return _SPECIAL.sub(r"\\\1", flat)
