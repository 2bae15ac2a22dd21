"""Routes of a run's history: phases, attempts, evaluations, samples, logs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.responses import Response

from server.api.deps import MAX_ID, Conf, Db, RunRef, StrictRoute, Superseded
from server.api.openapi import problems
from server.queries import history, logs, run_views
from server.queries import ranks as rank_rows
from server.schemas.evaluations import EvaluationView, SampleView
from server.schemas.page import Page
from server.schemas.phases import AttemptView, PhaseView
from server.schemas.progress import RankView
from trainer.contract.spec import MAX_RANKS

router = APIRouter(prefix="/v1/runs/{run}", tags=["history"], route_class=StrictRoute)


@router.get("/phases", responses=problems(404))
def phases(run: RunRef, db: Db) -> Page[PhaseView]:
    """Phases of a run, each with its schedule and its result."""
    with db.read() as session:
        return complete_page(history.phases(session, run_views.get_run(session, run)))


@router.get("/attempts", responses=problems(404))
def attempts(run: RunRef, db: Db) -> Page[AttemptView]:
    """Attempts of a run: its trainer processes, how each ended, and the last lines of its log."""
    with db.read() as session:
        return complete_page(history.attempts(session, run_views.get_run(session, run)))


@router.get("/ranks", responses=problems(404))
def ranks(run: RunRef, db: Db) -> Page[RankView]:
    """Ranks (processes) of a run on several devices, reported every 30 s; empty for a run on
    one."""
    with db.read() as session:
        return complete_page(rank_rows.rows(run_views.get_run(session, run)))


@router.get("/evaluations", responses=problems(404))
def evaluations(run: RunRef, db: Db, superseded: Superseded = False) -> Page[EvaluationView]:
    """Evaluations of a run: val bpb and CORE by step."""
    with db.read() as session:
        row = run_views.get_run(session, run)
        return complete_page(history.evaluations(session, row, superseded=superseded))


@router.get("/samples", responses=problems(404))
def samples(run: RunRef, db: Db, superseded: Superseded = False) -> Page[SampleView]:
    """Samples of a run: text continued from its prompts, by step."""
    with db.read() as session:
        return complete_page(
            history.samples(session, run_views.get_run(session, run), superseded=superseded)
        )


@router.get(
    "/logs",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}} | problems(404),
)
def show_logs(
    run: RunRef,
    db: Db,
    conf: Conf,
    attempt: Annotated[
        int | None, Query(ge=0, le=1_000_000, description="Attempt number; the newest by default.")
    ] = None,
    tail: Annotated[
        int, Query(ge=1, le=10_000, description="Number of lines, counted from the end.")
    ] = 200,
    rank: Annotated[
        int, Query(ge=0, lt=MAX_RANKS, description="Rank of a run on several devices.")
    ] = 0,
    offset: Annotated[
        int | None,
        Query(
            ge=0,
            le=MAX_ID,
            description="Return only output after this offset (Traind-Next-Offset of a response).",
        ),
    ] = None,
) -> Response:
    """The trainer's log, control bytes escaped. The header Traind-Attempt has the attempt
    number."""
    with db.read() as session:
        row = run_views.get_run(session, run)
        number, path = logs.of_attempt(session, conf.paths, row, attempt, rank)
    part = logs.tail(path, tail) if offset is None else logs.after(path, offset)
    headers = {"Traind-Attempt": str(number), "Traind-Next-Offset": str(part.next_offset)}
    return Response(part.text, headers=headers, media_type="text/plain")


def complete_page(items: list) -> Page:
    """A page that holds the complete list."""
    return Page(data=items, has_more=False, next=None)
