"""Statistics of each phase, computed from rollups."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.orm import Session

from server.database import tables
from server.domain import lineage
from server.domain.lineage import Stretch
from server.metrics import rollups
from server.reporting.answer import CoreScore, PhaseReport
from server.schemas.checkpoints import CheckpointView
from server.schemas.evaluations import EvaluationView
from server.schemas.phases import PhaseView
from trainer.contract.plan import Plan
from trainer.contract.schedule import PhaseSchedule, lr_multiplier
from trainer.contract.spec import MAX_STEPS

LOSS_STEPS = 500  # the loss at a phase's start and end: the mean of this many steps, or a tenth
HIGHLIGHTS = ("hellaswag", "winograd", "piqa", "boolq", "copa")


@dataclass(frozen=True)
class Sums:
    """Over some steps of the lineage: how many, seconds of training, loss, watts, bytes."""

    steps: int = 0
    seconds: float = 0.0
    loss: float | None = None
    lowest: float | None = None
    watts: float | None = None
    vram: int | None = None


def sums(session: Session, stretches: list[Stretch], low: int = 0, high: int = MAX_STEPS) -> Sums:
    """Sums over the points of the stretches in steps [low, high)."""
    keys = ("step_seconds", "loss", "power_watts", "vram_reserved_bytes")
    total = [[0.0, 0.0, float("inf"), float("-inf")] for _ in keys]
    for s in stretches:
        first, last = max(s.low, low), min(s.high, high)
        for part in rollups.read(session.connection(), s.attempt_id, first, last, MAX_STEPS, keys):
            for at, sum_ in enumerate(total):
                count, added, least, most = part.stats[4 * at : 4 * at + 4]
                if count:
                    sum_[0] += count
                    sum_[1] += added
                    sum_[2], sum_[3] = min(sum_[2], least), max(sum_[3], most)
    seconds, loss, watts, vram = total
    return Sums(
        steps=int(seconds[0]),
        seconds=seconds[1],
        loss=loss[1] / loss[0] if loss[0] else None,
        lowest=loss[2] if loss[0] else None,
        watts=watts[1] / watts[0] if watts[0] else None,
        vram=int(vram[3]) if vram[0] else None,
    )


def reports(
    session: Session,
    run: tables.Run,
    plan: Plan,
    evaluations: list[EvaluationView],
    checkpoints: list[CheckpointView],
    views: list[PhaseView],
    peak: float | None,
    now: float,
) -> list[PhaseReport]:
    """The phases of the present lineage, in order."""
    stretches = lineage.stretches(session, run.id)
    rows = {phase.index: phase for phase in lineage.phases(session, run.id)}
    return [
        _report(session, run, plan, rows[view.index], view, stretches, evaluations, checkpoints,
                peak, now)
        for view in views
    ]  # fmt: skip


def _report(
    session: Session,
    run: tables.Run,
    plan: Plan,
    row: tables.Phase,
    view: PhaseView,
    stretches: list[Stretch],
    evaluations: list[EvaluationView],
    checkpoints: list[CheckpointView],
    peak: float | None,
    now: float,
) -> PhaseReport:
    low, high = view.start_step, view.lineage_end
    own = sums(session, stretches, low, high)
    reached = max(low, min(high, run.step))
    near = max(1, min(LOSS_STEPS, own.steps // 10))
    rate = own.steps * run.batch_tokens / own.seconds if own.seconds else None
    schedule = PhaseSchedule.model_validate(view.schedule)
    bpb = _last(evaluations, "bpb", low, high)
    core = _last(evaluations, "core", low, high)
    kept = [c for c in checkpoints if low < c.step <= high and not c.superseded]
    return PhaseReport(
        index=view.index,
        name=view.name,
        mode=view.mode,
        start_step=low,
        planned_end_step=view.end_step,
        end_step=high,
        steps_done=reached - low,
        tokens=(reached - low) * run.batch_tokens,
        training_seconds=own.seconds,
        wall_seconds=_wall(run, view, now),
        loss_start=sums(session, stretches, low, low + near).loss,
        loss_end=sums(session, stretches, reached - near, reached).loss,
        loss_lowest=own.lowest,
        lr_start=lr_multiplier(schedule, low),
        lr_end=lr_multiplier(schedule, max(low, reached - 1)),
        warmdown_start=schedule.warmdown_start,
        val_bpb=bpb.value if bpb else None,
        val_bpb_step=bpb.step if bpb else None,
        core=_core(core) if core else None,
        tokens_per_second=rate,
        step_seconds=own.seconds / own.steps if own.steps else None,
        mfu=rate * plan.horizon.flops_per_token / peak if rate and peak else None,
        mfu_causal=rate * plan.horizon.flops_per_token_causal / peak if rate and peak else None,
        checkpoints=len(kept),
        newest_checkpoint=kept[0].name if kept else None,
        joint=view.joint,
        discarded_steps=int((row.preview or {}).get("discarded_steps", 0)),
        imported=view.imported,
    )


def _wall(run: tables.Run, view: PhaseView, now: float) -> float | None:
    if view.started_at is None:
        return None
    ended = view.ended_at or run.ended_at or now
    return max(0.0, ended - view.started_at)


def _last(
    evaluations: list[EvaluationView], kind: str, low: int, high: int
) -> EvaluationView | None:
    """The last one inside the phase; what was measured at its first step belongs to the one before.

    Of several at that step the first counts: the later ones are rechecks after a resume.
    """
    inside = [e for e in evaluations if e.kind == kind and low < e.step <= high]
    if not inside:
        return None
    step = max(e.step for e in inside)
    return min((e for e in inside if e.step == step), key=lambda e: e.unix_seconds)


def _core(view: EvaluationView) -> CoreScore:
    tasks = {str(k): float(v) for k, v in dict(view.result.get("results", {})).items()}
    named = [name for name in HIGHLIGHTS if name in tasks]
    named = named or sorted(tasks, key=lambda name: -tasks[name])[: len(HIGHLIGHTS)]
    lost = view.result.get("not_scored", {})
    return CoreScore(
        step=view.step,
        value=view.value,
        identity=view.identity,
        highlights={name: tasks[name] for name in named},
        tasks=tasks,
        not_scored=sum(int(entry["count"]) for entry in lost.values()),
    )
