"""The planned schedule at the steps of a chart, computed by the trainer's own functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sqlalchemy.orm import Session

from server.database import tables
from server.domain import lineage
from server.queries.columns import rounded
from server.schemas.metrics import PlannedCurve
from trainer.contract.plan import Plan
from trainer.contract.schedule import PhaseSchedule, curve

PLAN_POINTS = 300


def of_run(
    session: Session, run: tables.Run, from_step: int, to_step: int | None, max_points: int
) -> PlannedCurve:
    """The schedule from the current step on, each phase up to the start of the next one."""
    phases = lineage.phases(session, run.id)
    schedules = [PhaseSchedule.model_validate(phase.schedule) for phase in phases]
    peak = Plan.model_validate(run.plan).hyperparameters.weight_decay
    return along(schedules, peak, max(from_step, run.step), to_step, max_points)


def along(
    schedules: Sequence[PhaseSchedule],
    peak_weight_decay: float,
    from_step: int,
    to_step: int | None,
    max_points: int,
) -> PlannedCurve:
    """The schedule over several phases; at a joint, the value that the earlier one reaches."""
    ends = [s.start_step for s in schedules[1:]] + [s.end_step for s in schedules[-1:]]
    points: dict[int, tuple[int, float, float, float]] = {}
    for schedule, end in zip(schedules, ends, strict=True):
        low = max(from_step, schedule.start_step)
        high = end if to_step is None else min(end, to_step)
        if high > low:
            for point in curve(schedule, low, high, max_points):
                points.setdefault(point[0], point)
    return _columns(points.values(), peak_weight_decay)


def of_plan(plan: Plan) -> PlannedCurve:
    points = curve(plan.schedule, 0, plan.horizon.steps, PLAN_POINTS)
    return _columns(points, plan.hyperparameters.weight_decay)


def _columns(
    points: Iterable[tuple[int, float, float, float]], peak_weight_decay: float
) -> PlannedCurve:
    found = list(points)
    return PlannedCurve(
        steps=[point[0] for point in found],
        lr_multiplier=rounded(point[1] for point in found),
        momentum=rounded(point[2] for point in found),
        weight_decay=rounded(peak_weight_decay * point[3] for point in found),
    )
