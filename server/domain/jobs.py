"""Job requests: validates the parameters and chooses where the job runs soonest."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from server.database import tables
from server.domain import (
    attempts,
    checkpoint_lookup,
    executions,
    lineage,
    request_paths,
    runs,
    states,
)
from server.domain.executions import IS_OPEN, ExecutionState
from server.domain.run_rows import require_free
from server.domain.states import State
from server.errors import Conflict, Invalid, NotFound
from trainer.contract.evaluations import BY_KIND
from trainer.contract.jobs import (
    TOKEN_SOCKET,
    AuditParams,
    EvaluateParams,
    ExportParams,
    ImportParams,
    SampleParams,
    ServeParams,
)
from trainer.contract.rundir import DataDir

MAX_WAITING = 1000
OVER = frozenset({"completed", "failed", "cancelled"})
JobPlace = Literal["inline", "cpu", "device"]


def save(session: Session, run: tables.Run, now: float, *, pin: bool) -> tables.Job:
    """Save a checkpoint at the next step boundary of the running trainer."""
    job = _add(session, "save", run, "inline", {"pin": pin}, now)
    runs.save_checkpoint(session, run, now, pin=pin, job_id=job.id)
    return job


def evaluate(session: Session, run: tables.Run, params: EvaluateParams, now: float) -> tables.Job:
    """Queue an evaluation: inline for the current weights of a running trainer, else on the CPU."""
    if not any(getattr(params, kind) for kind in BY_KIND):
        raise Invalid(f"Nothing to evaluate: set {' or '.join(BY_KIND)}.", errors=_at("/bpb"))
    chosen = params.step is not None or params.checkpoint is not None
    special = params.eval_tokens is not None or params.core_bundle is not None
    where = _place(run, params.where, inline=not chosen and not special)
    if where == "inline":
        if chosen or special:
            raise Invalid(
                "An inline evaluation uses the current weights and the run's own settings.",
                hint="Leave out step, checkpoint, eval_tokens and core_bundle, or use where: cpu.",
                errors=_at("/where"),
            )
        job = _add(session, "evaluate", run, where, _dump(params), now)
        runs.evaluate_inline(session, run, params, now, job_id=job.id)
        return job
    _require_checkpoint(session, run, params.checkpoint, params.step)
    return _add(session, "evaluate", run, where, _dump(params), now)


def sample(session: Session, run: tables.Run, params: SampleParams, now: float) -> tables.Job:
    if params.where == "inline":
        raise Invalid("A sample cannot be generated inline.", errors=_at("/where"))
    _require_checkpoint(session, run, params.checkpoint, params.step)
    return _add(session, "sample", run, _place(run, params.where), _dump(params), now)


def serving(session: Session) -> tables.Job | None:
    """The job that serves completions, running or queued; None without one."""
    table = tables.Job
    query = open_jobs().where(table.kind == "serve", table.cancel_requested.is_(False))
    return session.scalars(query).first()


def serve(session: Session, now: float) -> tables.Job:
    """The job that serves completions; created if there is none."""
    return serving(session) or _add(session, "serve", None, "cpu", _dump(ServeParams()), now)


def export(session: Session, run: tables.Run, params: ExportParams, now: float) -> tables.Job:
    _require_checkpoint(session, run, params.checkpoint, params.step)
    return _add(session, "export", run, "cpu", _dump(params), now)


def audit(session: Session, run: tables.Run, params: AuditParams, now: float) -> tables.Job:
    """Queue an audit on the device that made the steps: another one would compute other bits."""
    _require_checkpoint(session, run, params.checkpoint, params.step)
    device = _device_of_steps(session, run, params) or _device_of(session, run) or "cpu"
    where: JobPlace = "cpu" if device == "cpu" else "device"
    return _add(session, "audit", run, where, {**_dump(params), "device": device}, now)


def _device_of_steps(session: Session, run: tables.Run, params: AuditParams) -> str | None:
    """The device of the steps that an audit would repeat now."""
    if params.checkpoint is None and params.step is None:
        usable = checkpoint_lookup.usable(session, run.id)
    else:
        named = checkpoint_lookup.named(session, run.id, params.checkpoint, params.step)
        usable = [named] if named is not None else []
    found = lineage.recorded_steps(session, run.id, usable, params.steps)
    return found[2].device if found is not None else None


def _device_of(session: Session, run: tables.Run) -> str | None:
    """The device on which the run was trained last."""
    last = attempts.last_attempt(session, run.id)
    return last.device if last is not None else None


def import_run(session: Session, params: ImportParams, now: float) -> tables.Job:
    """Queue an import after checks that do not read the files; the job reads them. Raises
    NameTaken."""
    if params.name is not None:
        require_free(session, params.name)
    for field in ("path", "corpus", "tokenizer"):
        given = getattr(params, field)
        if given is not None:
            _require_folder(field, given)
    return _add(session, "import", None, "cpu", _dump(params), now)


def _require_folder(field: str, path: str) -> None:
    place, why = request_paths.found(path)
    if place is None:
        raise Invalid(why, errors=_at(f"/{field}"))
    if not place.is_dir():
        raise Invalid(f"{path} is not a directory.", errors=_at(f"/{field}"))


def cancel(job: tables.Job) -> bool:
    """Cancel a job; False if it has ended or was cancelled before."""
    if job.is_over or job.cancel_requested:
        return False
    job.cancel_requested = True
    return True


def open_jobs() -> Select[Any]:
    """Jobs that wait or run."""
    row = tables.Execution
    return select(tables.Job).join(row, row.id == tables.Job.execution_id).where(IS_OPEN)


def get(session: Session, job_id: str) -> tables.Job:
    job = session.get(tables.Job, job_id)
    if job is None:
        raise NotFound(f"There is no job {job_id}.", hint="GET /v1/jobs lists them.")
    return job


def token_socket(job: tables.Job, paths: DataDir) -> Path:
    """Path of the socket that streams a job's text. Raises Conflict."""
    if job.kind != "sample":
        raise Conflict(f"a job of kind {job.kind} generates no text", state=job.state)
    if job.state in OVER:
        raise Conflict(
            f"job {job.id} has ended and generates no more text",
            hint=f"GET /v1/jobs/{job.id} has the whole text as its result.",
            state=job.state,
        )
    return paths.job(job.id) / TOKEN_SOCKET


def _place(run: tables.Run, asked: str, *, inline: bool = False) -> JobPlace:
    if asked == "auto":
        return "inline" if inline and run.state == State.running else "cpu"
    return asked  # type: ignore[return-value]


def _require_checkpoint(
    session: Session, run: tables.Run, name: str | None, step: int | None
) -> None:
    """Raises Invalid when both are given or it is not there, Conflict when there is none yet."""
    if name is not None and step is not None:
        raise Invalid("Give step or checkpoint, not both.", errors=_at("/checkpoint"))
    usable = checkpoint_lookup.of_any_lineage(session, run.id)
    if not usable:
        raise Conflict(
            f"run {run.name} has no checkpoint yet",
            hint="POST …/checkpoints saves one while it is running.",
            state=run.state,
        )
    if any((name or c.name, c.step if step is None else step) == (c.name, c.step) for c in usable):
        return
    there = ", ".join(f"{c.name}" for c in usable[:5])
    raise Invalid(
        f"run {run.name} has no usable checkpoint {name or f'at step {step}'}",
        hint=f"The newest are {there}.",
        errors=_at("/checkpoint" if name else "/step"),
    )


def _add(
    session: Session,
    kind: str,
    run: tables.Run | None,
    where: JobPlace,
    params: dict[str, object],
    now: float,
) -> tables.Job:
    row = tables.Execution
    waiting = select(row.id).where(row.state == ExecutionState.queued).limit(MAX_WAITING)
    if len(session.scalars(waiting).all()) >= MAX_WAITING:
        raise Conflict(f"{MAX_WAITING} jobs are waiting already", hint="Cancel some, or wait.")
    if where == "device" and run is not None and "device" not in params:
        trained_on = _device_of(session, run)
        params |= {"device": trained_on} if trained_on not in (None, "cpu") else {}
    message = _wait(session, params.get("device")) if where == "device" else ""
    return new_job(session, kind, run, where, params, now, message)


def new_job(
    session: Session,
    kind: str,
    run: tables.Run | None,
    where: JobPlace,
    params: dict[str, Any],
    now: float,
    message: str = "",
) -> tables.Job:
    """Create the rows of a queued job."""
    job_id = f"job_{secrets.token_hex(8)}"
    place = str(params.get("device") or where) if where == "device" else where
    job = tables.Job(
        id=job_id,
        execution=executions.of_job(job_id, place=place, now=now, message=message),
        run_id=run.id if run else None,
        kind=kind,
        where=where,
        params=params,
    )
    session.add(job)
    session.flush()
    return job


def _wait(session: Session, device: object) -> str:
    """The wait of a job for the device, reported when it is queued."""
    for busy in session.scalars(select(tables.Run).where(tables.Run.state.in_(states.OCCUPYING))):
        if device in (None, _device_of(session, busy)):
            left = f"{busy.end_step - busy.step:,} steps to go"
            where = device or "the device"
            return f"waits for {where}, where run {busy.name} is {busy.state} ({left})"
    return ""


def _dump(params: BaseModel) -> dict[str, object]:
    return params.model_dump(mode="json")


def _at(pointer: str) -> list[dict[str, str]]:
    return [{"pointer": pointer, "detail": "see the detail"}]
