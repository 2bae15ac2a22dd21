"""Applies the records of a job to the rows, beyond those of every execution."""

from __future__ import annotations

from sqlalchemy.orm import Session

from server.database import tables
from server.domain import checkpoint_lookup
from server.ingestion import applied
from trainer.contract import events


class AppliedJob(applied.Applied):
    """Applies one batch of a job."""

    row: tables.Job

    def __init__(self, session: Session, job: tables.Job) -> None:
        super().__init__(session, job)
        self.job, self.handlers = job, _HANDLERS


def of(session: Session, execution_id: int) -> AppliedJob:
    return AppliedJob(session, session.query(tables.Job).filter_by(execution_id=execution_id).one())


def _evaluation(applied: AppliedJob, event: events.EvaluationResult, seconds: float) -> None:
    job = applied.job
    if job.run_id is None:
        return
    checkpoint = checkpoint_lookup.by_name(applied.session, job.run_id, event.checkpoint)
    if checkpoint is not None and event.evaluation == "bpb":
        checkpoint.val_bpb = event.value
    applied.evaluation(
        event,
        seconds,
        job_id=job.id,
        attempt_id=checkpoint.attempt_id if checkpoint else None,
        superseded=checkpoint.superseded if checkpoint else False,
    )


def _sample(applied: AppliedJob, event: events.SampleResult, seconds: float) -> None:
    if applied.job.run_id is not None:
        applied.sample(event, seconds, job_id=applied.job.id)


def _ended(target: AppliedJob, event: events.Ended, seconds: float) -> None:
    applied.ended(target, event, seconds)
    if event.outcome == "completed":
        target.job.result, target.execution.stage_fraction = event.result, 1.0


_HANDLERS = {
    events.EvaluationResult: _evaluation,
    events.SampleResult: _sample,
    events.Ended: _ended,
}
