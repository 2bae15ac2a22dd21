"""Creates a run from the result of an import job: completed, one finished phase, attempt 0."""

from __future__ import annotations

import json
import shutil
import time

from sqlalchemy.orm import Session

from server.database import tables
from server.domain import events, executions, states
from server.domain.run_rows import first_phase, new_run, plan_for, require_free
from server.domain.states import Desired, State
from trainer.contract.durable import move_durably, write_durably
from trainer.contract.jobs import ImportParams, ImportResult
from trainer.contract.plan import PlanContext
from trainer.contract.reasons import Reason
from trainer.contract.rundir import DataDir
from trainer.contract.spec import resolve

STAGING = "import"  # in the job's directory, where the job has laid the run out


def makes_a_run(job: tables.Job) -> bool:
    """True if an import creates a run: a listing and a dry run do not."""
    return ImportParams.model_validate(job.params).makes_a_run


def adopt(session: Session, job: tables.Job, paths: DataDir) -> tables.Run:
    """Create the rows of a finished import and move its directory into place.

    The id follows from the job's, so that a kill between the move and the commit is healed by
    doing it again. Raises NameTaken, Invalid, ValueError.
    """
    run_id = f"run_{job.id.removeprefix('job_')}"
    params = ImportParams.model_validate(job.params)
    result = ImportResult.model_validate(job.result)
    run = import_run(
        session, params, result, now=time.time(), run_id=run_id, job_id=job.id,
        context=PlanContext(device_type="cpu"),
    )  # fmt: skip
    target, staging = paths.run(run_id), paths.job(job.id) / STAGING
    if staging.exists():
        move_durably(staging, target.root)
    write_durably(target.spec, json.dumps(run.spec).encode())
    write_durably(target.plan, json.dumps(run.plan).encode())
    job.result = {**(job.result or {}), "run_id": run.id, "run": run.name}
    return run


def discard(job: tables.Job, paths: DataDir) -> None:
    """Remove the files of a failed import."""
    shutil.rmtree(paths.job(job.id) / STAGING, ignore_errors=True)


def import_run(
    session: Session,
    params: ImportParams,
    result: ImportResult,
    *,
    now: float,
    run_id: str | None = None,
    job_id: str | None = None,
    context: PlanContext | None = None,
) -> tables.Run:
    """Create the rows of an imported model, which can be extended immediately.

    run_id: the id whose directory the job wrote the checkpoint into. Raises NameTaken, Invalid,
    pydantic.ValidationError for a spec that is none of ours.
    """
    spec = resolve({**result.spec, "name": params.name or result.spec.get("name")})
    plan = plan_for(spec, context)
    require_free(session, spec.name)
    run = new_run(session, spec, plan, now, run_id)
    phase = first_phase(session, run, plan, now)
    phase.imported, phase.name = True, "imported"
    phase.ended_at_step, phase.started_at, phase.ended_at = result.step, now, now
    attempt = _attempt(run, result, now)
    session.add(attempt)
    session.flush()
    _checkpoint_and_evaluation(session, run, attempt, result, job_id, now)
    run.desired_state, run.started_at = Desired.running, now
    states.move(
        session, run, State.completed, Reason.finished, "It was imported.", now=now, is_found=True
    )
    run.step = run.end_step = result.step
    run.tokens_seen = result.tokens
    run.progress = {"val_bpb": result.val_bpb} if result.val_bpb is not None else {}
    run.totals = {"imported": result.history}
    events.record(
        session, "imported", _message(params, result), run_id=run.id, job_id=job_id,
        step=result.step, data=result.history, now=now,
    )  # fmt: skip
    session.flush()
    return run


def _message(params: ImportParams, result: ImportResult) -> str:
    """Where the run came from, and what is not exact about it."""
    tag = result.history.get("tag") or params.tag
    weights = "weights of " if result.history.get("weights_only") else ""
    inexact = result.history.get("inexact") or []
    said = f"imported {weights}{params.path} ({tag}, step {result.step:,})"
    return "; ".join([said, *inexact])


def _attempt(run: tables.Run, result: ImportResult, now: float) -> tables.Attempt:
    return tables.Attempt(
        execution=executions.of_import(
            run.id, now=now, started_at=now, ended_at=now, message="Imported."
        ),
        run_id=run.id,
        number=0,
        phase_index=0,
        device="import",
        start_step=result.step,
    )


def _checkpoint_and_evaluation(
    session: Session,
    run: tables.Run,
    attempt: tables.Attempt,
    result: ImportResult,
    job_id: str | None,
    now: float,
) -> None:
    saved = result.checkpoint
    session.add(
        tables.Checkpoint(
            run_id=run.id,
            attempt_id=attempt.id,
            name=saved.name,
            step=saved.step,
            bytes=saved.bytes,
            manifest_sha256=saved.manifest_sha256,
            why="import",
            pinned=True,
            val_bpb=result.val_bpb,
            created_at=now,
        )
    )
    if result.val_bpb is not None:
        session.add(
            tables.Evaluation(
                run_id=run.id,
                attempt_id=attempt.id,
                job_id=job_id,
                kind="bpb",
                step=result.step,
                value=result.val_bpb,
                identity=result.bpb_identity or "imported",
                settings=result.bpb_settings,
                result={},
                seconds=0.0,
                unix_seconds=now,
            )
        )
