"""Worklist of a tick: unsettled rows and the heads of the queues, loaded in one read.

Ten thousand queued runs cost no more than ten: of each queue only its first few are loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import Session

from server.database.tables import Attempt, CommandRow, Execution, Job, Run
from server.domain.executions import IS_OPEN, ExecutionState
from server.domain.states import OCCUPYING, State
from server.launch.process import OUT_OF_FILES
from server.machine.devices import Device, DeviceMissing, resolve
from trainer.contract.rundir import DataDir
from trainer.contract.spec import rank_devices

log = logging.getLogger("traind.supervisor")
T = TypeVar("T")

HEADS = 4  # of each queue: the next one, and a few whose data may already be made ready
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
    """One run with its open attempt (None: no process) and what waits to be told to it.

    devices: where it runs or would run; several for a run on several, all or none. missing: why
    there is no such device. preparations: how many jobs were made to prepare its data since it
    began to wait for it.
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
        """The first one."""
        return self.devices[0]

    @property
    def holds_device(self) -> bool:
        return self.attempt is not None or self.run.state in OCCUPYING


def may_use(turn: dict[str, str], entry: Entry) -> bool:
    """Whether it is the entry's turn everywhere it needs."""
    return all(turn.get(device) == entry.run.id for device in entry.devices)


@dataclass
class Worklist:
    """What is to be decided about. turn: {device or place of a job: id of who may use it}.

    inline: jobs that a running trainer does, each with its command and the state of its run.
    """

    entries: list[Entry]
    jobs: list[Job]
    inline: list[tuple[Job, CommandRow | None, str]] = field(default_factory=list)
    turn: dict[str, str] = field(default_factory=dict)


def load(session: Session, paths: DataDir, devices: Sequence[Device]) -> Worklist:
    """Everything unsettled. Reads rows and the presence of data files, writes nothing."""
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
    board.turn = _turns(board, devices)
    return board


def _rows(session: Session, table: type[T], ids: Select[Any]) -> list[T]:
    """The rows of these ids, in their order; one that cannot be read is left out, and logged.

    Such a row (a text that is no JSON any more) must not keep the others from being looked after.
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
        log.error("a row cannot be looked after (%s): %s", getattr(which, "id", which), error)
        return None


def _open_attempts(session: Session) -> list[Attempt]:
    """Attempts that were not closed, the oldest of each run first."""
    return _rows(session, Attempt, _OPEN_ATTEMPTS)


def _runs(session: Session, with_attempt: set[str]) -> list[Run]:
    ids = {*with_attempt, *session.scalars(select(Run.id).where(Run.state.in_(_IN_FLIGHT)))}
    ids.update(_heads(session))
    return _rows(session, Run, select(Run.id).where(Run.id.in_(ids))) if ids else []


def _heads(session: Session) -> list[str]:
    """The first few of each queue. Only queued runs have a place, so its index is walked."""
    found: list[str] = []
    devices: list[str] = []
    queue = select(Run.device).where(Run.queue_position.is_not(None)).order_by(Run.queue_position)
    while device := session.scalar(queue.where(Run.device.not_in(devices)).limit(1)):
        devices.append(device)
        of_device = queue.with_only_columns(Run.id).where(Run.device == device)
        found += session.scalars(of_device.limit(HEADS))
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
    places, missing = _places(session, run, attempt, devices)
    has_data = attempt is not None or _has_data(run, preparation, paths)
    return Entry(run, attempt, list(commands), preparation, places, missing, has_data, made)


def _places(
    session: Session, run: Run, attempt: Attempt | None, devices: Sequence[Device]
) -> tuple[tuple[str, ...], str | None]:
    """The devices of a run on several, by its spec; else the one."""
    gang = tuple(dict.fromkeys(rank_devices(run.spec)))
    if not gang:
        device, missing = _device(session, run, attempt, devices)
        return (device,), missing
    if attempt is not None:
        return gang, None
    for device in gang:
        try:
            resolve(device, devices)
        except DeviceMissing as error:
            return gang, error.detail
    return gang, None


def _device(
    session: Session, run: Run, attempt: Attempt | None, devices: Sequence[Device]
) -> tuple[str, str | None]:
    """Where the run belongs: 'auto' stays where it began, it never falls back to the CPU."""
    if attempt is not None:
        return attempt.device, None
    wanted = run.device
    if wanted == "auto":
        before = session.scalars(
            select(Attempt.device)
            .where(Attempt.run_id == run.id, Attempt.number > 0)
            .order_by(Attempt.number.desc())
            .limit(1)
        ).first()
        wanted = before or wanted
    try:
        return resolve(wanted, devices), None
    except DeviceMissing as error:
        return wanted, error.detail


def tokens_needed(run: Run) -> int:
    """Tokens of training data that the present plan of the run reads."""
    return run.end_step * run.batch_tokens


def _has_data(run: Run, preparation: Job | None, paths: DataDir) -> bool:
    """Whether its data is ready; data that comes by the shard must also be enough."""
    if not paths.run(run.id).data.exists():
        return False
    if run.spec.get("data", {}).get("source") != "hf" or preparation is None:
        return True
    return tokens_needed(run) <= int(preparation.params.get("tokens_needed", 0))


def _turns(board: Worklist, devices: Sequence[Device]) -> dict[str, str]:
    """Who may use each place: its holder; else the oldest job that waits; else the next run."""
    turn: dict[str, str] = {}
    for entry in board.entries:
        if entry.holds_device:
            _claim(turn, entry)
    for job in sorted(board.jobs, key=lambda job: job.state != ExecutionState.running):
        turn.setdefault(job_place(job, devices), job.id)
    for entry in sorted(board.entries, key=_queue_order):
        if entry.run.state in (State.queued, State.preparing) and entry.has_data:
            _claim(turn, entry)
    return turn


def _claim(turn: dict[str, str], entry: Entry) -> None:
    """Every place that is not taken: what waits for several keeps those that are free."""
    for device in entry.devices:
        turn.setdefault(device, entry.run.id)


def _queue_order(entry: Entry) -> tuple[bool, int, float, str]:
    position = entry.run.queue_position
    return position is None, position or 0, entry.run.created_at, entry.run.id


def job_place(job: Job, devices: Sequence[Device]) -> str:
    """What a job occupies: the device it names or else the best one, the one place for work on
    the CPU, or the one for completions, which may be held for hours and must not keep that work
    waiting."""
    if job.kind == "serve":
        return "completions"
    if job.where != "device":
        return "cpu job"
    return str(job.params.get("device") or devices[0].device)


def _inline(session: Session) -> list[tuple[Job, CommandRow | None, str]]:
    jobs = _rows(session, Job, _OPEN_JOBS.where(Job.where == "inline"))
    found = []
    for job in jobs:
        command = session.scalars(select(CommandRow).where(CommandRow.job_id == job.id)).first()
        state = session.scalar(select(Run.state).where(Run.id == job.run_id))
        found.append((job, command, state or State.cancelled))
    return found
