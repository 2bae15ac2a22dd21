"""Reads the run directories as rows: orders, journals, exit records, checkpoints.

Shared by `rebuilt_run`, for a run without rows, and `catch_up`, for a restored database.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy.orm import Session

from server.database import tables
from server.database.db import Database
from server.database.migrate import Refused
from server.domain import checkpoint_lookup, checkpoints, executions, gang, states
from server.domain.states import Desired, State
from server.errors import Busy, DiskFull, StorageBroken
from server.ingestion import ingest
from trainer.contract.exits import read_exit
from trainer.contract.orders import ORDER, AttemptOrder, read
from trainer.contract.reasons import Reason
from trainer.contract.rundir import LOCK, DataDir, RunDir, is_held, parse_attempt_name
from trainer.contract.schedule import PhaseSchedule


@dataclass
class Found:
    """Runs and records found on the disk. runs: names. records: count. problems: sentences."""

    runs: list[str] = field(default_factory=list)
    attempts: int = 0
    records: int = 0
    problems: list[str] = field(default_factory=list)


@contextmanager
def noting(directory: Path, found: Found) -> Iterator[None]:
    """Record an error of one directory as a problem, so that the others are still read. Errors of
    the database and Refused are raised."""
    try:
        yield
    except (Busy, DiskFull, StorageBroken, Refused):
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:600]
        found.problems.append(f"{directory}: {type(error).__name__}: {why}")


def orders_of(directory: Path, found: Found) -> list[AttemptOrder]:
    """The readable orders of a run's attempts, sorted by attempt number."""
    orders = []
    for path in sorted((directory / "attempts").glob(f"*/{ORDER}")):
        number = parse_attempt_name(path.parent.name)
        if number is None:
            found.problems.append(f"{path.parent}: not an attempt directory; skipped")
            continue
        try:
            order = read(path.parent, AttemptOrder)
        except (OSError, ValidationError) as error:
            found.problems.append(f"{path}: {' '.join(str(error).split())[:600]}")
            continue
        if order.attempt == number and order.run_id == directory.name:
            orders.append(order)
        else:
            found.problems.append(
                f"{path}: belongs to run {order.run_id}, attempt {order.attempt}; skipped"
            )
    return sorted(orders, key=lambda order: order.attempt)


def is_alive(paths: DataDir, directory: Path, order: AttemptOrder) -> bool:
    """True if a trainer holds the lock of this attempt."""
    return is_held(paths.run(directory.name).attempt(order.attempt) / LOCK)


def phase_row(
    run: tables.Run, index: int, name: str, schedule: PhaseSchedule, checkpoint: str | None
) -> tables.Phase:
    """Phase row from an order."""
    return tables.Phase(
        run_id=run.id,
        index=index,
        name=name,
        start_step=schedule.start_step,
        end_step=schedule.end_step,
        schedule=schedule.model_dump(mode="json"),
        from_checkpoint=checkpoint,
        created_at=run.created_at,
    )


def add_attempt(
    db: Database, paths: DataDir, directory: Path, order: AttemptOrder, found: Found
) -> None:
    """Add the row of an attempt without one, and apply its journal."""
    alive = is_alive(paths, directory, order)
    created = directory.stat().st_mtime
    with db.write() as session:
        row = tables.Attempt(
            execution=executions.of_attempt(
                directory.name, order.attempt, now=created, token=order.token, stage_since=None,
                place=gang.as_place(order.device, order.devices),
            ),
            run_id=directory.name,
            number=order.attempt,
            phase_index=order.phase_index,
            device=order.device,
        )  # fmt: skip
        session.add(row)
        session.flush()
        attempt_id, execution_id = row.id, row.execution_id
    read_journal(db, paths, execution_id, f"{order.run_name}, attempt {order.attempt}", found)
    if not alive:
        with db.write() as session:
            row = session.get_one(tables.Attempt, attempt_id)
            close(row.execution, paths)


def read_journal(db: Database, paths: DataDir, execution_id: int, name: str, found: Found) -> None:
    """Apply the remaining records of a journal."""
    while True:
        result = ingest.ingest(db, execution_id, paths)
        found.records += result.applied
        if not result.more:
            break
    if result.problem:
        found.problems.append(f"{name}: {result.problem}")


def close(execution: tables.Execution, paths: DataDir, without_record: str | None = None) -> None:
    """End an execution by its exit record. without_record: the outcome if there is no exit record
    and none was reported; None leaves the outcome unknown."""
    record = read_exit(paths.root / execution.directory)
    outcome, reason = execution.outcome or without_record, execution.reason
    message, at = execution.message, execution.ended_at
    if record is not None:
        outcome, reason, message = record.outcome, record.reason, record.message
        at = record.unix_seconds
    if without_record is not None:
        reason = reason or Reason.crashed
        at = max(at or 0.0, execution.started_at or execution.created_at)
    known = Reason(reason) if reason else None
    executions.end_as_found(execution, outcome, known, message, at)


def set_found_state(
    session: Session,
    run: tables.Run,
    state: State,
    desired: Desired,
    reason: Reason,
    message: str | None = None,
) -> None:
    """Set the state of a run as found on the disk."""
    run.desired_state = desired
    states.move(session, run, state, reason, message, is_found=True)


def checkpoints_on_disk(session: Session, run: tables.Run, directory: RunDir) -> None:
    """Add rows for unreported checkpoints, and mark the rows of deleted ones."""
    checkpoints.record_found(session, run)
    for row in checkpoint_lookup.existing(session, run.id, superseded=True):
        if not (directory.checkpoints / row.name).is_dir():
            row.deleted_at = time.time()
