"""Renders a report as one self-contained HTML file: light and dark, printable."""

from __future__ import annotations

from server.reporting.answer import Report
from server.reporting.chart import svg
from server.reporting.document import Chart, Quote, Section, Table, document
from trainer.contract import text, units

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--soft:#59636e;--line:#d7dce1;
--paper:#fff;--mark:#0b6bcb}
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ec;--soft:#9aa4ae;--line:#343b43;
--paper:#14181c;--mark:#6cb2ff}}
*{box-sizing:border-box}
body{margin:0 auto;padding:2rem 1.25rem 4rem;max-width:60rem;background:var(--paper);
color:var(--ink);font:16px/1.55 system-ui,sans-serif}
h1{font-size:1.75rem;line-height:1.2;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.5rem 0 .75rem;padding-top:1rem;border-top:1px solid var(--line)}
p{margin:.5rem 0;max-width:46rem;overflow-wrap:anywhere}.when{color:var(--soft)}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.3rem 1.1rem .3rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--line)}
th{font-weight:600}td:first-child{color:var(--soft)}
pre{padding:.75rem 1rem;border:1px solid var(--line);border-radius:6px;white-space:pre-wrap;
overflow-wrap:anywhere;font-size:.85rem}
figure{margin:1.25rem 0}figcaption{color:var(--soft);font-size:.85rem}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font:11px system-ui,sans-serif}
.band{fill:var(--mark);opacity:.18}.mean{fill:none;stroke:var(--mark);stroke-width:1.5}
.grid{stroke:var(--line);stroke-width:1}
@media print{:root{--ink:#000;--soft:#444;--line:#bbb;--paper:#fff;--mark:#0b4f9c}
body{max-width:none;padding:0;font-size:10.5pt}h2{break-after:avoid}figure,tr,pre{break-inside:avoid}}
""".strip()


def html(report: Report) -> str:
    title = text.markup(report.title or report.name)
    generated = units.utc(report.generated_at)
    body = "\n".join(_section(section) for section in document(report))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{STYLE}
</style>
</head>
<body>
<h1>{title}</h1>
<p class="when">Run {text.markup(report.name)} ({text.markup(report.id)}), {generated}</p>
{body}
</body>
</html>
"""


def _section(section: Section) -> str:
    parts = "\n".join(_part(part) for part in section.parts)
    return f"<section>\n<h2>{text.markup(section.title)}</h2>\n{parts}\n</section>"


def _part(part: str | Table | Quote | Chart) -> str:
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Quote):
        return f"<pre>{text.markup_lines(part.text)}</pre>"
    if isinstance(part, Chart):
        bins = f" (line: mean of {part.bin_steps:,} steps; band: lowest to highest)"
        caption = text.markup(part.title + (bins if part.bin_steps > 1 else ""))
        return f"<figure>{svg(part)}<figcaption>{caption}</figcaption></figure>"
    return f"<p>{text.markup(part)}</p>"


def _table(table: Table) -> str:
    head = ""
    if any(table.head):
        cells = "".join(f"<th>{text.markup(cell)}</th>" for cell in table.head)
        head = f"<thead><tr>{cells}</tr></thead>"
    rows = "".join(
        "<tr>" + "".join(f"<td>{text.markup(cell)}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    return f'<div class="wide"><table>{head}<tbody>{rows}</tbody></table></div>'
