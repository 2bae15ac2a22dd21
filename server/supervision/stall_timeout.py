"""Stall timeout: how long a process may be silent before it counts as hung."""

from __future__ import annotations

import statistics

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database.tables import Attempt, Job, Point

STEPS_OF_SILENCE = 20
RECENT_STEPS = 50
# Reading corpora, compiling, probing, evaluating and saving report rarely and get more time.
OTHER_STAGES = 3.0


def of(session: Session, row: Attempt | Job, at_least: float) -> float:
    """Stall timeout in seconds: twenty of the run's steps, and at least `at_least`."""
    if isinstance(row, Job) or row.stage != "training":
        return OTHER_STAGES * at_least
    recent = session.scalars(
        select(Point.step_seconds)
        .where(Point.attempt_id == row.id, Point.step_seconds.is_not(None))
        .order_by(Point.step.desc())
        .limit(RECENT_STEPS)
    ).all()
    seconds = [value for value in recent if value is not None]
    return max(at_least, STEPS_OF_SILENCE * statistics.median(seconds)) if seconds else at_least
