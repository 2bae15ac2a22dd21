"""Curves of a run's metrics: as points, as columns, and as the schedule plans them."""

from __future__ import annotations

from pydantic import BaseModel

# step, unix seconds, mean, min, max
SeriesPoint = tuple[int, float, float | None, float | None, float | None]


class Series(BaseModel):
    """points: [step, unix_seconds, mean, min, max]; step is the last one of its bin.

    identity: what evaluated values depend on; each identity has its own series.
    """

    key: str
    identity: str | None = None
    points: list[SeriesPoint]
    """Points: [step, unix seconds, mean, minimum, maximum]."""


class Segment(BaseModel):
    phase: int
    """Index of the phase, from 0."""
    attempt: int
    from_step: int
    """First step of the segment."""
    to_step: int
    """Last step of the segment."""


class MetricsAnswer(BaseModel):
    series: list[Series]
    bin_steps: int
    raw_points: int
    segments: list[Segment]


class Column(BaseModel):
    """One key over the steps of the answer; min and max are those of each bin."""

    key: str
    mean: list[float | None]
    """Mean of each bin, at the steps of the answer; null where nothing was reported."""
    min: list[float | None] | None
    """Minimum of each bin; null if bands were not requested, or for a bin of one step."""
    max: list[float | None] | None
    """Maximum of each bin; null if bands were not requested, or for a bin of one step."""


class PlannedCurve(BaseModel):
    """The planned schedule at selected steps, in the units of the history, six significant
    digits."""

    steps: list[int]
    lr_multiplier: list[float | None]
    momentum: list[float | None]
    weight_decay: list[float | None]


class MetricColumns(BaseModel):
    """GET …/metrics?columns=true: steps and times once, six significant digits.

    evaluations: values measured at steps of their own, as series of points. planned: the schedule
    after the current step, if requested.
    """

    steps: list[int]
    unix_seconds: list[float]
    series: list[Column]
    evaluations: list[Series]
    """val_bpb and core at their own steps, one series per identity."""
    bin_steps: int
    raw_points: int
    segments: list[Segment]
    planned: PlannedCurve | None = None
