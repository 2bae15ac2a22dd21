"""`traind metrics`, `evaluations`, `samples`, `report`: results of a run."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.cli import options, output, plot
from trainer.contract import units
from trainer.contract.evaluations import BY_KIND
from trainer.contract.metric_text import shown
from trainer.contract.text import clean_lines

if TYPE_CHECKING:
    from server.client import ReportFormat
    from server.schemas.metrics import Series

Out = Annotated[Path | None, typer.Option("--output", "-o", help="Write to this file.")]


def register(app: typer.Typer) -> None:
    for command in (metrics, evaluations, samples, report):
        app.command(rich_help_panel="Results")(command)


def metrics(
    run: options.RunArgument,
    keys: Annotated[
        str | None,
        typer.Option(help="Metric keys, comma-separated: loss, val_bpb, tokens_per_second, …"),
    ] = None,
    from_step: Annotated[int | None, typer.Option(min=0)] = None,
    to_step: Annotated[int | None, typer.Option(min=0)] = None,
    max_points: Annotated[int | None, typer.Option(min=1)] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print the points as CSV.")] = False,
    parquet: Annotated[bool, typer.Option("--parquet", help="Write Parquet (needs -o).")] = False,
    file: Out = None,
    json: options.Json = False,
) -> None:
    """Plot metrics of a run in the terminal. --csv or --json prints the points."""
    if parquet and file is None:
        output.usage("--parquet needs a file: -o FILE")
    wanted = [key.strip() for key in keys.split(",") if key.strip()] if keys else None
    span = {"from_step": from_step, "to_step": to_step, "max_points": max_points}
    with output.connect() as traind:
        if csv:
            return _write(traind.metrics_file(run, "csv", keys=wanted, **span).decode(), file)
        if parquet:
            return _write_bytes(traind.metrics_file(run, "parquet", keys=wanted, **span), file)
        answer = traind.metrics(run, keys=wanted, **span)
    if json:
        return output.emit(answer)
    rows = []
    for series in answer.series:
        means = [p[2] for p in series.points]
        finite = [m for m in means if m is not None]
        value = partial(shown, series.key)
        low = [p[3] for p in series.points if p[3] is not None]
        high = [p[4] for p in series.points if p[4] is not None]
        if finite:
            rows.append(
                (
                    _named(series, answer.series), plot.sparkline(means, 32),
                    value(finite[0]), value(finite[-1]),
                    value(min(low)), value(max(high)), len(series.points),
                )
            )  # fmt: skip
    columns = ("KEY", "COURSE", ">FIRST", ">LAST", ">LEAST", ">MOST", ">POINTS")
    output.table(columns, rows, "no points yet")
    return None


def _named(series: Series, among: list[Series]) -> str:
    """Label of a series: its key, and its identity if the key has several."""
    alone = sum(other.key == series.key for other in among) == 1
    return series.key if alone else f"{series.key} as {(series.identity or '')[:6]}"


def evaluations(run: options.RunArgument, json: options.Json = False) -> None:
    """List val bpb and CORE results with their settings."""
    with output.connect() as traind:
        found = traind.evaluations(run)
    if json:
        return output.emit(found)
    rows = [
        (
            BY_KIND[e.kind].label, units.integer(e.step), BY_KIND[e.kind].text(e.value),
            e.identity[:12],
            units.duration(e.seconds), units.when(e.unix_seconds),
            "best" if e.best else "superseded" if e.superseded else "",
        )
        for e in found
    ]  # fmt: skip
    columns = ("KIND", ">STEP", ">VALUE", "IDENTITY", ">TOOK", "WHEN", "")
    output.table(columns, rows, "no evaluations yet")
    return None


def samples(run: options.RunArgument, json: options.Json = False) -> None:
    """List samples generated at intervals or on request."""
    with output.connect() as traind:
        found = traind.samples(run)
    if json:
        return output.emit(found)
    for sample in found:
        output.say(f"step {sample.step:,}  {sample.prompt!r}", "bold")
        output.say(sample.text)
    if not found:
        output.note("no samples yet; make one with: traind sample RUN --prompt '…'")
    return None


def report(
    run: options.RunArgument,
    html: Annotated[bool, typer.Option("--html", help="Write a self-contained HTML page.")] = False,
    file: Out = None,
    json: options.Json = False,
) -> None:
    """Print the report of a run, in Markdown."""
    if html and json:
        output.usage("give one of --html and --json")
    form: ReportFormat = "html" if html else "json" if json else "markdown"
    with output.connect() as traind:
        _write(traind.report(run, form), file)


def _write(text: str, file: Path | None) -> None:
    """Write to `file` unchanged, or to stdout with control characters escaped."""
    if file is not None:
        return _write_bytes(text.encode(), file)
    sys.stdout.write(clean_lines(text).rstrip("\n") + "\n")
    return None


def _write_bytes(content: bytes, file: Path | None) -> None:
    assert file is not None
    try:
        file.write_bytes(content)
    except OSError as error:
        raise output.CommandRefused(f"{file} cannot be written: {error.strerror}") from error
    output.note(f"wrote {file}")
