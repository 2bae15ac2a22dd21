"""Routes of jobs: evaluations, samples, exports, imports and audits answer 202 and run later."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from sqlalchemy.orm import Session
from starlette.responses import Response

from server.api.deps import ID_PATTERN, Act, Conf, Db, Doing, JobRef, Limit, RunRef, StrictRoute
from server.api.files import file_answers, header_name, send_file
from server.api.openapi import problems
from server.api.token_stream import MAX_TOKEN_STREAMS, TokenStream
from server.database import tables
from server.database.db import Database
from server.domain import jobs
from server.errors import Busy
from server.guard.idempotency import StoredAnswer
from server.queries import downloads, job_views, logs, run_views
from server.schemas.jobs import JobView
from server.schemas.page import Page
from trainer.contract.jobs import (
    AuditParams,
    EvaluateParams,
    ExportParams,
    ImportParams,
    SampleParams,
)
from trainer.contract.rundir import LOG

router = APIRouter(prefix="/v1", tags=["jobs"], route_class=StrictRoute)
SSE = "text/event-stream"
FILES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
LOCATION = {202: {"headers": {"Location": {"schema": {"type": "string"}}}, "description": "Asked."}}


@router.get("/jobs", responses=problems(404))
def index(
    db: Db,
    run: Annotated[
        str | None, Query(pattern=ID_PATTERN, description="Return only jobs of this run.")
    ] = None,
    state: Annotated[
        Literal["queued", "running", "completed", "failed", "cancelled"] | None, Query()
    ] = None,
    after: Annotated[
        str | None, Query(max_length=200, description="Value of `next` of the previous page.")
    ] = None,
    limit: Limit = 50,
) -> Page[JobView]:
    """Jobs, newest first."""
    with db.read() as session:
        of = run_views.get_run(session, run) if run else None
        return job_views.jobs(session, run=of, state=state, after=after, limit=limit)


@router.get("/jobs/{job}", responses=problems(404))
def show(job: JobRef, db: Db) -> JobView:
    """A job with its progress and result."""
    with db.read() as session:
        return job_views.job(session, jobs.get(session, job))


@router.get(
    "/jobs/{job}/stream",
    response_class=Response,
    responses={200: {"content": {SSE: {"schema": {"type": "string"}}}}} | problems(404, 409),
)
def stream(job: JobRef, db: Db, request: Request) -> Response:
    """The text of a sampling job while it is generated.

    Sends `event: token` with {prompt, text} for each piece and `event: end` with the job's state.
    Text generated before the request is repeated first; the job's result has the whole text.
    """
    state = request.app.state
    with db.read() as session:
        row = jobs.get(session, job)
        address = jobs.token_socket(row, state.settings.paths)
    if len(state.token_streams) >= MAX_TOKEN_STREAMS:
        many = f"{MAX_TOKEN_STREAMS} token streams are open already."
        raise Busy(many, headers={"Retry-After": "5"})
    return TokenStream(state.stream, address, lambda: _ended(db, job), state.token_streams)


@router.get(
    "/jobs/{job}/logs",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}} | problems(404),
)
def show_log(
    job: JobRef,
    db: Db,
    conf: Conf,
    tail: Annotated[
        int, Query(ge=1, le=10_000, description="Number of lines, counted from the end.")
    ] = 200,
) -> Response:
    """The log of a job's process, control bytes escaped. Empty for a job inside the trainer."""
    with db.read() as session:
        row = jobs.get(session, job)
    text = logs.tail(conf.paths.job(row.id) / LOG, tail).text
    return Response(text, media_type="text/plain")


@router.get(
    "/jobs/{job}/files/{name:path}",
    response_class=Response,
    responses=file_answers(FILES) | problems(404, 416),
)
def download(request: Request, job: JobRef, name: str, db: Db) -> Response:
    """Download a file of an export, as listed in `result.files`; Range resumes a download."""
    with db.read() as session:
        path = downloads.path_of_export(jobs.get(session, job), name)
    last = name.rpartition("/")[2]
    return send_file(
        request,
        downloads.opened(path),
        media_type="application/octet-stream",
        etag=None,
        headers={"Content-Disposition": f'attachment; filename="{header_name(last)}"'},
    )


@router.delete(
    "/jobs/{job}",
    status_code=202,
    responses={200: {"model": JobView, "description": "The job has already ended."}}
    | problems(404),
)
def cancel(job: JobRef, act: Doing, response: Response) -> JobView:
    """Cancel a job."""
    with act.db.write() as session:
        row = jobs.get(session, job)
        response.status_code = 202 if jobs.cancel(row) else 200
        session.flush()
        return job_views.job(session, row)


ACCEPTED = {"status_code": 202, "response_model": JobView}


@router.post("/runs/{run}/evaluations", responses=LOCATION | problems(404, 409), **ACCEPTED)
def evaluate(run: RunRef, act: Doing, body: EvaluateParams | None = None) -> Response:
    """Measure val bpb or CORE of the current weights or of a checkpoint."""
    ask = body or EvaluateParams()
    return _of_run(act, run, lambda session, row: jobs.evaluate(session, row, ask, act.now))


@router.post("/runs/{run}/samples", responses=LOCATION | problems(404, 409), **ACCEPTED)
def sample(run: RunRef, body: SampleParams, act: Doing) -> Response:
    """Continue prompts with the weights of a checkpoint."""
    return _of_run(act, run, lambda session, row: jobs.sample(session, row, body, act.now))


@router.post("/runs/{run}/exports", responses=LOCATION | problems(404, 409), **ACCEPTED)
def export(run: RunRef, act: Doing, body: ExportParams | None = None) -> Response:
    """Write a checkpoint in another format."""
    ask = body or ExportParams()
    return _of_run(act, run, lambda session, row: jobs.export(session, row, ask, act.now))


@router.post("/runs/{run}/audits", responses=LOCATION | problems(404, 409), **ACCEPTED)
def audit(run: RunRef, act: Doing, body: AuditParams | None = None) -> Response:
    """Repeat recorded steps from a checkpoint and compare their losses bit for bit."""
    ask = body or AuditParams()
    return _of_run(act, run, lambda session, row: jobs.audit(session, row, ask, act.now))


@router.post("/imports", responses=LOCATION | problems(409), **ACCEPTED)
def import_run(body: ImportParams, act: Doing) -> Response:
    """Import a nanochat checkpoint as a run with a finished phase."""
    return act.once(lambda session: accepted(session, jobs.import_run(session, body, act.now)))


def _ended(db: Database, job: str) -> str | None:
    """The state of a job that has ended; a job deleted with its run counts as ended."""
    with db.read() as session:
        row = session.get(tables.Job, job)
        state = row.state if row is not None else "cancelled"
    return state if state in jobs.OVER else None


def accepted(session: Session, job: tables.Job) -> StoredAnswer:
    """The 202 response: the job, and its URL in Location."""
    session.flush()
    return StoredAnswer.of(job_views.job(session, job), 202, Location=f"/v1/jobs/{job.id}")


def _of_run(act: Act, run: str, ask: Callable[[Session, tables.Run], tables.Job]) -> Response:
    return act.once(
        lambda session: accepted(session, ask(session, run_views.get_run(session, run)))
    )
