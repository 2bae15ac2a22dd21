"""Routes of metrics: JSON for charts, CSV and Parquet for download."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from server.api.deps import Db, RunRef, StrictRoute, Superseded, negotiate
from server.api.openapi import problems
from server.errors import Invalid
from server.metrics import parquet
from server.queries import curves, run_views
from server.queries import planned as planned_of
from server.queries.columns import columns as columns_of
from server.schemas.metrics import MetricColumns, MetricsAnswer, Series
from trainer.contract.spec import MAX_STEPS

router = APIRouter(prefix="/v1/runs/{run}", tags=["history"], route_class=StrictRoute)
JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
HEADER = ("key", "step", "unix_seconds", "mean", "min", "max", "identity")
Row = tuple[str, int, float, float | None, float | None, float | None, str]


@router.get(
    "/metrics",
    response_model=MetricsAnswer | MetricColumns,
    responses={
        200: {
            "content": {
                CSV: {"schema": {"type": "string"}},
                PARQUET: {"schema": {"type": "string", "format": "binary"}},
            }
        }
    }
    | problems(404, 406),
)
def metrics(
    request: Request,
    run: RunRef,
    db: Db,
    keys: Annotated[
        str | None,
        Query(max_length=400, description="Comma-separated metric keys; all by default."),
    ] = None,
    from_step: Annotated[int | None, Query(ge=0, le=MAX_STEPS)] = None,
    to_step: Annotated[int | None, Query(ge=0, le=MAX_STEPS, description="Exclusive.")] = None,
    max_points: Annotated[
        int, Query(ge=1, le=20_000, description="Maximum number of points per key.")
    ] = 1000,
    bin_steps: Annotated[
        int | None,
        Query(ge=1, le=MAX_STEPS, description="Minimum bin size in steps, a power of two."),
    ] = None,
    columns: Annotated[
        bool,
        Query(description="JSON as columns: steps and times only once, six significant digits."),
    ] = False,
    bands: Annotated[
        str | None,
        Query(
            max_length=400, description="With columns: keys that carry min and max; all by default."
        ),
    ] = None,
    planned: Annotated[
        int,
        Query(
            ge=0,
            le=2000,
            description="With columns: number of points of the schedule ahead, per phase.",
        ),
    ] = 0,
    wide: Annotated[
        bool, Query(description="CSV with one line per step and one column per key (means).")
    ] = False,
    superseded: Superseded = False,
) -> Response:
    """Points `[step, unix_seconds, mean, min, max]` in bins of a power of two.

    A spike of a single step shows in the min and max of its bin at any zoom. val_bpb and core
    have one series per identity; values of different identities are never joined.
    """
    kind = negotiate(request, JSON, CSV, PARQUET)
    with db.read() as session:
        row = run_views.get_run(session, run)
        name = row.name
        answer = curves.metrics(
            session,
            row,
            keys=_keys(keys),
            from_step=from_step,
            to_step=to_step,
            max_points=max_points,
            superseded=superseded,
            bin_steps=_power_of_two(bin_steps),
        )
        ahead = (
            planned_of.of_run(session, row, from_step or 0, to_step, planned) if planned else None
        )
    headers = {"Vary": "Accept"}
    if kind == JSON and columns:
        as_columns = columns_of(answer, None if bands is None else set(bands.split(",")))
        as_columns.planned = ahead
        return Response(as_columns.model_dump_json(), headers=headers, media_type=kind)
    if kind == JSON:
        return Response(answer.model_dump_json(), headers=headers, media_type=kind)
    suffix, write = ("csv", _wide_csv if wide else _csv) if kind == CSV else ("parquet", _parquet)
    headers["Content-Disposition"] = f'attachment; filename="{name}-metrics.{suffix}"'
    return Response(write(answer), headers=headers, media_type=kind)


def _keys(text: str | None) -> list[str] | None:
    if not text:
        return None
    asked = [key.strip() for key in text.split(",") if key.strip()]
    unknown = [key for key in asked if key not in curves.METRIC_KEYS]
    if unknown:
        known = ", ".join(curves.METRIC_KEYS)
        detail = f"there is no series {unknown[0]!r}; there are {known}"
        raise Invalid(f"Keys: {detail}.", errors=[{"pointer": "?keys", "detail": detail}])
    return list(dict.fromkeys(asked))


def _rows(answer: MetricsAnswer) -> Iterator[Row]:
    for series in answer.series:
        for point in series.points:
            yield (series.key, *point, series.identity or "")


def _csv(answer: MetricsAnswer) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows(_rows(answer))
    return out.getvalue()


def _wide_csv(answer: MetricsAnswer) -> str:
    """Wide CSV: step, unix_seconds, then the mean of each key; val_bpb and core at their own
    steps."""
    names = [_column_name(series) for series in answer.series]
    lines: dict[int, dict[str, float | None]] = {}
    times: dict[int, float] = {}
    for name, series in zip(names, answer.series, strict=True):
        for step, seconds, mean, _, _ in series.points:
            lines.setdefault(step, {})[name] = mean
            times.setdefault(step, seconds)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["step", "unix_seconds", *names])
    writer.writerows(
        [step, times[step], *(line.get(name) for name in names)]
        for step, line in sorted(lines.items())
    )
    return out.getvalue()


def _column_name(series: Series) -> str:
    return f"{series.key}@{series.identity[:12]}" if series.identity else series.key


def _power_of_two(asked: int | None) -> int | None:
    if asked is None or asked & (asked - 1) == 0:
        return asked
    detail = f"{asked} is not a power of two"
    raise Invalid(f"Bin_steps: {detail}.", errors=[{"pointer": "?bin_steps", "detail": detail}])


def _parquet(answer: MetricsAnswer) -> bytes:
    columns = list(zip(*_rows(answer), strict=True)) or [()] * len(HEADER)
    kinds = ("string", "int64", "double", "double", "double", "double", "string")
    return parquet.write(
        [
            parquet.ParquetColumn(name, kind, values)
            for name, kind, values in zip(HEADER, kinds, columns, strict=True)
        ]
    )
