"""Runs in API form: a run by id or name, the list, and the details of one."""

from __future__ import annotations

import time
from bisect import bisect_left
from typing import Any, Literal

from sqlalchemy import bindparam, or_, select
from sqlalchemy.orm import Session, defer

from server import webhook_receivers
from server.database import tables
from server.domain import remedies
from server.domain.states import Desired, State
from server.errors import NotFound
from server.metrics import sparkline
from server.queries import eta, paging
from server.queries.condition import condition
from server.queries.latest import latest
from server.schemas.page import Page
from server.schemas.runs import RunDetail, RunSummary
from trainer.contract.plan import Plan
from trainer.contract.reasons import Reason
from trainer.contract.spec import RunSpec

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
    query = paging.paged(query, run.created_at, run.id, after, newest)
    rows = list(session.scalars(query.limit(min(limit, paging.MAX_PAGE) + 1)))
    shown = rows[: min(limit, paging.MAX_PAGE)]
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
        next=paging.cursor(shown[-1].created_at, shown[-1].id) if more else None,
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


def _summary(
    session: Session, run: tables.Run, place: int | None, num_phases: int, parameters: int | None
) -> dict[str, Any]:
    running, now = run.state == State.running, time.time()
    # a statement for each run that trains: there are as many of those as devices
    stands = latest(session, run.id) if running else None
    attempt = stands.attempt if stands else None
    still = condition(session.info["paths"].run(run.id), run, attempt, now)
    left = eta.remaining(session, run, stands, still) if stands else None
    newest = eta.newest_metrics(run, attempt, still)
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
        "metrics": newest,
        **{key: newest[key] for key in newest if key in RunSummary.model_fields},
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
