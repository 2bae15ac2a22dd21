"""The database made anew from what lies in the run directories: orders, journals, manifests.

For when the database is lost and so is its backup. The journals are the source of truth, so curves,
evaluations, checkpoints and lineage come back exactly; titles, idempotency keys and jobs do not.
"""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from server import lock
from server.database import tables
from server.database.db import Database
from server.database.migrate import Refused
from server.domain import attempts, lineage, run_rows
from server.domain.states import Desired, State
from server.ingestion import ingest
from server.settings import Settings
from trainer.contract.exits import Reason, read_exit
from trainer.contract.orders import ORDER, AttemptOrder
from trainer.contract.rundir import LOCK, DataDir, Held, RunDir, fsync_directory, is_held
from trainer.contract.schedule import PhaseSchedule

SCRATCH = ".rebuilding"


class Rebuilt(BaseModel):
    """runs: names. problems: what could not be read, in words. set_aside: the old database."""

    runs: list[str] = []
    records: int = 0
    problems: list[str] = []
    set_aside: str | None = None


def rebuild(settings: Settings) -> Rebuilt:
    """Read every run again into a new database and put it in place; the old one is kept beside it.

    Raises migrate.Refused while a daemon or a trainer runs on this data directory.
    """
    paths, found = settings.paths, Rebuilt()
    try:
        with lock.holding(paths.root, f"pid {os.getpid()} (traind rebuild)"):
            scratch = settings.model_copy(update={"data_dir": paths.root / SCRATCH})
            _remove(scratch.paths)
            db = Database.open(scratch)
            for directory in sorted((paths.root / "runs").glob("run_*")):
                _rebuild_run(db, paths, directory, found)
            db.close()
            found.set_aside = _put_in_place(paths, scratch.paths)
            return found
    except Held as error:
        raise Refused(f"Stop the daemon first: {error}.") from error


def _rebuild_run(db: Database, paths: DataDir, directory: Path, found: Rebuilt) -> None:
    orders = _orders(directory, found)
    if not orders:
        found.problems.append(f"{directory.name}: no attempt was ever started, nothing to read")
        return
    if any(is_held(paths.run(directory.name).attempt(o.attempt) / LOCK) for o in orders):
        raise Refused(f"Run {orders[-1].run_name} is still training: pause or stop it first.")
    with db.write() as session:
        run = _run(session, orders[-1], directory)
        _phases(session, run, orders)
    for order in orders:  # one after the other: a row is the newest attempt while it is read
        with db.write() as session:
            attempt_id = _attempt(session, order, directory)
        _read(db, paths, attempt_id, order, found)
    with db.write() as session:
        _finish(session, session.get_one(tables.Run, run.id), RunDir(directory))
    found.runs.append(run.name)


def _read(
    db: Database, paths: DataDir, attempt_id: int, order: AttemptOrder, found: Rebuilt
) -> None:
    while True:
        result = ingest.ingest_attempt(db, attempt_id, paths)
        found.records += result.applied
        if not result.more:
            break
    if result.problem:
        found.problems.append(f"{order.run_name}, attempt {order.attempt}: {result.problem}")


def _orders(directory: Path, found: Rebuilt) -> list[AttemptOrder]:
    orders = []
    for path in sorted((directory / "attempts").glob(f"*/{ORDER}")):
        try:
            orders.append(AttemptOrder.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError) as error:
            found.problems.append(f"{path}: {str(error).splitlines()[0]}")
    return sorted(orders, key=lambda order: order.attempt)


# --- rows ----------------------------------------------------------------------------------------


def _run(session: Session, last: AttemptOrder, directory: Path) -> tables.Run:
    created = directory.stat().st_mtime
    spec = last.spec.model_copy(update={"name": last.run_name})
    run = run_rows.new_run(session, spec, last.plan, created, last.run_id)
    run.overrides, run.skip_steps = last.overrides, [list(pair) for pair in last.skip_steps]
    return run


def _phases(session: Session, run: tables.Run, orders: list[AttemptOrder]) -> None:
    """Each phase as its own order says; one that no order served, as a later one remembers it."""
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
        rows.append(
            tables.Phase(
                run_id=run.id,
                index=index,
                name=name,
                start_step=schedule.start_step,
                end_step=schedule.end_step,
                schedule=schedule.model_dump(mode="json"),
                from_checkpoint=checkpoint,
                created_at=run.created_at,
            )
        )
    session.add_all(rows)
    run.end_step = max((row.end_step for row in rows[-1:]), default=run.end_step)


def _attempt(session: Session, order: AttemptOrder, directory: Path) -> int:
    row = tables.Attempt(
        run_id=order.run_id,
        number=order.attempt,
        phase_index=order.phase_index,
        token=order.token,
        created_at=directory.stat().st_mtime,
        device=order.device,
        drained=True,
        settled=True,
    )
    record = read_exit(RunDir(directory).attempt(order.attempt))
    if record is not None:
        row.outcome, row.reason, row.message = record.outcome, record.reason, record.message
        row.ended_at = record.unix_seconds
    session.add(row)
    session.flush()
    return row.id


def _finish(session: Session, run: tables.Run, directory: RunDir) -> None:
    """The state that follows, and checkpoints as they really lie on the disk."""
    for row in session.scalars(select(tables.Checkpoint).where(tables.Checkpoint.run_id == run.id)):
        if row.deleted_at is None and not (directory.checkpoints / row.name).is_dir():
            row.deleted_at = time.time()
    for phase in lineage.phases(session, run.id):
        if run.step >= phase.end_step and phase.ended_at_step is None:
            phase.ended_at_step, phase.ended_at = phase.end_step, run.last_step_at
    _imported(session, run, directory)
    last = attempts.last_attempt(session, run.id)
    session.flush()
    if attempts.current_phase(session, run) is None:
        run.state, run.desired_state, run.reason = (
            State.completed, Desired.running, Reason.finished,
        )  # fmt: skip
    elif last is not None and last.outcome == "cancelled":
        run.state, run.desired_state = State.cancelled, Desired.cancelled
    else:
        run.state, run.desired_state = State.paused, Desired.paused
    run.reason_message = "Its history was read again from its journals."
    session.add(
        tables.Event(
            run_id=run.id, kind="rebuilt", message=run.reason_message, unix_seconds=time.time()
        )
    )


def _imported(session: Session, run: tables.Run, directory: RunDir) -> None:
    """An import wrote its checkpoint as attempt 0, which has no journal: its manifest stands in."""
    for path in sorted(directory.checkpoints.glob("step-*-a0000/manifest.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            manifest: dict[str, Any] = json.loads(path.read_bytes())
            step = int(manifest["step"])
            session.add(_attempt_zero(run, step))
            session.add(_checkpoint_zero(run, path, step))


def _attempt_zero(run: tables.Run, step: int) -> tables.Attempt:
    return tables.Attempt(
        run_id=run.id, number=0, phase_index=0, token="", created_at=run.created_at,
        device="import", stage="imported", start_step=step, outcome="completed",
        reason=Reason.finished, drained=True, settled=True,
    )  # fmt: skip


def _checkpoint_zero(run: tables.Run, path: Path, step: int) -> tables.Checkpoint:
    import hashlib

    files = [f for f in path.parent.iterdir() if f.is_file()]
    return tables.Checkpoint(
        run_id=run.id, name=path.parent.name, step=step, why="import", pinned=True,
        bytes=sum(f.stat().st_size for f in files),
        manifest_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        created_at=path.stat().st_mtime,
    )  # fmt: skip


# --- files ---------------------------------------------------------------------------------------


def _put_in_place(paths: DataDir, scratch: DataDir) -> str | None:
    """The old database is renamed first: a power cut between leaves both, and a rebuild again."""
    aside = None
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for suffix in ("-wal", "-shm", ""):
        old = Path(f"{paths.database}{suffix}")
        if old.exists():
            aside = paths.root / f"traind-before-rebuild-{stamp}.db{suffix}"
            os.replace(old, aside)
    os.replace(scratch.database, paths.database)
    fsync_directory(paths.root)
    _remove(scratch)
    return str(aside) if aside else None


def _remove(scratch: DataDir) -> None:
    import shutil

    shutil.rmtree(scratch.root, ignore_errors=True)
