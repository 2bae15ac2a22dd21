"""Catches up after a restore: adds runs and attempts that were started after the backup.

Their journals are on the disk, so no training since the backup is lost.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from server.database.db import Database
from server.domain import attempts, events, lineage, run_deletion, run_files
from server.domain.run_files import RunFile
from server.domain.states import Desired, State
from server.ingestion import disk, rebuilt_run
from server.ingestion.disk import Found
from trainer.contract.orders import ORDER, AttemptOrder
from trainer.contract.reasons import Reason
from trainer.contract.rundir import DataDir, RunDir, parse_attempt_name


def catch_up(db: Database, paths: DataDir) -> Found:
    """Add rows for runs and attempts on the disk that have none."""
    found = Found()
    for directory, numbers in _unknown(db, paths):
        with disk.noting(directory, found):
            if numbers is None:
                rebuilt_run.add(db, paths, directory, found)
            else:
                _add_attempts(db, paths, directory, numbers, found)
    return found


def _unknown(db: Database, paths: DataDir) -> list[tuple[Path, set[int] | None]]:
    """Directories of runs without a row (None), and attempt numbers without one."""
    with db.read() as session:
        runs = set(session.scalars(select(tables.Run.id)))
        gone = select(tables.Event.data).where(tables.Event.kind == "deleted")
        deleted = {data.get("run") for data in session.scalars(gone)}
        known: dict[str, set[int]] = {}
        for run_id, number in session.execute(select(tables.Attempt.run_id, tables.Attempt.number)):
            known.setdefault(run_id, set()).add(number)
    found: list[tuple[Path, set[int] | None]] = []
    for directory in _directories(paths):
        if directory.name not in runs:
            if directory.name not in deleted and _is_whole(directory):
                found.append((directory, None))
        elif missing := _ordered(directory) - known.get(directory.name, set()):
            found.append((directory, missing))
    return found


def _directories(paths: DataDir) -> list[Path]:
    with suppress(OSError):
        return sorted((paths.root / "runs").glob("run_*"))
    return []


def _is_whole(directory: Path) -> bool:
    """True if it is a complete run; an import in progress has neither file yet."""
    if (directory / run_deletion.MARK).exists():
        return False
    return (directory / run_files.FILE).exists() or bool(_ordered(directory))


def _ordered(directory: Path) -> set[int]:
    with suppress(OSError):
        names = os.listdir(directory / "attempts")
        there = [(parse_attempt_name(name), name) for name in names]
        return {
            number
            for number, name in there
            if number is not None and (directory / "attempts" / name / ORDER).exists()
        }
    return set()


def _add_attempts(
    db: Database, paths: DataDir, directory: Path, numbers: set[int], found: Found
) -> None:
    """Add the attempts that were started after the backup."""
    orders = [o for o in disk.orders_of(directory, found) if o.attempt in numbers]
    if not orders:
        return
    _finish_known(db, paths, directory.name, found)
    with db.write() as session:
        run = session.get_one(tables.Run, directory.name)
        _missing_phases(session, run, orders, run_files.read(RunDir(directory)))
    for order in orders:
        disk.add_attempt(db, paths, directory, order, found)
        found.attempts += 1
    with db.write() as session:
        run = session.get_one(tables.Run, directory.name)
        _apply_last_ending(session, run, RunDir(directory))
        numbered = ", ".join(str(order.attempt) for order in orders)
        words = f"attempts {numbered} were restored from the disk"
        events.record(session, "restored", words, run_id=run.id)


def _finish_known(db: Database, paths: DataDir, run_id: str, found: Found) -> None:
    """Continue the journals of known attempts before newer attempts are added."""
    with db.read() as session:
        query = select(tables.Attempt).where(tables.Attempt.run_id == run_id)
        rows = list(session.scalars(query.order_by(tables.Attempt.number)))
    for row in rows:
        if row.number:
            name = f"run {run_id}, attempt {row.number}"
            disk.read_journal(db, paths, row.execution_id, name, found)
    with db.write() as session:
        for row in session.scalars(query):
            if not row.is_over:
                disk.close(row.execution, paths, without_record="crashed")


def _missing_phases(
    session: Session, run: tables.Run, orders: list[AttemptOrder], document: RunFile | None
) -> None:
    """Add the phases that an extend created after the backup."""
    query = select(tables.Phase.index).where(tables.Phase.run_id == run.id)
    known = set(session.scalars(query))
    rows = run_files.phase_rows(run.id, document) if document else []
    rows = [row for row in rows if row.index not in known]
    known |= {row.index for row in rows}
    for order in orders:
        if order.phase_index not in known:
            known.add(order.phase_index)
            rows.append(
                disk.phase_row(run, order.phase_index, order.phase_name, order.schedule, None)
            )
    for row in sorted(rows, key=lambda row: row.index):
        _cut_phases(session, run, row.start_step)
        session.add(row)
        session.flush()
        run.end_step = row.end_step


def _cut_phases(session: Session, run: tables.Run, start: int) -> None:
    for earlier in lineage.phases(session, run.id):
        if lineage.phase_end(earlier) > start:
            earlier.lineage_limit = max(start, earlier.start_step)
            if earlier.ended_at_step is None and earlier.start_step < start:
                earlier.ended_at_step = start


def _apply_last_ending(session: Session, run: tables.Run, directory: RunDir) -> None:
    """Set the run's state by the ending of its last attempt, or to running while that is alive."""
    disk.checkpoints_on_disk(session, run, directory)
    last = attempts.last_attempt(session, run.id)
    if last is not None and not last.is_over:
        _set_state(session, run, State.running, Desired.running, Reason.requested)
    elif attempts.current_phase(session, run) is None:
        _set_state(session, run, State.completed, Desired.running, Reason.finished)
    elif last is not None and last.outcome in ("paused", "cancelled", "failed"):
        state = {"paused": State.paused, "cancelled": State.cancelled}.get(last.outcome)
        desired = Desired.cancelled if state is State.cancelled else Desired.paused
        reason = Reason(last.reason or Reason.crashed)
        _set_state(session, run, state or State.failed, desired, reason)


def _set_state(
    session: Session, run: tables.Run, state: State, desired: Desired, reason: Reason
) -> None:
    if run.state != state:
        disk.set_found_state(session, run, state, desired, reason, reason.sentence)
