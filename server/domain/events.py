"""Events: what happened to a run, a job or the daemon, one row each, written by `record` alone."""

from __future__ import annotations

import time
from typing import Any

from sqlalchemy.orm import Session

from server.database import tables


def record(
    session: Session,
    kind: str,
    message: str,
    *,
    run_id: str | None = None,
    job_id: str | None = None,
    attempt: int | None = None,
    level: str = "info",
    step: int | None = None,
    data: dict[str, Any] | None = None,
    now: float | None = None,
) -> None:
    """One event, in the caller's transaction. attempt: its number. now: unix seconds."""
    session.add(
        tables.Event(
            run_id=run_id,
            job_id=job_id,
            attempt_number=attempt,
            kind=kind,
            level=level,
            step=step,
            message=message,
            data=data or {},
            unix_seconds=time.time() if now is None else now,
        )
    )


def about(row: tables.Attempt | tables.Job) -> dict[str, Any]:
    """The subject of an event: the arguments of `record` for an attempt or a job."""
    if isinstance(row, tables.Attempt):
        return {"run_id": row.run_id, "attempt": row.number}
    return {"run_id": row.run_id, "job_id": row.id}
