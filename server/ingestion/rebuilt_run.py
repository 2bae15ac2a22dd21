"""Rebuilds the rows of a run from run.json, orders, journals and manifests.

For `traind rebuild`, and for a database restored from a copy that is older than the run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from server.database.db import Database
from server.domain import (
    attempts,
    checkpoint_lookup,
    events,
    executions,
    lineage,
    run_files,
    run_rows,
)
from server.domain.run_files import RunFile
from server.domain.states import Desired, State
from server.ingestion import disk
from server.ingestion.disk import Found
from trainer.contract.orders import AttemptOrder
from trainer.contract.plan import Plan
from trainer.contract.reasons import Reason
from trainer.contract.rundir import DataDir, RunDir
from trainer.contract.schedule import PhaseSchedule
from trainer.contract.spec import RunSpec

REBUILT = "Its history was rebuilt from its journals."
_KEPT_STATES = frozenset({State.created, State.queued, State.paused, State.failed, State.cancelled})


def try_to_add(
    db: Database,
    paths: DataDir,
    directory: Path,
    found: Found,
    refuse_alive: Callable[[str], None] | None = None,
) -> None:
    """Call `add`, and record a read error as a problem. Raises what refuse_alive raises."""
    with disk.noting(directory, found):
        add(db, paths, directory, found, refuse_alive)


def add(
    db: Database,
    paths: DataDir,
    directory: Path,
    found: Found,
    refuse_alive: Callable[[str], None] | None = None,
) -> None:
    """Add all rows of one run directory. refuse_alive(name): called if a trainer of it runs."""
    orders = disk.orders_of(directory, found)
    document = run_files.read(RunDir(directory))
    if not orders and document is None and not _imports(RunDir(directory)):
        found.problems.append(
            f"{directory.name}: skipped, because it has neither {run_files.FILE} nor an order"
        )
        return
    name = orders[-1].run_name if orders else document.name if document else directory.name
    if refuse_alive and any(disk.is_alive(paths, directory, o) for o in orders):
        refuse_alive(name)
    if not orders and document is None:
        found.problems.append(
            f"{directory.name}: an import without {run_files.FILE}; import it again"
        )
        return
    with db.write() as session:
        run = _run(session, directory, orders, document)
        _phases(session, run, orders, document)
        if document is not None:
            run_files.add_to_group(session, run.id, document)
        run_id = run.id
    for order in orders:  # one by one: each attempt is the newest while it is read
        disk.add_attempt(db, paths, directory, order, found)
    with db.write() as session:
        run = session.get_one(tables.Run, run_id)
        _finish(session, run, RunDir(directory), document)
        found.runs.append(run.name)


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
    """The run's name, with a part of its id appended if another run has taken the name."""
    taken = session.scalar(select(tables.Run.id).where(tables.Run.name == name))
    return f"{name[:50]}-{run_id[-8:]}" if taken else name


def _phases(
    session: Session, run: tables.Run, orders: list[AttemptOrder], document: RunFile | None
) -> None:
    """Add the phases from run.json; without it, each from its own order, or from the earlier
    schedules of a later order."""
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
        rows.append(disk.phase_row(run, index, name, schedule, checkpoint))
    session.add_all(rows)
    run.end_step = max((row.end_step for row in rows[-1:]), default=run.end_step)


def _finish(session: Session, run: tables.Run, directory: RunDir, document: RunFile | None) -> None:
    """Set the run's final state, and its checkpoints as found on the disk."""
    disk.checkpoints_on_disk(session, run, directory)
    for phase in lineage.phases(session, run.id):
        if run.step >= phase.end_step and phase.ended_at_step is None:
            phase.ended_at_step, phase.ended_at = phase.end_step, run.last_step_at
    _imported(session, run, directory)
    _pin(session, run, document)
    last = attempts.last_attempt(session, run.id)
    session.flush()
    _state(session, run, last, document)
    events.record(session, "rebuilt", REBUILT, run_id=run.id)


def _state(
    session: Session, run: tables.Run, last: tables.Attempt | None, document: RunFile | None
) -> None:
    known = State(document.state) if document and document.state in set(State) else None
    if last is not None and not last.is_over:
        _set_state(session, run, State.running, Desired.running)
    elif attempts.current_phase(session, run) is None:
        _set_state(session, run, State.completed, Desired.running, Reason.finished)
    elif known is not None and known in _KEPT_STATES and document is not None:
        reason = Reason(document.reason) if document.reason in set(Reason) else Reason.requested
        _set_state(session, run, known, Desired(document.desired_state), reason)
        run.queue_position = document.queue_position if known is State.queued else None
    elif last is not None and last.outcome == "cancelled":
        _set_state(session, run, State.cancelled, Desired.cancelled)
    else:
        _set_state(session, run, State.paused, Desired.paused)


def _set_state(
    session: Session,
    run: tables.Run,
    state: State,
    desired: Desired,
    reason: Reason = Reason.requested,
) -> None:
    disk.set_found_state(session, run, state, desired, reason, REBUILT)


def _pin(session: Session, run: tables.Run, document: RunFile | None) -> None:
    names = set(document.pinned) if document else set()
    for row in checkpoint_lookup.existing(session, run.id, superseded=True):
        row.pinned = bool(row.pinned) or row.name in names


def _imported(session: Session, run: tables.Run, directory: RunDir) -> None:
    """Rebuild attempt 0 of an import from its checkpoint's manifest: it has no journal."""
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
        execution=executions.of_import(run.id, now=run.created_at, token=""),
        run_id=run.id, number=0, phase_index=0, device="import", start_step=step,
    )  # fmt: skip


def _checkpoint_zero(run: tables.Run, path: Path, step: int) -> tables.Checkpoint:
    files = [f for f in path.parent.iterdir() if f.is_file()]
    return tables.Checkpoint(
        run_id=run.id, name=path.parent.name, step=step, why="import", pinned=True,
        bytes=sum(f.stat().st_size for f in files),
        manifest_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        created_at=path.stat().st_mtime,
    )  # fmt: skip
