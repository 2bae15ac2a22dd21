"""Worklist of a tick: unsettled rows and the heads of the queues, loaded in one read.

The first few runs of each queue are loaded, so ten thousand queued runs cost no more than ten.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import Session

from server.database.tables import Attempt, CommandRow, Execution, Job, Run
from server.domain import gang
from server.domain.executions import IS_OPEN
from server.domain.states import OCCUPYING, State
from server.launch.process import OUT_OF_FILES
from server.machine.devices import Device
from server.scheduling import rows as scheduling_rows
from server.scheduling.decide import Decision, SchedulingVerdict, Workload, decide
from server.scheduling.inputs import SchedulerInputs
from trainer.contract.rundir import DataDir

log = logging.getLogger("traind.supervisor")
T = TypeVar("T")

HEADS = 4  # of each queue: the next run, and a few whose data may be prepared
_IN_FLIGHT = (*OCCUPYING, State.preparing)
_OPEN_ATTEMPTS = (
    select(Attempt.id)
    .join(Execution, Execution.id == Attempt.execution_id)
    .where(IS_OPEN)
    .order_by(Attempt.id)
)
_OPEN_JOBS = (
    select(Job.id)
    .join(Execution, Execution.id == Job.execution_id)
    .where(IS_OPEN)
    .order_by(Execution.created_at, Job.id)
)
_PREPARED = (
    select(Job)
    .join(Execution, Execution.id == Job.execution_id)
    .where(Job.run_id == bindparam("run"), Job.kind == "prepare")
    .order_by(Execution.created_at.desc(), Job.id.desc())
    .limit(5)
)


@dataclass
class Entry:
    """One run with its open attempt (None: no process) and its undelivered commands.

    devices: where it runs or may run, the preferred one first; for a run on several, all of them.
    missing: why there is no such device. preparations: number of jobs that were created to prepare
    its data since it waits for the data.
    """

    run: Run
    attempt: Attempt | None
    commands: list[CommandRow]
    preparation: Job | None
    devices: tuple[str, ...]
    missing: str | None
    has_data: bool
    preparations: int

    @property
    def device(self) -> str:
        """The first device."""
        return self.devices[0]

    @property
    def holds_device(self) -> bool:
        return self.attempt is not None or self.run.state in OCCUPYING


def may_use(turn: dict[str, str], entry: Entry) -> bool:
    """True if the entry may use all its devices; a cluster has its own queue."""
    if gang.is_elsewhere(entry.run):
        return True
    return all(turn.get(device) == entry.run.id for device in entry.devices)


@dataclass
class Worklist:
    """Runs and jobs to decide. turn: {device or place of a job: id that may use it}.

    inline: jobs of running trainers, each with its command and the state of its run.
    decision: which workloads start, yield and wait. names: of runs by id.
    """

    entries: list[Entry]
    jobs: list[Job]
    inline: list[tuple[Job, CommandRow | None, str]] = field(default_factory=list)
    turn: dict[str, str] = field(default_factory=dict)
    decision: Decision = field(default_factory=Decision)
    names: dict[str, str] = field(default_factory=dict)

    def yields(self, entry: Entry) -> SchedulingVerdict | None:
        return self.decision.yields.get(entry.run.id)

    def waits(self, entry: Entry) -> SchedulingVerdict | None:
        return self.decision.waits.get(entry.run.id)


def load(
    session: Session,
    paths: DataDir,
    devices: Sequence[Device],
    around: SchedulerInputs | None = None,
) -> Worklist:
    """Load everything unsettled. Reads rows and the presence of data files, writes nothing."""
    around = around or SchedulerInputs(time.time())
    attempts: dict[str, Attempt] = {}
    for attempt in _open_attempts(session):
        attempts.setdefault(attempt.run_id, attempt)
    runs = _runs(session, set(attempts))
    entries = [
        entry
        for run in runs
        if (entry := _readable(_entry, session, run, attempts.get(run.id), paths, devices))
    ]
    board = Worklist(entries, _rows(session, Job, _OPEN_JOBS.where(Job.where != "inline")))
    board.inline = _inline(session)
    _decide(session, board, devices, around)
    return board


def _rows(session: Session, table: type[T], ids: Select[Any]) -> list[T]:
    """The rows of these ids, in their order; an unreadable row is skipped and logged.

    Such a row (with invalid JSON, for instance) must not block the others.
    """
    wanted = session.scalars(ids).all()
    try:
        rows = {row.id: row for row in session.scalars(_of(table, wanted))}  # pyright: ignore
    except ValueError:
        found = [_readable(session.get, table, one) for one in wanted]
        return [row for row in found if row is not None]
    return [rows[one] for one in wanted if one in rows]


def _of(table: type[T], ids: Sequence[Any]) -> Select[Any]:
    return select(table).where(table.id.in_(ids))  # pyright: ignore


def _readable(look: Callable[..., T | None], *arguments: Any) -> T | None:
    try:
        return look(*arguments)
    except (ValueError, TypeError, KeyError, OSError) as error:
        if isinstance(error, OSError) and error.errno in OUT_OF_FILES:
            raise
        which = next((getattr(one, "id", one) for one in arguments[1:]), "")
        log.error("an unreadable row is skipped (%s): %s", getattr(which, "id", which), error)
        return None


def _open_attempts(session: Session) -> list[Attempt]:
    """Open attempts, the oldest of each run first."""
    return _rows(session, Attempt, _OPEN_ATTEMPTS)


def _runs(session: Session, with_attempt: set[str]) -> list[Run]:
    ids = {*with_attempt, *session.scalars(select(Run.id).where(Run.state.in_(_IN_FLIGHT)))}
    ids.update(_heads(session))
    if not ids:
        return []
    # in the order of the queue, because data is prepared in that order
    order = (Run.queue_rank, Run.queue_position, Run.created_at)
    return _rows(session, Run, select(Run.id).where(Run.id.in_(ids)).order_by(*order))


def _heads(session: Session) -> list[str]:
    """The first few runs of each queue: one queue for each pair of device and hours.

    Runs outside their hours must not hide the runs behind them. Only queued runs have a position,
    so its index is walked from one pair to the next.
    """
    found: list[str] = []
    queued = Run.queue_position.is_not(None)
    pairs = select(Run.device, Run.hours).where(queued).order_by(Run.device, Run.hours).limit(1)
    pair = session.execute(pairs).first()
    while pair is not None:
        device, hours = pair
        alike = select(Run.id).where(queued, Run.device == device, Run.hours == hours)
        found += session.scalars(alike.order_by(Run.queue_rank, Run.queue_position).limit(HEADS))
        next_hours = pairs.where(Run.device == device, Run.hours > hours)
        pair = (
            session.execute(next_hours).first()
            or session.execute(pairs.where(Run.device > device)).first()
        )
    return found


def _entry(
    session: Session,
    run: Run,
    attempt: Attempt | None,
    paths: DataDir,
    devices: Sequence[Device],
) -> Entry:
    prepared = session.scalars(_PREPARED, {"run": run.id}).all()
    preparation = prepared[0] if prepared else None
    made = sum(job.created_at >= run.state_since for job in prepared)
    commands = session.scalars(
        select(CommandRow)
        .where(
            CommandRow.run_id == run.id,
            CommandRow.delivered_at.is_(None),
            CommandRow.done_at.is_(None),
        )
        .order_by(CommandRow.created_at, CommandRow.id)
    ).all()
    may_run_on, missing = scheduling_rows.devices_of(session, run, attempt, devices)
    has_data = attempt is not None or _has_data(run, preparation, paths)
    return Entry(run, attempt, list(commands), preparation, may_run_on, missing, has_data, made)


def tokens_needed(run: Run) -> int:
    """Tokens of training data that the present plan of the run reads."""
    return run.end_step * run.batch_tokens


def _has_data(run: Run, preparation: Job | None, paths: DataDir) -> bool:
    """True if the data is ready; data that arrives in shards must also be sufficient."""
    if not paths.run(run.id).data.exists():
        return False
    if run.spec.get("data", {}).get("source") != "hf" or preparation is None:
        return True
    return tokens_needed(run) <= int(preparation.params.get("tokens_needed", 0))


def _decide(
    session: Session, board: Worklist, devices: Sequence[Device], around: SchedulerInputs
) -> None:
    """Assign each place by `scheduling.decide`; a run takes the devices granted to it."""
    workloads = [
        workload for entry in board.entries if (workload := _workload(entry, around)) is not None
    ]
    workloads += [scheduling_rows.of_job(job, devices) for job in board.jobs]
    places = scheduling_rows.places(session, devices, around)
    board.names = {entry.run.id: entry.run.name for entry in board.entries}
    board.decision = decide(places, workloads, around.now)
    used = {
        workload.id: workload.holds or board.decision.grants.get(workload.id, ())
        for workload in workloads
    }
    for workload_id, held in used.items():
        for place in held:
            board.turn.setdefault(place, workload_id)
    for entry in board.entries:
        entry.devices = used.get(entry.run.id) or entry.devices


def _workload(entry: Entry, around: SchedulerInputs) -> Workload | None:
    """The run as a workload; None if it could not start on any device."""
    if gang.is_elsewhere(entry.run):
        return None
    waits = entry.run.state in (State.queued, State.preparing) and entry.has_data
    if entry.holds_device or (waits and entry.missing is None):
        return scheduling_rows.of_run(
            entry.run, entry.attempt, entry.devices, around.now, around.prices
        )
    return None


def _inline(session: Session) -> list[tuple[Job, CommandRow | None, str]]:
    jobs = _rows(session, Job, _OPEN_JOBS.where(Job.where == "inline"))
    found = []
    for job in jobs:
        command = session.scalars(select(CommandRow).where(CommandRow.job_id == job.id)).first()
        state = session.scalar(select(Run.state).where(Run.id == job.run_id))
        found.append((job, command, state or State.cancelled))
    return found
