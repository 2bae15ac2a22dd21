"""Newest attempt, checkpoint, phase and evaluation times of a run, in one statement.

It is read many times a second, and each statement costs: 0.4 ms of
an answer of three.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import ScalarSelect, bindparam, case, select
from sqlalchemy.orm import Session, aliased

from server.database import tables
from server.domain import attempts, checkpoint_lookup, lineage


class Latest(NamedTuple):
    """attempt: the newest trainer. checkpoint: the newest good one. phase: the present one, or the
    last. bpb_seconds, core_seconds: what the last of its kind took that was part of the training.
    """

    attempt: tables.Attempt | None
    checkpoint: tables.Checkpoint | None
    phase: str | None
    bpb_seconds: float | None
    core_seconds: float | None


def latest(session: Session, run_id: str) -> Latest:
    return Latest(*session.execute(_STANDING, {"run": run_id}).one())


def _phase_name() -> ScalarSelect[str]:
    """Name of the first phase of the current lineage that has not ended, else of the last."""
    phase, ended = tables.Phase, tables.Phase.ended_at_step.is_not(None)
    return (
        select(phase.name)
        .where(phase.run_id == bindparam("run"), lineage.IS_CURRENT)
        .order_by(ended, case((ended, -phase.index), else_=phase.index))
        .limit(1)
        .scalar_subquery()
    )


def _last_seconds(kind: str) -> ScalarSelect[float]:
    done = tables.Evaluation
    return (
        select(done.seconds)
        .where(done.run_id == bindparam("run"), done.kind == kind)
        .where(done.job_id.is_(None), done.seconds > 0)
        .order_by(done.id.desc())
        .limit(1)
        .scalar_subquery()
    )


# joined by id: SQLite would first copy a whole subquery
_attempt, _checkpoint = aliased(tables.Attempt), aliased(tables.Checkpoint)
_last = attempts.LAST_ATTEMPT.with_only_columns(tables.Attempt.id).scalar_subquery()
_newest = checkpoint_lookup.NEWEST.with_only_columns(tables.Checkpoint.id).scalar_subquery()
_STANDING = (
    select(_attempt, _checkpoint, _phase_name(), _last_seconds("bpb"), _last_seconds("core"))
    .select_from(tables.Run)
    .outerjoin(_attempt, _attempt.id == _last)
    .outerjoin(_checkpoint, _checkpoint.id == _newest)
    .where(tables.Run.id == bindparam("run"))
)
