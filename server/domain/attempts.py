"""Attempts: creates the row and the order of a run's next trainer process."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from server.database import tables
from server.domain import checkpoint_lookup, commands, executions, gang, lineage
from server.domain.extend import next_number
from server.errors import Conflict
from server.metrics import counters
from server.settings import Settings
from trainer.contract.orders import AttemptOrder
from trainer.contract.plan import Plan
from trainer.contract.reasons import Reason
from trainer.contract.schedule import PhaseSchedule
from trainer.contract.spec import RunSpec

LAST_ATTEMPT = (
    select(tables.Attempt)
    .where(tables.Attempt.run_id == bindparam("run"), tables.Attempt.number > 0)
    .order_by(tables.Attempt.number.desc())
    .limit(1)
)


def next_attempt(
    session: Session, run: tables.Run, *, device: str, now: float, devices: Sequence[str] = ()
) -> tables.Attempt:
    """Create the row of a new attempt at the first unfinished phase. Raises Conflict without one.

    devices: one for each rank, where there are several; `device` is then the first.
    Commands that the last attempt did not answer are resent or dropped.
    """
    phase = current_phase(session, run)
    if phase is None:
        raise Conflict(f"run {run.name} has no phase left to train", state=run.state)
    last = last_attempt(session, run.id)
    number, place = next_number(session, run.id), gang.as_place(device, devices)
    attempt = tables.Attempt(
        execution=executions.of_attempt(run.id, number, place=place, now=now),
        run_id=run.id,
        number=number,
        phase_index=phase.index,
        device=device,
    )
    session.add(attempt)
    if phase.started_at is None:
        phase.started_at = now
    if last is not None and last.outcome in (None, "failed", "crashed", "terminated"):
        reason = last.reason or Reason.crashed
        counters.add(session, counters.RESTARTS, run.name, 1, reason)
        run.totals = {**run.totals, "restarts": run.totals.get("restarts", 0) + 1}
    commands.carry_over(session, run, now)
    session.flush()
    return attempt


def current_phase(session: Session, run: tables.Run) -> tables.Phase | None:
    """The first phase of the lineage that has not ended."""
    phases = lineage.phases(session, run.id)
    return next((p for p in phases if p.ended_at_step is None), None)


def last_attempt(session: Session, run_id: str) -> tables.Attempt | None:
    """The newest attempt of the run, without an import (number 0)."""
    return session.scalar(LAST_ATTEMPT, {"run": run_id})


def open_ones(session: Session, run_id: str | None = None) -> list[tables.Attempt]:
    """Attempts whose execution has not ended, oldest first; of one run, or of all."""
    attempt, row = tables.Attempt, tables.Execution
    query = select(attempt).join(row, row.id == attempt.execution_id).where(executions.IS_OPEN)
    if run_id is not None:
        query = query.where(attempt.run_id == run_id)
    return list(session.scalars(query.order_by(attempt.id)))


def build_order(
    session: Session,
    run: tables.Run,
    attempt: tables.Attempt,
    settings: Settings,
    devices: Sequence[str] = (),
) -> AttemptOrder:
    """The order (order.json) of `attempt` for its trainer. devices: one for each rank."""
    phases = lineage.phases(session, run.id)
    phase = next(p for p in phases if p.index == attempt.phase_index)
    earlier = [p for p in phases if p.index < phase.index]
    spec = RunSpec.model_validate(run.spec)
    is_first = not _has_begun(session, run.id, phase, attempt)
    return AttemptOrder(
        run_id=run.id,
        run_name=run.name,
        attempt=attempt.number,
        token=attempt.token,
        run_dir=str(settings.paths.run(run.id).root),
        data_dir=str(settings.paths.root),
        device=attempt.device if spec.place is None else spec.first_device,
        devices=list(devices),
        phase_index=phase.index,
        phase_name=phase.name,
        schedule=PhaseSchedule.model_validate(phase.schedule),
        first_step_of_phase=phase.start_step,
        end_step=lineage.phase_end(phase),
        earlier_schedules=[PhaseSchedule.model_validate(p.schedule) for p in earlier],
        spec=spec,
        plan=Plan.model_validate(run.plan),
        lineage=lineage.limits(session, run.id),
        from_checkpoint=phase.from_checkpoint if is_first else None,
        pinned=checkpoint_lookup.pinned_names(session, run.id),
        overrides=run.overrides,
        skip_steps=[(low, high) for low, high in run.skip_steps],
        recheck_bpb=_rechecks(spec, bool(earlier) and is_first),
        resume_expected=checkpoint_lookup.any_in_lineage(session, run.id),
    )


def _rechecks(spec: RunSpec, begins_phase: bool) -> bool:
    asked = spec.evaluate.recheck_bpb
    return asked == "always" or (asked == "auto" and begins_phase)


def _has_begun(session: Session, run_id: str, phase: tables.Phase, attempt: tables.Attempt) -> bool:
    """True if an earlier attempt has made steps of this phase."""
    table = tables.Attempt
    query = select(table.id).where(
        table.run_id == run_id,
        table.phase_index == phase.index,
        table.number < attempt.number,
        table.steps_done > 0,
    )
    return session.scalar(query.limit(1)) is not None
