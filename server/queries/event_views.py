"""Events in API form: pages of them, and those after an id for a stream."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from server.queries import paging
from server.schemas.events import EventView
from server.schemas.page import Page


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
    rows = list(session.scalars(query.limit(min(limit, paging.MAX_PAGE) + 1)))
    shown = rows[: min(limit, paging.MAX_PAGE)]
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
    """Id of the newest event; 0 without any."""
    event = tables.Event
    return session.scalar(select(event.id).order_by(event.id.desc()).limit(1)) or 0


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
