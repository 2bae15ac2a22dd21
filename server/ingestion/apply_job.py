"""Applies each record of a job to the rows, within the transaction of ingest."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from trainer.contract import events


def take(session: Session, job: tables.Job, event: events.AnyEvent, seconds: float) -> None:
    """Apply one record, in the order of the journal; kinds that mean nothing for a job pass."""
    match event:
        case events.Started():
            job.pid, job.boot_id, job.start_ticks = event.pid, event.boot_id, event.start_ticks
            job.started_at = job.started_at or seconds
        case events.Stage():
            job.stage, job.stage_detail = event.stage, event.detail
            job.fraction = event.fraction
        case events.Evaluation():
            _evaluation(session, job, event, seconds)
        case events.Sample():
            _sample(session, job, event, seconds)
        case events.Notice():
            _say(session, job, event.code[:32], event.level, event.message, seconds, event.data)
        case events.Ended():
            # The job is over when its process is gone: the supervisor says so then.
            job.message = event.message
            if event.outcome == "completed":
                job.result, job.fraction = event.result, 1.0


def gap(session: Session, job: tables.Job, why: str, record: dict[str, Any]) -> None:
    message = f"a record of the job's report could not be used: {why}"
    _say(session, job, "report_gap", "warning", message, job.created_at, record)


def stop(session: Session, job: tables.Job, problem: str) -> None:
    message = f"the report of job {job.id} ends here: {problem}"
    _say(session, job, "report_gap", "error", message, job.created_at, {"problem": problem})


def _evaluation(
    session: Session, job: tables.Job, event: events.Evaluation, seconds: float
) -> None:
    if job.run_id is None:
        return
    checkpoint = _checkpoint(session, job.run_id, event.checkpoint)
    if checkpoint is not None and event.evaluation == "bpb":
        checkpoint.val_bpb = event.value
    session.add(
        tables.Evaluation(
            run_id=job.run_id,
            attempt_id=checkpoint.attempt_id if checkpoint else None,
            job_id=job.id,
            kind=event.evaluation,
            step=event.step,
            value=event.value,
            identity=event.identity,
            settings=event.settings,
            result=event.result,
            seconds=event.seconds,
            unix_seconds=seconds,
            superseded=checkpoint.superseded if checkpoint else False,
        )
    )


def _sample(session: Session, job: tables.Job, event: events.Sample, seconds: float) -> None:
    if job.run_id is None:
        return
    session.add(
        tables.Sample(
            run_id=job.run_id,
            job_id=job.id,
            step=event.step,
            prompt=event.prompt,
            text=event.text,
            settings={
                "temperature": event.temperature, "top_k": event.top_k, "seed": event.seed,
            },
            unix_seconds=seconds,
        )
    )  # fmt: skip


def _checkpoint(session: Session, run_id: str, name: str | None) -> tables.Checkpoint | None:
    table = tables.Checkpoint
    return session.scalar(select(table).where(table.run_id == run_id, table.name == name))


def _say(
    session: Session,
    job: tables.Job,
    kind: str,
    level: str,
    message: str,
    seconds: float,
    data: dict[str, Any],
) -> None:
    session.add(
        tables.Event(
            run_id=job.run_id,
            job_id=job.id,
            kind=kind,
            level=level,
            message=message,
            data=data,
            unix_seconds=seconds,
        )
    )
