"""The verbs of a run: create, start, pause, resume, cancel, delete. Each takes a session and a row;
none commits or touches a process or a file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import delete as sql_delete
from sqlalchemy import select
from sqlalchemy.orm import Session

from server import webhook_receivers
from server.database import tables
from server.domain import (
    budget,
    checkpoint_lookup,
    commands,
    events,
    executions,
    gang,
    preflight,
    renaming,
    states,
)  # fmt: skip
from server.domain.attempts import build_order, current_phase, next_attempt
from server.domain.extend import ExtendOutcome, extend
from server.domain.imports import import_run
from server.domain.lineage import supersede
from server.domain.run_rows import (
    first_phase,
    new_run,
    plan_for,
    require_free,
    set_scheduling,
)
from server.domain.states import Desired, State
from server.errors import Conflict, IllegalMove, Invalid
from server.machine import devices
from server.schemas.runs import PatchRun, ResumeRequest
from trainer.contract.commands import Evaluate, Pin, Save, Update
from trainer.contract.jobs import EvaluateParams
from trainer.contract.plan import PlanContext
from trainer.contract.reasons import Reason
from trainer.contract.spec import PlaceSpec, RunSpec, resolve


def create(
    session: Session, body: dict[str, Any], *, context: PlanContext | None = None, now: float
) -> tables.Run:
    """Create a run and its first phase; queued if the spec's `start` is true.

    Raises pydantic.ValidationError with paths into the body, Invalid where the numbers cannot be
    met, NameTaken.
    """
    spec = resolve(body)
    plan = plan_for(spec, context)
    require_free(session, spec.name)
    run = new_run(session, spec, plan, now)
    first_phase(session, run, plan, now)
    session.flush()
    if spec.start:
        run.desired_state = Desired.running
        states.move(session, run, State.queued, Reason.requested, now=now)
        session.flush()
    return run


def start(session: Session, run: tables.Run, now: float) -> bool:
    """Queue a run that was created with start: false."""
    if states.require(run, "start") is not State.created:
        return False
    run.desired_state = Desired.running
    states.move(session, run, State.queued, Reason.requested, now=now)
    return True


def request_pause(
    session: Session, run: tables.Run, now: float, *, door: str | None = None
) -> bool:
    """Request a pause: a checkpoint, then the end; the run is `paused` once the process is gone.

    The state itself is the order: while it is `pausing`, the supervisor makes sure that the trainer
    has the command.
    """
    state = states.require(run, "pause")
    if state is State.paused or (state is State.pausing and run.desired_state == Desired.paused):
        return False
    run.desired_state = Desired.paused
    if state is State.pausing:
        run.version += 1
        return True
    states.move(session, run, State.pausing, Reason.requested, now=now, door=door)
    return True


def resume(
    session: Session, run: tables.Run, ask: ResumeRequest | None = None, *, now: float
) -> bool:
    """Queue a paused, failed or cancelled run; a pausing one resumes after its checkpoint."""
    state = states.require(run, "resume")
    if run.desired_state == Desired.running and state not in states.SETTLED:
        return False
    if state is not State.pausing:
        _require_work(session, run)
    budget.require_left(run)
    overrides = ask.overrides.model_dump(exclude_none=True) if ask and ask.overrides else {}
    _require_divisible(run, overrides.get("device_batch_size"))
    preflight.require_rows(run, overrides.get("device_batch_size"))
    if ask and "place" in ask.model_fields_set:
        _move_to(run, ask.place)
    preflight.require_gang(run, overrides, devices.discover())
    if overrides:
        gang.override(run, overrides)
    if ask and ask.recovery:
        patch(session, run, PatchRun(recovery=ask.recovery.model_dump(exclude_none=True)), now)
    run.desired_state = Desired.running
    run.failures_without_progress, run.best_failed_step, run.not_before = 0, -1, None
    if state is State.pausing:
        run.version += 1
        return True
    states.move(session, run, State.queued, Reason.requested, now=now)
    return True


def _move_to(run: tables.Run, place: PlaceSpec | None) -> None:
    """Set the place of the next attempt. Raises Invalid, ValidationError."""
    spec = RunSpec.model_validate(
        {**run.spec, "place": place.model_dump(mode="json") if place else None}
    )
    preflight.require_place(spec)
    run.spec = spec.model_dump(mode="json")
    run.device = gang.device_column({"device": run.spec["device"], **gang.wanted(run)})
    run.version += 1


def request_cancel(
    session: Session, run: tables.Run, now: float, *, door: str | None = None
) -> bool:
    """Cancel without a checkpoint; immediate where no process can be alive."""
    state = states.require(run, "cancel")
    if state in (State.cancelling, State.cancelled):
        return False
    run.desired_state = Desired.cancelled
    run.pending_extend = None
    if states.can_move(state, State.cancelled) and state is not State.queued:
        states.move(session, run, State.cancelled, Reason.requested, now=now, door=door)
        return True
    states.move(session, run, State.cancelling, Reason.requested, now=now, door=door)
    return True


def delete(session: Session, run: tables.Run, now: float) -> Path:
    """Delete the rows of a settled run. Returns its directory, relative to the data directory:
    removing it, after the commit, is the caller's.
    """
    states.require(run, "delete")
    row, job = tables.Execution, tables.Job
    working = select(job.id).join(row, row.id == job.execution_id)
    busy = session.scalar(working.where(job.run_id == run.id, executions.IS_OPEN))
    if busy:
        raise Conflict(
            f"job {busy} still uses run {run.name}",
            hint="Wait for the job, or cancel it.",
            state=run.state,
        )
    named = {"run": run.id, "name": run.name}
    events.record(session, "deleted", f"run {run.name} was deleted", data=named, now=now)
    session.flush()
    executions.delete_of_run(session, run.id)
    session.expunge(run)
    session.execute(sql_delete(tables.Run).where(tables.Run.id == run.id))
    return Path("runs") / run.id


def patch(session: Session, run: tables.Run, change: PatchRun, now: float) -> bool:
    """Change settings of a run; a running trainer receives the change.

    Raises ValidationError, Invalid, NameTaken.
    """
    given = change.model_dump(exclude_unset=True)
    if given.get("name") not in (None, run.name):
        require_free(session, given["name"])
    if change.notify is not None:  # addresses that come back masked are left unchanged
        given["notify"] = webhook_receivers.unmasked(change.notify, run.spec.get("notify", []))
        preflight.require_receivers(given["notify"])
    spec = dict(run.spec)
    for key, value in given.items():
        spec[key] = {**spec[key], **value} if key in _MERGED and value else value
        if key not in _MAY_BE_NULL and value is None:
            spec[key] = run.spec[key]
    valid = RunSpec.model_validate(spec)
    spec = valid.model_dump(mode="json")
    if spec == run.spec:
        return False
    changed = {k: spec[k] for k in _MERGED if spec[k] != run.spec.get(k)}
    before = run.name
    run.spec, run.title, run.run_metadata = spec, valid.title, dict(valid.metadata)
    set_scheduling(run, valid)
    run.version += 1
    if valid.name != before:
        renaming.rename(session, run, valid.name, now)
    if changed and State(run.state) in states.OCCUPYING:
        commands.send(session, run, Update(id=commands.new_id(), **changed), now)
    return True


_MERGED = ("evaluate", "checkpoint", "recovery")
_MAY_BE_NULL = ("title", "hours", "budget")


def save_checkpoint(
    session: Session, run: tables.Run, now: float, *, pin: bool = False, job_id: str | None = None
) -> tables.CommandRow:
    """Save a checkpoint at the next step boundary of the running trainer."""
    _require_trainer(run, "save a checkpoint")
    return commands.send(session, run, Save(id=commands.new_id(), pin=pin), now, job_id)


def evaluate_inline(
    session: Session,
    run: tables.Run,
    params: EvaluateParams,
    now: float,
    *,
    job_id: str | None = None,
) -> tables.CommandRow:
    """Evaluate the current weights at the next step boundary of the running trainer."""
    _require_trainer(run, "evaluate the current weights")
    given = params.model_dump(include=set(Evaluate.model_fields))
    return commands.send(session, run, Evaluate(id=commands.new_id(), **given), now, job_id)


def pin(session: Session, checkpoint: tables.Checkpoint, pinned: bool, now: float) -> bool:
    """Pin a checkpoint, or return it to retention."""
    if checkpoint.pinned == pinned:
        return False
    if pinned and not checkpoint_lookup.is_there(checkpoint):
        raise Conflict(f"checkpoint {checkpoint.name} no longer exists")
    checkpoint.pinned = pinned
    run = session.get_one(tables.Run, checkpoint.run_id)
    run.version += 1
    session.flush()
    if State(run.state) in states.OCCUPYING:
        names = checkpoint_lookup.pinned_names(session, run.id)
        commands.send(session, run, Pin(id=commands.new_id(), names=names), now)
    return True


# --- parts ---------------------------------------------------------------------------------------


def _require_work(session: Session, run: tables.Run) -> None:
    """Raises Conflict for a run that has completed every phase."""
    if current_phase(session, run) is None:
        raise IllegalMove(
            f"run {run.name} has completed every step of its plan",
            hint="Extend it to train further.",
            state=run.state,
            legal=sorted(states.VERBS[State(run.state)] - {"resume"}),
        )


def _require_divisible(run: tables.Run, rows: int | None) -> None:
    """The rows per pass must divide the step, whose tokens stay the same. Raises Invalid."""
    sequence_len = run.plan["shape"]["sequence_len"]
    rows_total = run.batch_tokens // sequence_len
    lanes = gang.lanes(run)
    if rows is not None and rows_total % (rows * lanes):
        fitting = ", ".join(map(str, gang.dividing_rows(run)))
        raise Invalid(
            f"a step of run {run.name} is {rows_total} rows of {sequence_len:,} tokens, which "
            f"{rows} does not divide{f' into {lanes} lanes' if lanes > 1 else ''}",
            hint=f"Divisors: {fitting}.",
            errors=[{"pointer": "/overrides/device_batch_size", "detail": "does not divide"}],
        )


def _require_trainer(run: tables.Run, what: str) -> None:
    state = State(run.state)
    if state not in states.REQUESTS["checkpoint"]:
        raise IllegalMove(
            f"run {run.name} is {state}: only a running trainer can {what}",
            hint="Resume it first, or request the job for a saved checkpoint.",
            state=state,
            legal=sorted(states.VERBS[state]),
        )


__all__ = [
    "ExtendOutcome", "build_order", "create", "delete", "evaluate_inline", "extend", "import_run",
    "next_attempt", "patch", "pin", "request_cancel", "request_pause", "resume", "save_checkpoint",
    "start", "supersede",
]  # fmt: skip
