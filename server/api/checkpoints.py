"""Routes of checkpoints: list, save now, pin, delete, download."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Request
from sqlalchemy.orm import Session
from starlette.responses import Response

from server.api.deps import (
    CheckpointRef,
    Conf,
    Db,
    Doing,
    RunRef,
    StrictRoute,
    Superseded,
)
from server.api.files import file_answers, send_file
from server.api.jobs import accepted
from server.api.openapi import problems
from server.api.phases import complete_page
from server.domain import checkpoints, jobs, runs
from server.guard.idempotency import StoredAnswer
from server.queries import downloads, history, run_views
from server.schemas.checkpoints import CheckpointView, PatchCheckpoint, SaveRequest
from server.schemas.jobs import JobView
from server.schemas.page import Page

router = APIRouter(
    prefix="/v1/runs/{run}/checkpoints", tags=["checkpoints"], route_class=StrictRoute
)
FileName = Annotated[
    str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$", description="As listed in `files`.")
]
FILES = {
    "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
    "application/json": {"schema": {}},  # those whose names end in .json
}


@router.get("", responses=problems(404))
def index(run: RunRef, db: Db, superseded: Superseded = False) -> Page[CheckpointView]:
    """Checkpoints of a run."""
    with db.read() as session:
        return complete_page(
            history.checkpoints(session, run_views.get_run(session, run), superseded=superseded)
        )


@router.post("", status_code=202, response_model=JobView, responses=problems(404, 409))
def save(run: RunRef, act: Doing, body: SaveRequest | None = None) -> Response:
    """Save a checkpoint at the next step boundary of the running trainer."""

    def effect(session: Session) -> StoredAnswer:
        row = run_views.get_run(session, run)
        return accepted(session, jobs.save(session, row, act.now, pin=bool(body and body.pin)))

    return act.once(effect)


@router.patch("/{checkpoint}", responses=problems(404, 409))
def pin(
    run: RunRef, checkpoint: CheckpointRef, body: PatchCheckpoint, act: Doing
) -> CheckpointView:
    """Pin a checkpoint against retention, or unpin it."""
    with act.db.write() as session:
        row = run_views.get_run(session, run)
        runs.pin(session, checkpoints.get(session, row, checkpoint), body.pinned, act.now)
        session.flush()
        return history.checkpoint(session, row, checkpoint)


@router.delete(
    "/{checkpoint}", status_code=204, response_class=Response, responses=problems(404, 409)
)
def delete(run: RunRef, checkpoint: CheckpointRef, act: Doing, conf: Conf) -> Response:
    """Delete a checkpoint that is neither pinned nor needed for a resume."""
    with act.db.write() as session:
        row = run_views.get_run(session, run)
        checkpoints.delete(session, row, checkpoints.get(session, row, checkpoint), act.now)
    checkpoints.remove(conf.paths.run(row.id), checkpoint)
    return Response(status_code=204)


@router.get(
    "/{checkpoint}/files/{name}",
    response_class=Response,
    responses=file_answers(FILES) | problems(404, 416),
)
def download(
    request: Request, run: RunRef, checkpoint: CheckpointRef, name: FileName, db: Db, conf: Conf
) -> Response:
    """Download one file; Range and If-Range resume a download. The ETag is the sha256."""
    with db.read() as session:
        row = run_views.get_run(session, run)
        kept = checkpoints.get(session, row, checkpoint)
    part = checkpoints.part(conf.paths.run(row.id), kept, name)
    kind = "application/json" if name.endswith(".json") else "application/octet-stream"
    return send_file(
        request,
        downloads.opened(part.path),
        media_type=kind,
        etag=part.sha256,
        headers={"Content-Disposition": f'attachment; filename="{row.name}-{checkpoint}-{name}"'},
    )
