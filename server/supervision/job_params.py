"""Resolves a job's parameters at its start: names become checkpoints.

A job may start hours after its request; the newest checkpoint is determined at its start.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from server.domain import checkpoint_lookup, lineage
from server.domain.attempts import build_order
from server.settings import Settings
from trainer.contract import holds
from trainer.contract.jobs import ServeParams
from trainer.contract.rundir import DataDir


class Unresolvable(Exception):
    """The job cannot be started; the message has the cause."""


def resolve(session: Session, job: tables.Job, settings: Settings) -> dict[str, Any]:
    """The job's parameters with checkpoint, schedule and places filled in. Raises Unresolvable."""
    params = dict(job.params)
    run = session.get(tables.Run, job.run_id) if job.run_id else None
    if job.kind == "prepare":
        return {**params, "tokenizer_run_id": _tokenizer_run(session, params)}
    if job.kind == "serve":  # a process silent for three times as long counts as hung
        often = min(ServeParams().report_seconds, settings.stall_seconds)
        return {**params, "report_seconds": often}
    if run is None or job.kind not in ("sample", "evaluate", "export", "audit"):
        return params
    if job.kind == "audit":
        return params | _for_audit(session, run, params, settings, job.id)
    chosen = _checkpoint(session, run, params, job.id)
    params["checkpoint"] = chosen.name
    if job.kind == "export":
        params |= _for_export(session, run, chosen, settings.paths, job)
    return params


def _for_audit(
    session: Session, run: tables.Run, params: dict[str, Any], settings: Settings, job_id: str
) -> dict[str, Any]:
    """Checkpoint, and order of the attempt that did the steps after it. Without a name: the newest
    checkpoint followed by the requested number of recorded steps, or else by any."""
    is_named = params.get("checkpoint") is not None or params.get("step") is not None
    usable = (
        [_checkpoint(session, run, params, job_id)]
        if is_named
        else checkpoint_lookup.usable(session, run.id)
    )
    device = params.get("device")
    found = lineage.recorded_steps(session, run.id, usable, params["steps"], device)
    if found is None:
        where = usable[0].name if is_named else f"any checkpoint of run {run.name}"
        on = f" on {device}" if device else ""
        raise Unresolvable(f"no step was recorded{on} after {where}")
    steps, chosen, attempt = found
    _hold(session, chosen, job_id)
    order = build_order(session, run, attempt, settings).model_dump(mode="json")
    return {"checkpoint": chosen.name, "steps": steps, "order": order}


def _checkpoint(
    session: Session, run: tables.Run, params: dict[str, Any], job_id: str
) -> tables.Checkpoint:
    """The named checkpoint, the one at the step, or the newest usable one of the lineage."""
    name, step = params.get("checkpoint"), params.get("step")
    if name is None and step is None:
        usable = checkpoint_lookup.usable(session, run.id)
        if usable:
            return next((one for one in usable if _hold(session, one, job_id)), usable[0])
        raise Unresolvable(f"run {run.name} has no checkpoint")
    found = checkpoint_lookup.named(session, run.id, name, step)
    if found is None:
        raise Unresolvable(f"run {run.name} no longer has {name or f'a checkpoint at {step}'}")
    _hold(session, found, job_id)
    return found


def _hold(session: Session, checkpoint: tables.Checkpoint, job_id: str) -> bool:
    """Hold the checkpoint until the job has read it. False if it no longer exists."""
    directory = session.info["paths"].run(checkpoint.run_id).checkpoints
    return holds.hold(directory, checkpoint.name, job_id)


def _for_export(
    session: Session, run: tables.Run, chosen: tables.Checkpoint, paths: DataDir, job: tables.Job
) -> dict[str, Any]:
    """Export parameters: schedule of the checkpoint's last step, horizon, and target directory."""
    phases = lineage.phases(session, run.id)
    phase = next((p for p in reversed(phases) if p.start_step < chosen.step), phases[0])
    target = paths.root / "exports" / f"{run.name}-{chosen.step:09d}-{job.params['format']}"
    target.parent.mkdir(parents=True, exist_ok=True)
    return {
        "directory": str(target),
        "schedule": phase.schedule,
        "horizon_steps": phase.end_step,
    }


def _tokenizer_run(session: Session, params: dict[str, Any]) -> str | None:
    """The id of the run whose tokenizer the spec names."""
    asked = params["spec"]["data"]["tokenizer"].get("run")
    if not asked:
        return None
    table = tables.Run
    found = session.scalar(select(table.id).where((table.name == asked) | (table.id == asked)))
    if found is None:
        raise Unresolvable(f"data.tokenizer.run: no run is named {asked}")
    return found
