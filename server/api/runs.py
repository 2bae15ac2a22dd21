"""Routes of runs: create, list, show, change, delete, and the verbs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Query, Request
from sqlalchemy.orm import Session
from starlette.responses import Response

from server.api import previews
from server.api.deps import Act, Conf, Db, Doing, Limit, RunRef, StrictRoute
from server.api.openapi import problems
from server.database import tables
from server.domain import preflight, run_deletion, runs
from server.domain.states import State
from server.guard.idempotency import StoredAnswer
from server.guard.validation import explained
from server.machine import devices, plan_context
from server.queries import eta, run_views
from server.schemas.page import Page
from server.schemas.progress import Progress
from server.schemas.runs import ExtendAnswer, PatchRun, ResumeRequest, RunDetail, RunSummary
from trainer.contract.extend import ExtendRequest
from trainer.contract.plan import Plan
from trainer.contract.spec import RunSpec

router = APIRouter(prefix="/v1/runs", tags=["runs"], route_class=StrictRoute)
UNCHANGED = {200: {"model": RunDetail, "description": "Already in effect; nothing was changed."}}
Verb = {
    "status_code": 202,
    "response_model": RunDetail,
    "responses": UNCHANGED | problems(404, 409),
}


@router.post(
    "",
    status_code=201,
    response_model=RunDetail,
    responses=problems(409)
    | {201: {"headers": {"Location": {"schema": {"type": "string"}}}, "description": "Created."}},
)
def create(body: Annotated[dict[str, Any], Body()], act: Doing, conf: Conf) -> Response:
    """Create a run from a spec; `{"name": "demo"}` is enough. With `start: false` the run is not
    queued."""

    def effect(session: Session) -> StoredAnswer:
        asked = plan_context.with_bundle(conf, body)
        context = plan_context.context_for(session, conf, asked)
        with explained(body, RunSpec):
            run = runs.create(session, asked, context=context, now=act.now)
        spec, plan = RunSpec.model_validate(run.spec), Plan.model_validate(run.plan)
        preflight.require(session, spec, plan, devices.discover())
        preflight.require_tariff(spec.hours, conf.tariff)
        detail = run_views.detail(session, run)
        return StoredAnswer.of(detail, 201, Location=f"/v1/runs/{run.id}")

    return act.once(effect)


@router.get("")
def index(
    db: Db,
    state: Annotated[
        list[State] | None, Query(description="Return only runs in these states.")
    ] = None,
    after: Annotated[
        str | None, Query(max_length=200, description="Value of `next` of the previous page.")
    ] = None,
    limit: Limit = 50,
    order: Annotated[Literal["newest", "oldest"], Query()] = "newest",
) -> Page[RunSummary]:
    """List runs, page by page."""
    with db.read() as session:
        return run_views.list_runs(session, states=state, after=after, limit=limit, order=order)


@router.get("/{run}", responses=problems(404))
def show(run: RunRef, db: Db) -> RunDetail:
    """A run with its spec and plan."""
    with db.read() as session:
        return run_views.detail(session, run_views.get_run(session, run))


@router.get("/{run}/progress", responses=problems(404))
def progress(run: RunRef, db: Db) -> Progress:
    """Current step, speed and expected end of the run."""
    with db.read() as session:
        return eta.progress(session, run_views.get_run(session, run))


@router.patch("/{run}", responses=problems(404, 409))
def patch(run: RunRef, body: PatchRun, act: Doing, conf: Conf) -> RunDetail:
    """Change settings of a run.

    Name, title, metadata, cadences, retention, recovery, notify, priority, preemptible, hours and
    budget may change; anything else is fixed.
    """
    preflight.require_tariff(body.hours, conf.tariff)
    with act.db.write() as session:
        row = run_views.get_run(session, run)
        with explained(body.model_dump(exclude_unset=True), RunSpec):
            runs.patch(session, row, body, act.now)
        session.flush()
        return run_views.detail(session, row)


@router.delete("/{run}", status_code=204, response_class=Response, responses=problems(404, 409))
def delete(run: RunRef, act: Doing, conf: Conf, request: Request) -> Response:
    """Delete a run that has ended, with its checkpoints and history."""
    if request.app.state.notices is not None:
        request.app.state.notices.take_in(act.now)  # events are deleted, notices are not
    with act.db.write() as session:
        directory = conf.paths.root / runs.delete(session, run_views.get_run(session, run), act.now)
        run_deletion.mark(directory)
    problems = run_deletion.remove_files(directory)
    if problems:
        with act.db.write() as session:
            run_deletion.report(session, directory.name, problems, act.now)
    return Response(status_code=204)


# --- verbs ---------------------------------------------------------------------------------------


@router.post("/{run}/start", **Verb)
def start(run: RunRef, act: Doing) -> Response:
    """Queue a run that was created with `start: false`."""
    return _verb(act, run, lambda session, row: runs.start(session, row, act.now))


@router.post("/{run}/pause", **Verb)
def pause(run: RunRef, act: Doing) -> Response:
    """Save a checkpoint at the next step, end the trainer and free the device."""
    return _verb(
        act, run, lambda session, row: runs.request_pause(session, row, act.now, door=act.door)
    )


@router.post("/{run}/resume", **Verb)
def resume(run: RunRef, act: Doing, body: ResumeRequest | None = None) -> Response:
    """Resume a paused, failed or cancelled run: queue it to continue from its newest checkpoint."""
    ask = body or ResumeRequest()
    return _verb(act, run, lambda session, row: runs.resume(session, row, ask, now=act.now))


@router.post("/{run}/cancel", **Verb)
def cancel(run: RunRef, act: Doing) -> Response:
    """Cancel a run without saving. A resume continues from its newest checkpoint."""
    return _verb(
        act, run, lambda session, row: runs.request_cancel(session, row, act.now, door=act.door)
    )


@router.post(
    "/{run}/extend",
    status_code=202,
    response_model=ExtendAnswer,
    responses={
        200: {"model": ExtendAnswer, "description": "A dry run, or nothing was changed."}
        | previews.OFFERED
    }
    | problems(404, 406, 409),
)
def extend(
    request: Request,
    run: RunRef,
    body: ExtendRequest,
    act: Doing,
    dry_run: Annotated[bool, Query(description="Return the preview and change nothing.")] = False,
) -> Response:
    """Extend a run by a phase. The response has the new curve and its change at the joint.

    A dry run with `Accept: image/svg+xml` or `image/png` returns a picture of both curves.
    """
    picture = previews.picture_type(request, is_offered=dry_run)

    def effect(session: Session) -> StoredAnswer:
        row = run_views.get_run(session, run)
        outcome = runs.extend(session, row, body, act.now, dry_run=dry_run)
        session.flush()
        shown = outcome.preview
        if shown is not None:
            shown = shown.model_copy(update={"eta": eta.of_extend(session, row, shown)})
        answer = extend_answer(run_views.detail(session, row), shown)
        return StoredAnswer.of(answer, 202 if outcome.changed and not dry_run else 200)

    stored = act.once(effect)
    if picture is None:
        return stored
    answer = ExtendAnswer.model_validate_json(bytes(stored.body))
    return previews.picture_response(picture, stored, answer.run.name, answer.plan)


def extend_answer(run: RunDetail, preview: Any) -> ExtendAnswer:
    return ExtendAnswer(
        run=run,
        plan=preview,
        joint=preview and preview.joint,
        discarded_steps=preview.discarded_steps if preview else 0,
        warnings=preview.warnings if preview else [],
    )


def _verb(act: Act, run: str, do: Callable[[Session, tables.Run], bool]) -> Response:
    """Apply a verb: 202 with the run if it changed something, 200 if it was already in effect."""

    def effect(session: Session) -> StoredAnswer:
        row = run_views.get_run(session, run)
        changed = do(session, row)
        session.flush()
        return StoredAnswer.of(run_views.detail(session, row), 202 if changed else 200)

    return act.once(effect)
