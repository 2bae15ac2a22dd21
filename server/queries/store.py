"""Queries of the API. Each takes a session and reads one snapshot."""

from __future__ import annotations

import base64
import binascii
import json
import time
from bisect import bisect_left
from typing import Any, Literal

from sqlalchemy import Select, and_, bindparam, or_, select
from sqlalchemy.orm import Session, defer

from server import webhook_receivers
from server.database import tables
from server.domain import executions, remedies
from server.domain.states import Desired, State
from server.errors import Invalid, NotFound
from server.metrics import sparkline
from server.queries import eta
from server.queries.condition import condition
from server.queries.curves import METRIC_KEYS, metrics
from server.queries.eta import progress
from server.queries.history import attempts, checkpoint, checkpoints, evaluations, phases, samples
from server.queries.latest import latest
from server.schemas.events import EventView
from server.schemas.jobs import JobView
from server.schemas.page import Page
from server.schemas.runs import RunDetail, RunSummary
from trainer.contract.plan import Plan
from trainer.contract.reasons import Reason
from trainer.contract.spec import RunSpec

MAX_PAGE = 1_000
_BY_ID = select(tables.Run).where(tables.Run.id == bindparam("run"))
_BY_NAME = select(tables.Run).where(tables.Run.name == bindparam("run"))
_WIDE = ("spec", "plan", "frozen", "overrides", "fingerprint", "pending_extend", "skip_steps")


def get_run(session: Session, run: str) -> tables.Run:
    """The run of an id or name. Raises NotFound."""
    found = session.scalar(_BY_ID if run.startswith("run_") else _BY_NAME, {"run": run})
    if found is None:
        raise NotFound(f"There is no run {run[:80]!r}.", hint=_renamed(session, run))
    return found


def _renamed(session: Session, name: str) -> str:
    """Hint for the former name of a renamed run."""
    event = tables.Event
    former = select(tables.Run.name).join(event, event.run_id == tables.Run.id)
    query = former.where(event.kind == "renamed", event.data["before"].as_string() == name)
    after = session.scalar(query.order_by(event.id.desc()).limit(1))
    if after is None:
        return "`traind ps` lists the existing runs."
    return f"The run that had this name is now {after}."


def list_runs(
    session: Session,
    states: list[State] | None = None,
    after: str | None = None,
    limit: int = 50,
    order: Literal["newest", "oldest"] = "newest",
) -> Page[RunSummary]:
    """A page of runs by the time they were created; `after` is the `next` of the page before."""
    run, newest = tables.Run, order == "newest"
    query = select(run).options(*(defer(getattr(run, name)) for name in _WIDE))
    if states:
        query = query.where(run.state.in_([str(s) for s in states]))
    query = paged(query, run.created_at, run.id, after, newest)
    rows = list(session.scalars(query.limit(min(limit, MAX_PAGE) + 1)))
    shown = rows[: min(limit, MAX_PAGE)]
    places, counts = _queue(session, shown), _phase_counts(session, shown)
    sizes = _parameter_counts(session, shown)
    more = len(rows) > len(shown)
    return Page(
        data=[
            RunSummary(
                **_summary(
                    session, row, places.get(row.id), counts.get(row.id, 0), sizes.get(row.id)
                )
            )
            for row in shown
        ],
        has_more=more,
        next=cursor(shown[-1].created_at, shown[-1].id) if more else None,
    )


def detail(session: Session, run: tables.Run) -> RunDetail:
    """Details of one run, its spec and plan included."""
    places, counts = _queue(session, [run]), _phase_counts(session, [run])
    return RunDetail(
        **_summary(
            session, run, places.get(run.id), counts.get(run.id, 0), run.plan["parameters"]["total"]
        ),
        advice=remedies.advice(run),
        remedy=remedies.remedy(session, run),
        spec=shown_spec(run.spec),
        plan=Plan.model_validate(run.plan),
        frozen=run.frozen,
        overrides=run.overrides,
        fingerprint=run.fingerprint,
        exact_resume=run.exact_resume,  # type: ignore[arg-type]
        pending_extend=run.pending_extend,
        directory=str(session.info["paths"].run(run.id).root),
    )


def shown_spec(spec: dict[str, Any]) -> RunSpec:
    """The spec with the addresses of `notify` masked."""
    whole = RunSpec.model_validate(spec)
    return whole.model_copy(update={"notify": webhook_receivers.all_masked(whole.notify)})


# --- events and jobs -----------------------------------------------------------------------------


def events(
    session: Session,
    run_id: str | None = None,
    *,
    after: int | None = None,
    limit: int = 100,
    newest: bool = False,
) -> Page[EventView]:
    """Events after an id, in order; with `newest` the last ones before that id, in order too.

    `next` of a page of the newest is the id that the page before it ends below.
    """
    event = tables.Event
    query = select(event)
    if run_id is not None:
        query = query.where(event.run_id == run_id)
    if newest:
        query = query.order_by(event.id.desc())
        if after is not None:
            query = query.where(event.id < after)
    else:
        query = query.where(event.id > (after or 0)).order_by(event.id)
    rows = list(session.scalars(query.limit(min(limit, MAX_PAGE) + 1)))
    shown = rows[: min(limit, MAX_PAGE)]
    more = len(rows) > len(shown)
    in_order = shown[::-1] if newest else shown
    return Page(
        data=[_event(row) for row in in_order],
        has_more=more,
        next=str(shown[-1].id) if more else None,
    )


def events_after(
    session: Session, run_id: str | None, after_id: int, limit: int = 100
) -> list[EventView]:
    """The next events of a stream."""
    return events(session, run_id, after=after_id, limit=limit).data


def newest_event_id(session: Session) -> int:
    event = tables.Event
    return session.scalar(select(event.id).order_by(event.id.desc()).limit(1)) or 0


def jobs(
    session: Session,
    run: tables.Run | None = None,
    state: str | None = None,
    after: str | None = None,
    limit: int = 50,
) -> Page[JobView]:
    """A page of jobs, newest first."""
    table, row = tables.Job, tables.Execution
    query = select(table).join(row, row.id == table.execution_id)
    if run is not None:
        query = query.where(table.run_id == run.id)
    if state is not None:
        query = query.where(or_(executions.IS_OPEN & (row.state == state), row.outcome == state))
    query = paged(query, row.created_at, table.id, after, newest=True)
    rows = list(session.scalars(query.limit(min(limit, MAX_PAGE) + 1)))
    shown = rows[: min(limit, MAX_PAGE)]
    more = len(rows) > len(shown)
    return Page(
        data=[job(session, row) for row in shown],
        has_more=more,
        next=cursor(shown[-1].created_at, shown[-1].id) if more else None,
    )


def job(session: Session, row: tables.Job) -> JobView:
    run = tables.Run
    name = session.scalar(select(run.name).where(run.id == row.run_id)) if row.run_id else None
    return JobView(
        id=row.id,
        kind=row.kind,
        run=name,
        where=row.where,
        state=row.state,  # type: ignore[arg-type]
        reason=Reason(row.reason) if row.reason else None,
        message=row.message,
        stage=row.stage,
        stage_detail=row.stage_detail,
        fraction=row.stage_fraction,
        stage_since=row.stage_since,
        exit_code=row.exit_code,
        params=_shown_params(row.params),
        result=row.result,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
    )


def _shown_params(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a job; the spec among those of a preparation is shown like a run's."""
    spec = params.get("spec")
    if not isinstance(spec, dict) or not spec.get("notify"):
        return params
    return {**params, "spec": {**spec, "notify": webhook_receivers.all_masked(spec["notify"])}}


def _event(row: tables.Event) -> EventView:
    return EventView(
        id=row.id,
        run=row.run_id,
        job=row.job_id,
        attempt=row.attempt_number,
        kind=row.kind,
        level=row.level,  # type: ignore[arg-type]
        step=row.step,
        message=row.message,
        data=row.data,
        unix_seconds=row.unix_seconds,
    )


# --- parts of a run ------------------------------------------------------------------------------


def _summary(
    session: Session, run: tables.Run, place: int | None, num_phases: int, parameters: int | None
) -> dict[str, Any]:
    running, view, now = run.state == State.running, run.progress, time.time()
    # a statement for each run that trains: there are as many of those as devices
    stands = latest(session, run.id) if running else None
    still = condition(session.info["paths"].run(run.id), run, stands and stands.attempt, now)
    left = eta.remaining(session, run, stands, still) if stands else None
    moves = running and still is None
    return {
        "id": run.id,
        "name": run.name,
        "title": run.title,
        "state": State(run.state),
        "desired_state": Desired(run.desired_state),
        "reason": Reason(run.reason),
        "reason_message": run.reason_message,
        "device": run.device,
        "step": run.step,
        "end_step": run.end_step,
        "fraction": eta.fraction(run),
        "loss": view.get("loss"),
        "loss_smooth": view.get("loss_smooth"),
        "val_bpb": view.get("val_bpb"),
        "tokens_per_second": view.get("tokens_per_second") if moves else None,
        "eta_seconds": left.seconds if left else None,
        "training_seconds": run.totals.get("seconds"),
        "condition": still,
        "queue_position": place,
        "num_phases": num_phases,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "last_step_at": run.last_step_at,
        "parameters": parameters,
        "tokens_seen": run.tokens_seen,
        "state_since": run.state_since,
        "metadata": run.run_metadata,
        "sparkline": sparkline.means(run.sparkline),
    }


def _queue(session: Session, rows: list[tables.Run]) -> dict[str, int]:
    """Places in the queue, from 1, of those among `rows` that wait."""
    waiting = [row for row in rows if row.queue_position is not None]
    if not waiting:
        return {}
    rank, position = tables.Run.queue_rank, tables.Run.queue_position
    query = select(rank, position).where(position.is_not(None))
    taken = sorted((row[0], row[1]) for row in session.execute(query))
    return {
        row.id: bisect_left(taken, (row.queue_rank, row.queue_position or 0)) + 1 for row in waiting
    }


def _phase_counts(session: Session, rows: list[tables.Run]) -> dict[str, int]:
    phase, counts = tables.Phase, dict.fromkeys((row.id for row in rows), 0)
    query = select(phase.run_id).where(
        phase.run_id.in_(counts),
        or_(phase.lineage_limit.is_(None), phase.lineage_limit > phase.start_step),
    )
    for run_id in session.scalars(query):
        counts[run_id] += 1
    return counts


def _parameter_counts(session: Session, rows: list[tables.Run]) -> dict[str, int]:
    """Parameter counts from plans, whose rows are too wide to read for a list."""
    run = tables.Run
    total = run.plan["parameters"]["total"].as_integer()
    found = session.execute(select(run.id, total).where(run.id.in_([row.id for row in rows])))
    return {row[0]: row[1] for row in found}


def paged(query: Select[Any], at: Any, key: Any, after: str | None, newest: bool) -> Select[Any]:
    """Limit a query to the page after `after`, in order of time. Raises Invalid."""
    if after is not None:
        seconds, last = _read_cursor(after)
        if newest:
            query = query.where(or_(at < seconds, and_(at == seconds, key < last)))
        else:
            query = query.where(or_(at > seconds, and_(at == seconds, key > last)))
    return query.order_by(at.desc(), key.desc()) if newest else query.order_by(at, key)


def cursor(seconds: float, key: str) -> str:
    return base64.urlsafe_b64encode(json.dumps([seconds, key]).encode()).decode().rstrip("=")


def _read_cursor(text: str) -> tuple[float, str]:
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        seconds, key = json.loads(raw)
        return float(seconds), str(key)
    except (ValueError, TypeError, binascii.Error, RecursionError) as error:
        raise Invalid(
            "`after` is not the `next` of a page",
            errors=[{"pointer": "/after", "detail": "use the `next` of the previous page"}],
        ) from error


__all__ = [
    "METRIC_KEYS", "attempts", "checkpoint", "checkpoints", "cursor", "detail", "evaluations",
    "events", "events_after", "get_run", "job", "jobs", "list_runs", "metrics", "newest_event_id",
    "paged", "phases", "progress", "samples", "shown_spec",
]  # fmt: skip
