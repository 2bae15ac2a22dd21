"""Routes of events: a list, or a live stream (SSE) by Accept."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from server.api.deps import MAX_ID, Limit, RunRef, StrictRoute, negotiate
from server.api.openapi import problems
from server.api.sse import EventStream
from server.database.db import Database
from server.errors import Busy
from server.events.hub import Hub
from server.queries import event_views, run_views
from server.schemas.events import EventView
from server.schemas.page import Page

router = APIRouter(prefix="/v1", tags=["history"], route_class=StrictRoute)
JSON, SSE = "application/json", "text/event-stream"
MAX_STREAMS = 1000
ANSWERS = {200: {"content": {SSE: {"schema": {"type": "string"}}}}} | problems(404, 406)

After = Annotated[
    int | None, Query(ge=0, le=MAX_ID, description="Return only events after this id.")
]
Newest = Annotated[
    bool,
    Query(
        description="Return the last `limit` events, oldest first; with `after`, those before it."
    ),
]
LastEventId = Annotated[
    str | None,
    Header(description="Id of the last event received; browsers send it when they reconnect."),
]


@router.get("/events", response_model=Page[EventView], responses=ANSWERS)
async def all_events(
    request: Request,
    after: After = None,
    limit: Limit = 100,
    newest: Newest = False,
    last_event_id: LastEventId = None,
) -> Response:
    """Events of every run. A stream without Last-Event-ID or `after` starts with new events."""
    return await _events(request, None, after, limit, newest, last_event_id)


@router.get("/runs/{run}/events", response_model=Page[EventView], responses=ANSWERS)
async def run_events(
    request: Request,
    run: RunRef,
    after: After = None,
    limit: Limit = 100,
    newest: Newest = False,
    last_event_id: LastEventId = None,
) -> Response:
    """Events of a run. A stream without Last-Event-ID or `after` starts with its first event.

    Besides stored events a stream carries `event: progress` (at most one per second, not stored, no
    id) and ends with `event: bye` when the daemon stops.
    """
    run_id = await run_in_threadpool(_id_of, request.app.state.db, run)
    return await _events(request, run_id, after, limit, newest, last_event_id)


async def _events(
    request: Request,
    run_id: str | None,
    after: int | None,
    limit: int,
    newest: bool,
    last_event_id: str | None,
) -> Response:
    db: Database = request.app.state.db
    if negotiate(request, JSON, SSE) == JSON:
        page = await run_in_threadpool(_page, db, run_id, after, limit, newest)
        return Response(page.model_dump_json(), media_type=JSON, headers={"Vary": "Accept"})
    hub: Hub = request.app.state.stream
    if sum(hub.clients.values()) >= MAX_STREAMS:
        raise Busy(f"{MAX_STREAMS} streams are open already.", headers={"Retry-After": "5"})
    position = _number(last_event_id)
    if position is None:
        position = after
    if position is None:
        position = 0 if run_id else await run_in_threadpool(hub.source.newest)
    return EventStream(hub, run_id, position)


def _id_of(db: Database, run: str) -> str:
    with db.read() as session:
        return run_views.get_run(session, run).id


def _page(
    db: Database, run_id: str | None, after: int | None, limit: int, newest: bool
) -> Page[EventView]:
    with db.read() as session:
        return event_views.events(session, run_id, after=after, limit=limit, newest=newest)


def _number(text: str | None) -> int | None:
    """Parse an event id from a client; None if it is not a number."""
    if text is None or not (text.isascii() and text.isdigit()) or len(text) > 18:
        return None
    return int(text)
