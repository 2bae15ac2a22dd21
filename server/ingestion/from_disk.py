"""Reconstructs rows from the run directories: run.json, orders, journals, manifests.

`add_run` makes a run that no row knows (rebuild, or a database restored from a copy older than the
run). `catch_up` adds the attempts that were started after the copy was made: their journals are
whole, so nothing that was trained since then is lost.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from server.database.db import Database
from server.database.migrate import Refused
from server.domain import attempts, checkpoints, lineage, run_deletion, run_files, run_rows
from server.domain.run_files import RunFile
from server.domain.states import ENDED, Desired, State
from server.errors import Busy, DiskFull, StorageBroken
from server.ingestion import ingest
from trainer.contract.exits import Reason, read_exit
from trainer.contract.orders import ORDER, AttemptOrder, read
from trainer.contract.plan import Plan
from trainer.contract.rundir import LOCK, DataDir, RunDir, is_held, parse_attempt_name
from trainer.contract.schedule import PhaseSchedule
from trainer.contract.spec import RunSpec

REBUILT = "Its history was read again from its journals."
_KEPT_STATES = frozenset({State.created, State.queued, State.paused, State.failed, State.cancelled})


@dataclass
class Found:
    """runs: names of runs that got rows. records: how many were read. problems: in words."""

    runs: list[str] = field(default_factory=list)
    attempts: int = 0
    records: int = 0
    problems: list[str] = field(default_factory=list)


# --- a restored database meets the disk ----------------------------------------------------------


def catch_up(db: Database, paths: DataDir) -> Found:
    """Give rows to runs and attempts that lie on the disk and that no row knows."""
    found = Found()
    for directory, numbers in _unknown(db, paths):
        with _noting(directory, found):
            if numbers is None:
                add_run(db, paths, directory, found)
            else:
                _add_attempts(db, paths, directory, numbers, found)
    return found


@contextmanager
def _noting(directory: Path, found: Found) -> Iterator[None]:
    """Whatever a directory holds, the others are read; not so for an error of the database, or
    what was raised to stop."""
    try:
        yield
    except (Busy, DiskFull, StorageBroken, Refused):
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:600]
        found.problems.append(f"{directory}: {type(error).__name__}: {why}")


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
    """Whether it was a run: an import that is being moved into place has neither file yet."""
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
    """The attempts that were started after the copy of the database was made."""
    orders = [o for o in orders_of(directory, found) if o.attempt in numbers]
    if not orders:
        return
    _finish_known(db, paths, directory.name, found)
    with db.write() as session:
        run = session.get_one(tables.Run, directory.name)
        _missing_phases(session, run, orders, run_files.read(RunDir(directory)))
    for order in orders:
        _add_attempt(db, paths, directory, order, found)
        found.attempts += 1
    with db.write() as session:
        run = session.get_one(tables.Run, directory.name)
        _settle(session, run, RunDir(directory))
        numbered = ", ".join(str(order.attempt) for order in orders)
        _say(session, run, "restored", f"attempts {numbered} were read again from the disk")


def _finish_known(db: Database, paths: DataDir, run_id: str, found: Found) -> None:
    """Read on where the copy of the database stood, before what came after it."""
    with db.read() as session:
        query = select(tables.Attempt).where(tables.Attempt.run_id == run_id)
        rows = list(session.scalars(query.order_by(tables.Attempt.number)))
    for row in rows:
        if row.number:
            _read(db, paths, row.id, f"run {run_id}, attempt {row.number}", found)
    with db.write() as session:
        for row in session.scalars(query):
            if not row.drained:
                _close(row, paths.run(run_id).attempt(row.number))


def _close(row: tables.Attempt, directory: Path) -> None:
    record = read_exit(directory)
    if record is not None:
        row.outcome, row.reason, row.message = record.outcome, record.reason, record.message
        row.ended_at = record.unix_seconds
    row.outcome = row.outcome or "crashed"
    row.reason = row.reason or Reason.crashed
    row.ended_at = max(row.ended_at or 0.0, row.started_at or row.created_at)
    row.drained = row.settled = True


def _missing_phases(
    session: Session, run: tables.Run, orders: list[AttemptOrder], document: RunFile | None
) -> None:
    """Phases that an extend made after the copy."""
    query = select(tables.Phase.index).where(tables.Phase.run_id == run.id)
    known = set(session.scalars(query))
    rows = run_files.phase_rows(run.id, document) if document else []
    rows = [row for row in rows if row.index not in known]
    known |= {row.index for row in rows}
    for order in orders:
        if order.phase_index not in known:
            known.add(order.phase_index)
            rows.append(_phase(run, order.phase_index, order.phase_name, order.schedule, None))
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


def _settle(session: Session, run: tables.Run, directory: RunDir) -> None:
    """The state that follows from how the last attempt ended; a live one goes on as it is."""
    _checkpoints_on_disk(session, run, directory)
    last = attempts.last_attempt(session, run.id)
    if last is not None and not last.drained:
        run.state, run.desired_state = State.running, Desired.running
        run.queue_position = None
    elif attempts.current_phase(session, run) is None:
        _become(run, State.completed, Desired.running, Reason.finished)
    elif last is not None and last.outcome in ("paused", "cancelled", "failed"):
        state = {"paused": State.paused, "cancelled": State.cancelled}.get(last.outcome)
        desired = Desired.cancelled if state is State.cancelled else Desired.paused
        _become(run, state or State.failed, desired, Reason(last.reason or Reason.crashed))


def _become(run: tables.Run, state: State, desired: Desired, reason: Reason) -> None:
    if run.state != state:
        run.state, run.desired_state, run.reason = state, desired, reason
        run.reason_message, run.queue_position = reason.sentence, None
        run.state_since = time.time()
        run.ended_at = run.state_since if state in ENDED else None


# --- a run that no row knows ---------------------------------------------------------------------


def try_to_add_run(
    db: Database,
    paths: DataDir,
    directory: Path,
    found: Found,
    refuse_alive: Callable[[str], None] | None = None,
) -> None:
    """`add_run`; what cannot be read is one of the problems. Raises what refuse_alive raises."""
    with _noting(directory, found):
        add_run(db, paths, directory, found, refuse_alive)


def add_run(
    db: Database,
    paths: DataDir,
    directory: Path,
    found: Found,
    refuse_alive: Callable[[str], None] | None = None,
) -> None:
    """All rows of one run directory. refuse_alive(name): called when one of its trainers lives."""
    orders = orders_of(directory, found)
    document = run_files.read(RunDir(directory))
    if not orders and document is None and not _imports(RunDir(directory)):
        found.problems.append(
            f"{directory.name}: it has neither {run_files.FILE} nor an order, nothing to read"
        )
        return
    name = orders[-1].run_name if orders else document.name if document else directory.name
    if refuse_alive and any(_is_alive(paths, directory, o) for o in orders):
        refuse_alive(name)
    if not orders and document is None:
        found.problems.append(
            f"{directory.name}: an import whose {run_files.FILE} is missing; import it again"
        )
        return
    with db.write() as session:
        run = _run(session, directory, orders, document)
        _phases(session, run, orders, document)
        run_id = run.id
    for order in orders:  # one after the other: a row is the newest attempt while it is read
        _add_attempt(db, paths, directory, order, found)
    with db.write() as session:
        run = session.get_one(tables.Run, run_id)
        _finish(session, run, RunDir(directory), document)
        found.runs.append(run.name)


def orders_of(directory: Path, found: Found) -> list[AttemptOrder]:
    """The orders of a run's attempts that can be read, in order."""
    orders = []
    for path in sorted((directory / "attempts").glob(f"*/{ORDER}")):
        number = parse_attempt_name(path.parent.name)
        if number is None:
            found.problems.append(f"{path.parent}: not an attempt's directory, not read")
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
                f"{path}: is of run {order.run_id}, attempt {order.attempt}; not read"
            )
    return sorted(orders, key=lambda order: order.attempt)


def _is_alive(paths: DataDir, directory: Path, order: AttemptOrder) -> bool:
    return is_held(paths.run(directory.name).attempt(order.attempt) / LOCK)


def _imports(directory: RunDir) -> list[Path]:
    return sorted(directory.checkpoints.glob("step-*-a0000/manifest.json"))


def _run(
    session: Session, directory: Path, orders: list[AttemptOrder], document: RunFile | None
) -> tables.Run:
    created = directory.stat().st_mtime
    if document is not None:
        spec, plan = RunSpec.model_validate(document.spec), Plan.model_validate(document.plan)
        name, created = document.name, document.created_at
    else:
        spec, plan, name = orders[-1].spec, orders[-1].plan, orders[-1].run_name
    spec = spec.model_copy(update={"name": _free_name(session, name, directory.name)})
    run = run_rows.new_run(session, spec, plan, created, directory.name)
    if orders:
        run.overrides = orders[-1].overrides
        run.skip_steps = [list(pair) for pair in orders[-1].skip_steps]
    if document is not None:
        run.title, run.run_metadata = document.title, document.metadata
        run.overrides, run.skip_steps = document.overrides, document.skip_steps
        run.end_step, run.device, run.started_at = (
            document.end_step, document.device, document.started_at,
        )  # fmt: skip
    return run


def _free_name(session: Session, name: str, run_id: str) -> str:
    """The run's name, or one with a part of its id where another run took it meanwhile."""
    taken = session.scalar(select(tables.Run.id).where(tables.Run.name == name))
    return f"{name[:50]}-{run_id[-8:]}" if taken else name


def _phases(
    session: Session, run: tables.Run, orders: list[AttemptOrder], document: RunFile | None
) -> None:
    """As run.json has them; without it each as its own order says, and one that no order served
    as a later one remembers it."""
    if document is not None and document.phases:
        session.add_all(run_files.phase_rows(run.id, document))
        return
    known: dict[int, tuple[str, PhaseSchedule, str | None]] = {}
    for order in orders:
        for index, schedule in enumerate(order.earlier_schedules):
            known.setdefault(index, (f"phase-{index}", schedule, None))
    for order in orders:
        known[order.phase_index] = (order.phase_name, order.schedule, order.from_checkpoint)
    rows: list[tables.Phase] = []
    for index, (name, schedule, checkpoint) in sorted(known.items()):
        for earlier in rows:
            if lineage.phase_end(earlier) > schedule.start_step:
                earlier.lineage_limit = max(schedule.start_step, earlier.start_step)
        rows.append(_phase(run, index, name, schedule, checkpoint))
    session.add_all(rows)
    run.end_step = max((row.end_step for row in rows[-1:]), default=run.end_step)


def _phase(
    run: tables.Run, index: int, name: str, schedule: PhaseSchedule, checkpoint: str | None
) -> tables.Phase:
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


def _add_attempt(
    db: Database, paths: DataDir, directory: Path, order: AttemptOrder, found: Found
) -> None:
    alive = _is_alive(paths, directory, order)
    with db.write() as session:
        row = tables.Attempt(
            run_id=directory.name,
            number=order.attempt,
            phase_index=order.phase_index,
            token=order.token,
            created_at=directory.stat().st_mtime,
            device=order.device,
        )
        session.add(row)
        session.flush()
        attempt_id = row.id
    _read(db, paths, attempt_id, f"{order.run_name}, attempt {order.attempt}", found)
    if not alive:
        with db.write() as session:
            row = session.get_one(tables.Attempt, attempt_id)
            _close_as_recorded(row, paths.run(directory.name).attempt(order.attempt))


def _close_as_recorded(row: tables.Attempt, directory: Path) -> None:
    record = read_exit(directory)
    if record is not None:
        row.outcome, row.reason, row.message = record.outcome, record.reason, record.message
        row.ended_at = record.unix_seconds
    row.drained = row.settled = True


def _read(db: Database, paths: DataDir, attempt_id: int, name: str, found: Found) -> None:
    while True:
        result = ingest.ingest_attempt(db, attempt_id, paths)
        found.records += result.applied
        if not result.more:
            break
    if result.problem:
        found.problems.append(f"{name}: {result.problem}")


def _finish(session: Session, run: tables.Run, directory: RunDir, document: RunFile | None) -> None:
    """The state that follows, and checkpoints as they really lie on the disk."""
    _checkpoints_on_disk(session, run, directory)
    for phase in lineage.phases(session, run.id):
        if run.step >= phase.end_step and phase.ended_at_step is None:
            phase.ended_at_step, phase.ended_at = phase.end_step, run.last_step_at
    _imported(session, run, directory)
    _pin(session, run, document)
    last = attempts.last_attempt(session, run.id)
    session.flush()
    _state(session, run, last, document)
    if last is not None and not last.drained:
        run.state, run.desired_state = State.running, Desired.running
    run.reason_message = REBUILT
    _say(session, run, "rebuilt", REBUILT)


def _state(
    session: Session, run: tables.Run, last: tables.Attempt | None, document: RunFile | None
) -> None:
    known = State(document.state) if document and document.state in set(State) else None
    if attempts.current_phase(session, run) is None:
        run.state, run.desired_state, run.reason = (
            State.completed, Desired.running, Reason.finished,
        )  # fmt: skip
    elif known in _KEPT_STATES and document is not None:
        run.state, run.desired_state = document.state, document.desired_state
        run.queue_position = document.queue_position if known is State.queued else None
        run.reason = document.reason if document.reason in set(Reason) else Reason.requested
    elif last is not None and last.outcome == "cancelled":
        run.state, run.desired_state = State.cancelled, Desired.cancelled
    else:
        run.state, run.desired_state = State.paused, Desired.paused
    run.ended_at = run.ended_at or (time.time() if run.state in ENDED else None)


def _checkpoints_on_disk(session: Session, run: tables.Run, directory: RunDir) -> None:
    checkpoints.record_found(session, run)
    for row in session.scalars(select(tables.Checkpoint).where(tables.Checkpoint.run_id == run.id)):
        if row.deleted_at is None and not (directory.checkpoints / row.name).is_dir():
            row.deleted_at = time.time()


def _pin(session: Session, run: tables.Run, document: RunFile | None) -> None:
    names = set(document.pinned) if document else set()
    for row in session.scalars(select(tables.Checkpoint).where(tables.Checkpoint.run_id == run.id)):
        row.pinned = bool(row.pinned) or row.name in names


def _imported(session: Session, run: tables.Run, directory: RunDir) -> None:
    """An import wrote its checkpoint as attempt 0, which has no journal: its manifest stands in."""
    for path in _imports(directory):
        with suppress(OSError, ValueError, KeyError, TypeError):
            manifest: dict[str, Any] = json.loads(path.read_bytes())
            step = int(manifest["step"])
            session.add(_attempt_zero(run, step))
            session.add(_checkpoint_zero(run, path, step))
            if attempts.last_attempt(session, run.id) is None:
                run.step, run.tokens_seen = step, step * run.batch_tokens


def _attempt_zero(run: tables.Run, step: int) -> tables.Attempt:
    return tables.Attempt(
        run_id=run.id, number=0, phase_index=0, token="", created_at=run.created_at,
        device="import", stage="imported", start_step=step, outcome="completed",
        reason=Reason.finished, drained=True, settled=True,
    )  # fmt: skip


def _checkpoint_zero(run: tables.Run, path: Path, step: int) -> tables.Checkpoint:
    files = [f for f in path.parent.iterdir() if f.is_file()]
    return tables.Checkpoint(
        run_id=run.id, name=path.parent.name, step=step, why="import", pinned=True,
        bytes=sum(f.stat().st_size for f in files),
        manifest_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        created_at=path.stat().st_mtime,
    )  # fmt: skip


def _say(session: Session, run: tables.Run, kind: str, message: str) -> None:
    session.add(tables.Event(run_id=run.id, kind=kind, message=message, unix_seconds=time.time()))


__all__ = ["Found", "add_run", "catch_up", "orders_of", "try_to_add_run"]
