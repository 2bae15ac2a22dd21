"""Builds the rows of a new or imported run."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from server.domain import events, gang
from server.domain.states import Desired, State, sentence
from server.errors import Invalid, NameTaken
from trainer.contract.plan import CannotPlan, Plan, PlanContext, make_plan
from trainer.contract.reasons import Reason
from trainer.contract.spec import HoursRule, RunSpec


def plan_for(spec: RunSpec, context: PlanContext | None) -> Plan:
    """The plan of a spec. Raises Invalid if its numbers are impossible."""
    try:
        return make_plan(spec, context)
    except CannotPlan as error:
        pointer = "/" + error.field.replace(".", "/")
        raise Invalid(str(error), errors=[{"pointer": pointer, "detail": str(error)}]) from error


def require_free(session: Session, name: str) -> None:
    """Raises NameTaken if another run has the name."""
    if session.scalar(select(tables.Run.id).where(tables.Run.name == name)):
        raise NameTaken(
            f"a run named {name} already exists",
            hint="Choose another name, or resume, extend or delete that run.",
            errors=[{"pointer": "/name", "detail": "the name is in use"}],
        )


def new_run(
    session: Session, spec: RunSpec, plan: Plan, now: float, run_id: str | None = None
) -> tables.Run:
    """Create a run in state `created`, with its event; flushed, without phases."""
    run = tables.Run(
        id=run_id or f"run_{secrets.token_hex(8)}",
        name=spec.name,
        title=spec.title,
        run_metadata=dict(spec.metadata),
        state=State.created,
        desired_state=Desired.created,
        reason=Reason.requested,
        reason_message=sentence(State.created, Reason.requested),
        state_since=now,
        created_at=now,
        device=gang.device_column(asked := spec.model_dump(mode="json")),
        spec=asked,
        plan=plan.model_dump(mode="json"),
        step=0,
        end_step=plan.horizon.steps,
        batch_tokens=plan.batch.tokens,
    )
    set_scheduling(run, spec)
    session.add(run)
    session.flush()
    words = f"run {run.name} was created: {run.end_step:,} steps"
    events.record(session, "created", words, run_id=run.id, now=now)
    session.flush()
    return run


def set_scheduling(run: tables.Run, spec: RunSpec) -> None:
    """Copy the fields that order the queue from the spec into columns."""
    run.queue_rank, run.hours = -spec.priority, hours_column(spec.hours)


def hours_column(rules: Sequence[HoursRule] | None) -> str:
    """Hours as a column holds them: JSON, '' for always."""
    if rules is None:
        return ""
    return json.dumps([rule.model_dump(mode="json") for rule in rules], sort_keys=True)


def first_phase(session: Session, run: tables.Run, plan: Plan, now: float) -> tables.Phase:
    phase = tables.Phase(
        run_id=run.id,
        index=0,
        name="phase-0",
        start_step=0,
        end_step=plan.horizon.steps,
        schedule=plan.schedule.model_dump(mode="json"),
        created_at=now,
    )
    session.add(phase)
    session.flush()
    return phase
