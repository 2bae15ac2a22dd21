"""Metric series over the current lineage at any zoom."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from server.domain import lineage
from server.domain.lineage import Stretch
from server.errors import Invalid
from server.metrics import rollups
from server.metrics.rollups import Bin
from server.schemas.metrics import MetricsAnswer, Segment, Series, SeriesPoint
from trainer.contract.evaluations import KIND_OF_METRIC
from trainer.contract.metrics import BY_KEY
from trainer.contract.spec import MAX_STEPS

METRIC_KEYS = tuple(BY_KEY)


def metrics(
    session: Session,
    run: tables.Run,
    keys: list[str] | None = None,
    from_step: int | None = None,
    to_step: int | None = None,
    max_points: int = 1000,
    superseded: bool = False,
    bin_steps: int | None = None,
) -> MetricsAnswer:
    """Points [step, unix seconds, mean, min, max] in bins of a power of two, over `[from, to)`.

    bin_steps: bins of at least this size, so that what is new fits to what was asked for before.

    With `superseded` every attempt in full, one after the other. Raises Invalid for unknown keys.
    """
    asked = list(dict.fromkeys(keys or METRIC_KEYS))
    _check(asked)
    low, high = from_step or 0, MAX_STEPS if to_step is None else to_step
    found = [
        Stretch(s.attempt_id, s.number, s.phase_index, max(s.low, low), min(s.high, high))
        for s in lineage.stretches(session, run.id, superseded=superseded)
        if max(s.low, low) < min(s.high, high)
    ]
    size = 1
    if found:
        first, last = min(s.low for s in found), max(s.high for s in found)
        size = max(bin_steps or 1, rollups.bin_steps_for(first, last, max_points))
    plain = [key for key in asked if key not in KIND_OF_METRIC]
    rows = _rows(session, found, size, plain, superseded) if plain else []
    series: list[Series] = []
    for key in asked:
        if key in plain:
            points = _points(rows, plain.index(key))
            series.append(Series.model_construct(key=key, identity=None, points=points))
        else:
            series += _evaluated(session, run.id, key, low, high, superseded)
    return MetricsAnswer.model_construct(
        series=series,
        bin_steps=size,
        raw_points=sum(s.high - s.low for s in found),
        segments=[
            Segment(phase=s.phase_index, attempt=s.number, from_step=s.low, to_step=s.high)
            for s in found
        ],
    )


def _check(keys: list[str]) -> None:
    unknown = [key for key in keys if key not in METRIC_KEYS]
    if unknown:
        raise Invalid(
            f"unknown metric {unknown[0][:40]!r}",
            hint=f"Known are {', '.join(METRIC_KEYS)}.",
            errors=[{"pointer": "/keys", "detail": "unknown metric"}],
        )


def _rows(
    session: Session, found: list[Stretch], size: int, keys: list[str], superseded: bool
) -> list[Bin]:
    connection = session.connection()
    parts = [rollups.read(connection, s.attempt_id, s.low, s.high, size, keys) for s in found]
    if superseded:  # attempts overlap, so each has its own bins
        return [one for part in parts for one in rollups.binned(part, size)]
    return rollups.binned((one for part in parts for one in part), size)


def _points(bins: list[Bin], at: int) -> list[SeriesPoint]:
    points: list[SeriesPoint] = []
    for part in bins:
        count, total, low, high = part.stats[4 * at : 4 * at + 4]
        step, seconds = part.last_step, part.unix_seconds
        if count:
            points.append((step, seconds, total / count, low, high))
        else:
            points.append((step, seconds, None, None, None))
    return points


def _evaluated(
    session: Session, run_id: str, key: str, low: int, high: int, superseded: bool
) -> list[Series]:
    """A series for each identity, a point for each measurement, at the number of steps done."""
    table = tables.Evaluation
    query = select(table.identity, table.step, table.unix_seconds, table.value).where(
        table.run_id == run_id,
        table.kind == KIND_OF_METRIC[key],
        table.step >= low,
        table.step <= high,
    )
    if not superseded:
        query = query.where(table.superseded.is_(False))
    found: dict[str | None, list[SeriesPoint]] = {}
    for identity, step, seconds, value in session.execute(query.order_by(table.step, table.id)):
        found.setdefault(identity, []).append((step, seconds, value, value, value))
    return [
        Series.model_construct(key=key, identity=identity, points=points)
        for identity, points in (found or {None: []}).items()
    ]
