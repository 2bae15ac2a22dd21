"""Executions: created with an order, moved only by `move`, ended only by `end` with their event.

queued -> running -> ended. An attempt is made running, when it is launched; a job waits first. How
an execution ended is its outcome; for a job that is the state that the API shows.
"""

from __future__ import annotations

import secrets
import time
from enum import StrEnum
from typing import Any

from sqlalchemy import delete as sql_delete
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from server.database import tables
from server.domain import events
from server.errors import IllegalMove
from server.launch import registry
from trainer.contract import holds, rundir
from trainer.contract.reasons import Reason


class ExecutionState(StrEnum):
    """States of an execution; `ended` is final."""

    queued = "queued"
    running = "running"
    ended = "ended"


MOVES: dict[ExecutionState, frozenset[ExecutionState]] = {
    ExecutionState.queued: frozenset({ExecutionState.running, ExecutionState.ended}),
    ExecutionState.running: frozenset({ExecutionState.ended}),
    ExecutionState.ended: frozenset(),
}
OPEN = (ExecutionState.queued, ExecutionState.running)
IS_OPEN = tables.Execution.state.in_(OPEN)


def move(execution: tables.Execution, after: ExecutionState) -> None:
    """Move the execution. Raises IllegalMove when the table forbids it."""
    before = ExecutionState(execution.state)
    if after not in MOVES[before]:
        raise IllegalMove(
            f"the execution in {execution.directory} is {before}: it cannot become {after}",
            state=before,
            legal=sorted(MOVES[before]),
        )
    execution.state = after


# --- made ----------------------------------------------------------------------------------------


def of_attempt(
    run_id: str, number: int, *, place: str, now: float, token: str | None = None, **found: Any
) -> tables.Execution:
    """Create the running execution of an attempt. found: columns known from elsewhere."""
    return tables.Execution(
        kind="attempt",
        directory=f"runs/{run_id}/attempts/{number:04d}",
        place=place,
        token=secrets.token_hex(16) if token is None else token,
        created_at=now,
        **{"state": ExecutionState.running, "stage_since": now, **found},
    )


def of_import(run_id: str, *, now: float, **found: Any) -> tables.Execution:
    """The execution of attempt 0, which represents imported training; created as ended."""
    return of_attempt(
        run_id, 0, place="import", now=now, state=ExecutionState.ended, stage="imported",
        stage_since=None, outcome="completed", reason=Reason.finished, **found,
    )  # fmt: skip


def of_job(job_id: str, *, place: str, now: float, message: str = "") -> tables.Execution:
    """Create the queued execution of a job."""
    return tables.Execution(
        kind="job",
        directory=f"jobs/{job_id}",
        place=place,
        token=secrets.token_hex(16),
        created_at=now,
        state=ExecutionState.queued,
        stage="queued",
        stage_since=now,
        message=message,
    )


def reports_process(execution: tables.Execution, identity: rundir.ProcessIdentity) -> None:
    """Record the pid and start time that a process reports: its handle, if it runs on this
    machine."""
    if execution.launcher in registry.ON_THIS_MACHINE:
        named = {"boot_id": identity.boot_id, "pid": identity.pid}
        execution.handle = {**execution.handle, **named, "start_ticks": identity.start_ticks}


def enter_stage(
    execution: tables.Execution,
    stage: str,
    at: float,
    detail: str = "",
    fraction: float | None = None,
) -> None:
    """Record the stage that a process reports; it begins with the first report of it, `at`."""
    if execution.stage != stage or execution.stage_since is None:
        execution.stage, execution.stage_since = stage, at
    execution.stage_detail, execution.stage_fraction = detail, fraction


# --- ended ---------------------------------------------------------------------------------------


def conclude(
    execution: tables.Execution, outcome: str | None, reason: str | None, message: str
) -> None:
    """Write how the execution ends and why, or without an outcome why it is not running yet.

    Nothing else writes an outcome or a reason.
    """
    execution.outcome, execution.reason, execution.message = outcome, reason, message


def report(execution: tables.Execution, outcome: str, reason: Reason, message: str) -> None:
    """Record an ending that is reported before the process is gone; the first report stays.

    Why the supervisor stopped it takes precedence over how the process ended.
    """
    first = execution.outcome or outcome
    if execution.reason is None:
        conclude(execution, first, reason, message)
    else:
        conclude(execution, first, execution.reason, execution.message)


def end(
    session: Session,
    row: tables.Attempt | tables.Job,
    outcome: str,
    reason: Reason,
    message: str,
    *,
    log_tail: str | None = None,
    exit_code: int | None = None,
    now: float | None = None,
) -> None:
    """End the execution of an attempt or a job, with its event, and release what it held."""
    execution = row.execution
    move(execution, ExecutionState.ended)
    began = execution.started_at or execution.created_at  # a clock may have been set back meanwhile
    at = (execution.ended_at or time.time()) if now is None else now
    execution.ended_at = max(at, began)
    conclude(execution, outcome, reason, message)
    execution.log_tail = log_tail if log_tail is not None else execution.log_tail
    execution.exit_code = exit_code
    if isinstance(row, tables.Job):
        _release(session, row)
        _record_job(session, row, now)
    elif outcome in ("crashed", "failed"):  # one that ended as planned is no news
        _record_attempt(session, row, log_tail)


def _release(session: Session, job: tables.Job) -> None:
    """Release the checkpoints that the job held."""
    if job.run_id is not None:
        holds.release(session.info["paths"].run(job.run_id).checkpoints, job.id)


def _record_job(session: Session, job: tables.Job, now: float | None) -> None:
    level = "error" if job.execution.outcome == "failed" else "info"
    words = f"{job.kind} job {job.execution.outcome}" + (f": {job.message}" if job.message else "")
    events.record(session, "job", words, **events.about(job), level=level, now=now)


def _record_attempt(session: Session, attempt: tables.Attempt, log_tail: str | None) -> None:
    where = f" after step {attempt.last_step:,}" if attempt.last_step is not None else ""
    words = f"attempt {attempt.number} {attempt.outcome}{where}: {attempt.message}"
    data = {"reason": attempt.reason, "log_tail": log_tail}
    events.record(session, "attempt", words, **events.about(attempt), level="error", data=data)


def end_as_found(
    execution: tables.Execution,
    outcome: str | None,
    reason: Reason | None,
    message: str,
    at: float | None,
) -> None:
    """End an execution that was read from the disk, without an event, since it is not new."""
    move(execution, ExecutionState.ended)
    conclude(execution, outcome, reason, message)
    execution.ended_at = at


def delete_of_run(session: Session, run_id: str) -> None:
    """Delete the executions of a run, its attempts and its jobs with them."""
    attempt, job = tables.Attempt, tables.Job
    ids = or_(
        tables.Execution.id.in_(select(attempt.execution_id).where(attempt.run_id == run_id)),
        tables.Execution.id.in_(select(job.execution_id).where(job.run_id == run_id)),
    )
    session.execute(
        sql_delete(tables.Execution).where(ids).execution_options(synchronize_session=False)
    )
