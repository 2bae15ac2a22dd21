"""Routes of groups: create, list, show, cancel, delete."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from sqlalchemy.orm import Session
from starlette.responses import Response

from server.api.deps import ID_PATTERN, Conf, Db, Doing, GroupRef, Limit, StrictRoute
from server.api.openapi import problems
from server.domain import groups, run_deletion
from server.guard.idempotency import StoredAnswer
from server.queries import groups as group_queries
from server.schemas.groups import GroupDetail, GroupRequest, GroupSummary
from server.schemas.page import Page

router = APIRouter(prefix="/v1/groups", tags=["groups"], route_class=StrictRoute)


@router.post(
    "",
    status_code=201,
    response_model=GroupDetail,
    responses=problems(409)
    | {201: {"headers": {"Location": {"schema": {"type": "string"}}}, "description": "Created."}},
)
def create(body: GroupRequest, act: Doing, conf: Conf) -> Response:
    """Create a run for each depth, point of the grid and seed, queued at low priority.

    All runs are created or none: the error for an invalid member points into the request.
    """

    def effect(session: Session) -> StoredAnswer:
        group = groups.create(session, body, conf, act.now)
        detail = group_queries.detail(session, conf, group)
        return StoredAnswer.of(detail, 201, Location=f"/v1/groups/{group.id}")

    return act.once(effect)


@router.get("")
def index(
    db: Db,
    after: Annotated[
        str | None, Query(max_length=200, description="Value of `next` of the previous page.")
    ] = None,
    limit: Limit = 50,
) -> Page[GroupSummary]:
    """Groups, newest first."""
    with db.read() as session:
        return group_queries.list_groups(session, after, limit)


@router.get("/{group}", responses=problems(404))
def show(
    group: GroupRef,
    db: Db,
    conf: Conf,
    baseline: Annotated[
        str | None,
        Query(
            pattern=ID_PATTERN,
            description="Group whose finished runs are the baseline of gains and multipliers.",
        ),
    ] = None,
    next_depth: Annotated[
        int | None,
        Query(ge=1, le=128, description="Depth to predict from the fit; the next rung by default."),
    ] = None,
) -> GroupDetail:
    """Show a group: its members and their comparison (noise, gains, multipliers, fits)."""
    with db.read() as session:
        row = groups.get(session, group)
        return group_queries.detail(session, conf, row, baseline=baseline, next_depth=next_depth)


@router.post(
    "/{group}/cancel",
    status_code=202,
    response_model=GroupDetail,
    responses={200: {"model": GroupDetail, "description": "No run was left to cancel."}}
    | problems(404),
)
def cancel(group: GroupRef, act: Doing, conf: Conf) -> Response:
    """Cancel every run of the group that has not ended."""

    def effect(session: Session) -> StoredAnswer:
        row = groups.get(session, group)
        count = groups.cancel(session, row, act.now, act.door)
        session.flush()
        return StoredAnswer.of(group_queries.detail(session, conf, row), 202 if count else 200)

    return act.once(effect)


@router.delete("/{group}", status_code=204, response_class=Response, responses=problems(404, 409))
def delete(
    group: GroupRef,
    act: Doing,
    conf: Conf,
    request: Request,
    runs: Annotated[
        bool, Query(description="Also delete its runs, with their checkpoints and history.")
    ] = False,
) -> Response:
    """Delete the group; its runs remain as ordinary runs unless `runs` is true."""
    if runs and request.app.state.notices is not None:
        request.app.state.notices.take_in(act.now)  # their events are deleted too
    with act.db.write() as session:
        row = groups.get(session, group)
        removed = groups.delete(session, row, act.now, with_runs=runs)
        directories = [conf.paths.root / directory for directory in removed]
        for directory in directories:
            run_deletion.mark(directory)
    for directory in directories:
        if problems := run_deletion.remove_files(directory):
            with act.db.write() as session:
                run_deletion.report(session, directory.name, problems, act.now)
    return Response(status_code=204)
