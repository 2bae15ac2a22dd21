"""History of a run: phases, attempts, checkpoints, evaluations, samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from server.database import tables
from server.domain import checkpoint_lookup, gang, lineage
from server.errors import NotFound
from server.schemas.checkpoints import CheckpointView
from server.schemas.evaluations import EvaluationView, SampleView
from server.schemas.phases import AttemptView, PhaseView
from trainer.contract.evaluations import BY_KIND
from trainer.contract.extend import Joint
from trainer.contract.reasons import Reason
from trainer.contract.schedule import PhaseSchedule, weight_decay_multiplier


def phases(session: Session, run: tables.Run, *, superseded: bool = True) -> list[PhaseView]:
    """Phases of a run, in order; superseded ones are marked."""
    table = tables.Phase
    rows = session.scalars(select(table).where(table.run_id == run.id).order_by(table.index))
    return [_phase(run, p) for p in rows if superseded or lineage.is_current(p)]


def attempts(session: Session, run: tables.Run) -> list[AttemptView]:
    table = tables.Attempt
    rows = session.scalars(select(table).where(table.run_id == run.id).order_by(table.number))
    return [_attempt(row) for row in rows]


def checkpoints(
    session: Session, run: tables.Run, *, superseded: bool = False
) -> list[CheckpointView]:
    """Checkpoints that exist, newest first."""
    return _checkpoints(
        session, run, checkpoint_lookup.existing(session, run.id, superseded=superseded)
    )


def checkpoint(session: Session, run: tables.Run, name: str) -> CheckpointView:
    """A checkpoint by its name, with its files. Raises NotFound."""
    found = checkpoint_lookup.existing_by_name(session, run.id, name)
    if found is None:
        raise NotFound(f"Run {run.name} has no checkpoint {name[:80]!r}.")
    view = _checkpoints(session, run, [found])[0]
    return view.model_copy(update={"files": _files(session, run, name)})


def evaluations(
    session: Session, run: tables.Run, *, superseded: bool = False
) -> list[EvaluationView]:
    """Evaluations, in order of steps. best: the best of its kind and identity."""
    table = tables.Evaluation
    rows = _owned(session, table, run.id, superseded)
    best: dict[tuple[str, str], tuple[float, int]] = {}
    for row, _ in rows:
        if not row.superseded:
            score = BY_KIND[row.kind].score(row.value)
            key = (row.kind, row.identity)
            best[key] = min(best.get(key, (score, row.id)), (score, row.id))
    winners = {row_id for _, row_id in best.values()}
    return [_evaluation(row, number, row.id in winners) for row, number in rows]


def samples(session: Session, run: tables.Run, *, superseded: bool = False) -> list[SampleView]:
    table = tables.Sample
    rows = _owned(session, table, run.id, superseded)
    return [
        SampleView(
            id=row.id,
            step=row.step,
            prompt=row.prompt,
            text=row.text,
            settings=row.settings,
            unix_seconds=row.unix_seconds,
            job=row.job_id,
            superseded=row.superseded,
        )
        for row, _ in rows
    ]


# --- one row -------------------------------------------------------------------------------------


def _owned(session: Session, table: type[Any], run_id: str, superseded: bool) -> list[Any]:
    """[row, number of its attempt], in order of steps."""
    query: Select[Any, Any] = (
        select(table, tables.Attempt.number)
        .outerjoin(tables.Attempt, tables.Attempt.id == table.attempt_id)
        .where(table.run_id == run_id)
        .order_by(table.step, table.id)
    )
    if not superseded:
        query = query.where(table.superseded.is_(False))
    return list(session.execute(query).all())


def _phase(run: tables.Run, row: tables.Phase) -> PhaseView:
    end = lineage.phase_end(row)
    return PhaseView(
        index=row.index,
        name=row.name,
        start_step=row.start_step,
        end_step=row.end_step,
        ended_at_step=row.ended_at_step,
        mode=row.schedule["mode"],
        schedule=row.schedule,  # type: ignore[arg-type]
        tokens=(end - row.start_step) * run.batch_tokens,
        joint=_joint(run, row),
        from_checkpoint=row.from_checkpoint,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        imported=row.imported,
        superseded=not lineage.is_current(row),
        lineage_end=end,
    )


def _joint(run: tables.Run, row: tables.Phase) -> Joint | None:
    """The joint as previewed, with weight decay from the schedule, in the unit of the history."""
    kept = (row.preview or {}).get("joint")
    if kept is None:
        return None
    schedule = PhaseSchedule.model_validate(row.schedule)
    after = weight_decay_multiplier(schedule, row.start_step)
    peak = run.plan["hyperparameters"]["weight_decay"]
    return Joint(**{**kept, "weight_decay": (peak * schedule.joint_weight_decay, peak * after)})


def _attempt(row: tables.Attempt) -> AttemptView:
    return AttemptView(
        number=row.number,
        phase_index=row.phase_index,
        started_at=row.started_at,
        ended_at=row.ended_at,
        pid=row.pid,
        device=row.device,
        devices=gang.used_by(row),
        stage=row.stage,
        stage_since=row.stage_since,
        start_step=row.start_step,
        last_step=row.last_step,
        lineage_limit=row.lineage_limit,
        steps_done=row.steps_done,
        steps_lost=row.steps_lost,
        slurm_job=row.handle.get("job"),
        outcome=row.outcome,
        reason=Reason(row.reason) if row.reason else None,
        message=row.message,
        exit_code=row.exit_code,
        log_tail=row.log_tail,
        versions=row.versions,
        fingerprint=row.fingerprint,
        exact_resume=row.exact_resume,
        report_gap=row.outbox_problem,
    )


def _checkpoints(
    session: Session, run: tables.Run, rows: Sequence[tables.Checkpoint]
) -> list[CheckpointView]:
    table, usable = tables.Attempt, checkpoint_lookup.usable(session, run.id)
    query = select(table.id, table.number).where(table.run_id == run.id)
    numbers = {row.id: row.number for row in session.execute(query)}
    newest = usable[0].id if usable else None
    best = found.id if (found := checkpoint_lookup.best(usable)) else None
    return [_checkpoint(row, numbers.get(row.attempt_id), newest, best, []) for row in rows]


def _checkpoint(
    row: tables.Checkpoint,
    attempt: int | None,
    newest: int | None,
    best: int | None,
    files: list[str],
) -> CheckpointView:
    return CheckpointView(
        id=row.name,
        name=row.name,
        step=row.step,
        attempt=attempt,
        bytes=row.bytes,
        manifest_sha256=row.manifest_sha256,
        why=row.why,
        pinned=row.pinned,
        newest=row.id == newest,
        best=row.id == best,
        superseded=row.superseded,
        bad=row.bad,
        val_bpb=row.val_bpb,
        next_loss=row.next_loss,
        save_seconds=row.save_seconds,
        stall_seconds=row.stall_seconds,
        created_at=row.created_at,
        files=files,
    )


def _files(session: Session, run: tables.Run, name: str) -> list[str]:
    """Files in the checkpoint's manifest; empty if the manifest is unreadable."""
    path = session.info["paths"].run(run.id).checkpoints / name / "manifest.json"
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        return sorted([*json.loads(path.read_bytes())["files"], path.name])
    return []


def _evaluation(row: tables.Evaluation, attempt: int | None, is_best: bool) -> EvaluationView:
    return EvaluationView(
        id=row.id,
        kind=row.kind,  # type: ignore[arg-type]
        step=row.step,
        value=row.value,
        identity=row.identity,
        settings=row.settings,
        result=row.result,
        seconds=row.seconds,
        unix_seconds=row.unix_seconds,
        attempt=attempt,
        job=row.job_id,
        best=is_best,
        superseded=row.superseded,
    )
