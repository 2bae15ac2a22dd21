"""Curves as columns: steps and times once for all keys, six significant digits.

A dashboard asks for a dozen keys of the same steps every few seconds, perhaps through a tunnel; as
points each of them repeats the step and the time, with seventeen digits that no chart shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from server.schemas.metrics import Column, MetricColumns, MetricsAnswer, Series
from trainer.contract.evaluations import KIND_OF_METRIC


def columns(answer: MetricsAnswer, banded: set[str] | None = None) -> MetricColumns:
    """banded: keys that carry min and max; None: all. Bins of one step need neither."""
    plain = [s for s in answer.series if s.key not in KIND_OF_METRIC]
    shared = plain[0].points if plain else []
    wide = answer.bin_steps > 1
    return MetricColumns(
        steps=[p[0] for p in shared],
        unix_seconds=[round(p[1], 1) for p in shared],
        series=[_column(s, wide and (banded is None or s.key in banded)) for s in plain],
        evaluations=[
            Series(key=s.key, identity=s.identity, points=s.points)
            for s in answer.series
            if s.key in KIND_OF_METRIC and s.points
        ],
        bin_steps=answer.bin_steps,
        raw_points=answer.raw_points,
        segments=answer.segments,
    )


def _column(series: Series, with_band: bool) -> Column:
    return Column(
        key=series.key,
        mean=rounded(p[2] for p in series.points),
        min=rounded(p[3] for p in series.points) if with_band else None,
        max=rounded(p[4] for p in series.points) if with_band else None,
    )


def rounded(values: Iterable[float | None]) -> list[float | None]:
    return [v if v is None or not math.isfinite(v) else float(f"{v:.6g}") for v in values]
