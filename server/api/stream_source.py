"""Source of the live stream: reads events and progress from the database in short sessions."""

from __future__ import annotations

import time

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from server.database.db import Database
from server.domain.states import SETTLED, State
from server.events.hub import BufferedEvent, EventSource, frame_of
from server.queries import eta, event_views
from server.queries.condition import condition
from server.queries.latest import Latest, latest
from trainer.contract.evaluations import KIND_OF_METRIC

MAX_LIVE_RUNS = 100
WITH_A_PROCESS = (
    State.preparing, State.starting, State.running, State.recovering, State.pausing,
    State.cancelling,
)  # fmt: skip


def source_of(db: Database) -> EventSource:
    versions: dict[str, tuple[object, ...]] = {}
    rendered: dict[str, str] = {}

    def events(after: int, run_id: str | None, limit: int) -> list[BufferedEvent]:
        with db.read() as session:
            found = event_views.events_after(session, run_id, after, limit)
        return [
            BufferedEvent(e.id, e.run, frame_of(e.kind, e.model_dump_json(), e.id)) for e in found
        ]

    def newest() -> int:
        with db.read() as session:
            return event_views.newest_event_id(session)

    def progress(run_ids: set[str] | None) -> dict[str, str | None]:
        """Progress of the runs that changed since the last call."""
        with db.read() as session:
            rows = _rows(session, run_ids)
            answer: dict[str, str | None] = dict.fromkeys(run_ids or ())
            for run in rows:
                stands = latest(session, run.id) if run.state in WITH_A_PROCESS else None
                version = _version(session, run, stands)
                if versions.get(run.id) != version or run.id not in rendered:
                    view = eta.progress(session, run, stands=stands)
                    rendered[run.id], versions[run.id] = view.model_dump_json(), version
                answer[run.id] = rendered[run.id]
        for gone in rendered.keys() - {run.id for run in rows}:
            if run_ids is None or gone in run_ids:
                del rendered[gone]
                versions.pop(gone, None)
        return answer

    return EventSource(events, newest, progress)


def _version(session: Session, run: tables.Run, stands: Latest | None) -> tuple[object, ...]:
    """Everything visible that may change. Of a condition only its kind: its age, which counts up,
    is left to the client."""
    attempt = stands.attempt if stands is not None else None
    now = condition(session.info["paths"].run(run.id), run, attempt, time.time())
    of_run = (run.version, run.step, run.last_step_at, run.state, run.reason_message)
    of_run = (*of_run, now and now.code)
    if stands is None:
        return of_run
    saved, view = stands.checkpoint, run.progress
    return (
        *of_run,
        attempt and (attempt.number, attempt.stage, attempt.stage_detail, attempt.stage_fraction),
        saved and saved.name,
        (*map(view.get, KIND_OF_METRIC), run.exact_resume),
    )


def _rows(session: Session, run_ids: set[str] | None) -> list[tables.Run]:
    run = tables.Run
    if run_ids is not None:
        query = select(run).where(run.id.in_(run_ids))
    else:  # runs with a process first: they have no position in the queue
        active = select(run).where(run.state.not_in(SETTLED))
        query = active.order_by(run.queue_rank, run.queue_position).limit(MAX_LIVE_RUNS)
    return list(session.scalars(query))
