"""Jobs in API form: one, and pages of them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from server import webhook_receivers
from server.database import tables
from server.domain import executions
from server.queries import paging
from server.schemas.jobs import JobView
from server.schemas.page import Page
from trainer.contract.reasons import Reason


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
    query = paging.paged(query, row.created_at, table.id, after, newest=True)
    rows = list(session.scalars(query.limit(min(limit, paging.MAX_PAGE) + 1)))
    shown = rows[: min(limit, paging.MAX_PAGE)]
    more = len(rows) > len(shown)
    return Page(
        data=[job(session, row) for row in shown],
        has_more=more,
        next=paging.cursor(shown[-1].created_at, shown[-1].id) if more else None,
    )


def job(session: Session, row: tables.Job) -> JobView:
    """One job; addresses of `notify` in its spec are masked."""
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
