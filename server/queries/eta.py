"""Progress and ETA of a run."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, NamedTuple

from sqlalchemy.orm import Session

from server.database import tables
from server.domain import gang, remedies
from server.domain.states import Desired, State
from server.machine import throughput
from server.queries import outlook, ranks
from server.queries.condition import condition
from server.queries.latest import Latest, latest
from server.scheduling.outlook import Outlook
from server.schemas.checkpoints import CheckpointBrief
from server.schemas.progress import EtaParts, Progress, Vram
from server.schemas.runs import Condition
from server.schemas.system import PeakFlops
from trainer.contract.extend import ExtendPreview
from trainer.contract.metrics import METRICS
from trainer.contract.plan import Eta, Plan, time_left
from trainer.contract.reasons import Reason
from trainer.contract.shape import shape_of
from trainer.contract.spec import RunSpec

# Metrics that are speeds: none while a run makes no steps.
RATES = frozenset({"tokens_per_second", "mfu", "mfu_causal"})

# Steps of this attempt before its own rate is used.
MIN_STEPS = 3


class Rate(NamedTuple):
    tokens_per_second: float
    source: str


class Remaining(NamedTuple):
    """Remaining time (ETA) in seconds, and the rate it is taken from: for progress, lists, the
    preview of an extend and Prometheus. The formula is trainer.contract.plan.time_left."""

    parts: EtaParts
    rate: Rate

    @property
    def seconds(self) -> float:
        return self.parts.training + self.parts.evaluation + self.parts.saving


# Metrics with a field of Progress, and those without: the memory of a device is in vram_bytes.
_FIELDS = tuple(m.key for m in METRICS if m.key in Progress.model_fields)
_OTHERS = tuple(m.key for m in METRICS if m.key not in (*_FIELDS, "vram_reserved_bytes"))


def progress(
    session: Session, run: tables.Run, now: float | None = None, stands: Latest | None = None
) -> Progress:
    """Progress of a run now; a value that the attempt has not reported yet is null."""
    now = time.time() if now is None else now
    stands = stands or latest(session, run.id)
    attempt, view = stands.attempt, run.progress
    live = _is_live(run, attempt)
    still = condition(session.info["paths"].run(run.id), run, attempt, now)
    moves = live and still is None
    newest = newest_metrics(run, attempt, still)
    left = remaining(session, run, stands, still)
    end = expected_end(session, run, attempt, left, now)
    bill = outlook.Bill()
    if left is not None:
        bill = outlook.bill(session, outlook.mean_watts(run), left.seconds, end)
    reason = Reason(run.reason)
    return Progress(
        id=run.id,
        name=run.name,
        state=State(run.state),
        desired_state=Desired(run.desired_state),
        reason=reason,
        reason_message=run.reason_message,
        advice=remedies.advice(run),
        phase=stands.phase,
        attempt=attempt.number if attempt else None,
        stage=attempt.stage if attempt and not attempt.is_over else None,
        stage_since=attempt.stage_since if attempt and not attempt.is_over else None,
        stage_detail=attempt.stage_detail if attempt else "",
        stage_fraction=attempt.stage_fraction if attempt else None,
        step=run.step,
        end_step=run.end_step,
        fraction=fraction(run),
        tokens_seen=run.tokens_seen,
        **{key: newest[key] for key in _FIELDS},
        mfu_causal=view.get("mfu_causal") if moves else None,
        peak_flops=_peak(view, attempt),
        vram_bytes=Vram(**ranks.vram(view)) if live else Vram(),
        energy_joules=run.totals.get("energy_joules"),
        eta_seconds=left.seconds if left else None,
        finish_at=end.finish_at if end else None,
        energy_left_joules=bill.energy_joules,
        cost_left=bill.cost,
        eta_parts=left.parts if left else None,
        eta_source=left.rate.source if left else None,
        training_seconds=run.totals.get("seconds"),
        started_at=run.started_at,
        ended_at=run.ended_at,
        condition=still,
        last_step_at=run.last_step_at,
        last_checkpoint=_brief(stands.checkpoint),
        more={key: newest[key] for key in _OTHERS},
        exact_resume=run.exact_resume,  # type: ignore[arg-type]
        devices=gang.used_by(attempt) if attempt else [],
        ranks=ranks.rows(run) if live else [],
    )


def newest_metrics(
    run: tables.Run, attempt: tables.Attempt | None, still: Condition | None
) -> dict[str, float | None]:
    """Newest value of each metric, by key; None where it does not hold now."""
    live = _is_live(run, attempt)
    holds = {"always": True, "alive": live, "stepping": live and still is None}
    return {m.key: run.progress.get(m.key) if holds[m.holds] else None for m in METRICS}


def _is_live(run: tables.Run, attempt: tables.Attempt | None) -> bool:
    """True if the last report is of a process that is alive."""
    if run.state != State.running or attempt is None:
        return False
    return run.progress.get("attempt") == attempt.number


def fraction(run: tables.Run) -> float:
    return min(1.0, run.step / run.end_step) if run.end_step else 0.0


def remaining(
    session: Session, run: tables.Run, stands: Latest, still: Condition | None
) -> Remaining | None:
    """The remaining time from the current step to the planned end; None for a run that has ended,
    and for one that makes no steps: nobody knows for how long (`still`: its condition)."""
    if still is not None or run.state in (State.completed, State.failed, State.cancelled):
        return None
    if run.step >= run.end_step:
        rate = Rate(run.progress.get("tokens_per_second") or 0.0, "nothing is left to train")
        return Remaining(EtaParts(training=0.0, evaluation=0.0, saving=0.0), rate)
    return between(session, run, run.step, run.end_step, stands)


def expected_end(
    session: Session,
    run: tables.Run,
    attempt: tables.Attempt | None,
    left: Remaining | None,
    now: float,
) -> Outlook | None:
    """Expected end of a run that trains, or waits for its hours: under these, never in the past.

    Counted from its last step, so that the moment stands still between two steps.
    """
    is_waiting = run.state == State.queued and run.reason == Reason.outside_hours
    if left is None or not (is_waiting or run.state in (State.running, State.pausing)):
        return None
    since = now if is_waiting else min(run.last_step_at or now, now)
    end = outlook.of_run(session, run, attempt, left.seconds, since)
    return end if end.finish_at is None else replace(end, finish_at=max(now, end.finish_at))


def of_extend(session: Session, run: tables.Run, shown: ExtendPreview) -> Eta:
    """Seconds that the steps of the new phase take."""
    left = between(session, run, shown.start_step, shown.end_step, latest(session, run.id))
    return Eta(
        **left.parts.model_dump(),
        start_up=0.0,
        total=left.seconds,
        tokens_per_second=left.rate.tokens_per_second,
        source=left.rate.source,
    )


def between(session: Session, run: tables.Run, first: int, last: int, stands: Latest) -> Remaining:
    """Seconds for steps `[first, last)` by part, at the rate this run or its device really had."""
    spec, plan = RunSpec.model_validate(run.spec), Plan.model_validate(run.plan)
    rate = _rate(session, run, stands.attempt, spec, plan)
    left = time_left(
        spec, shape_of(spec.model), plan.batch, first, last, rate.tokens_per_second,
        bpb_seconds=stands.bpb_seconds, core_seconds=stands.core_seconds,
    )  # fmt: skip
    return Remaining(EtaParts(**left._asdict()), rate)


def _rate(
    session: Session,
    run: tables.Run,
    attempt: tables.Attempt | None,
    spec: RunSpec,
    plan: Plan,
) -> Rate:
    view = run.progress
    own = view.get("tokens_per_second")
    if attempt and own and view.get("attempt") == attempt.number:
        steps = view.get("rate_steps", 0)
        if steps >= MIN_STEPS:
            return Rate(own, f"this attempt's last steps ({steps:,} seen)")
    device = attempt and (attempt.device_name or attempt.device)
    rows = throughput.rows_of(run)
    seen = throughput.measured(session, device, spec, rows)
    if seen is not None:
        return Rate(seen.tokens_per_second, seen.source)
    if own:
        return Rate(own, f"attempt {view.get('attempt')} of this run")
    return Rate(plan.eta.tokens_per_second, f"the plan: {plan.eta.source}")


def _peak(view: dict[str, Any], attempt: tables.Attempt | None) -> PeakFlops | None:
    if attempt is not None and attempt.peak_flops:
        return PeakFlops(value=attempt.peak_flops, source=attempt.peak_source or "reported")
    return None


def _brief(found: tables.Checkpoint | None) -> CheckpointBrief | None:
    if found is None:
        return None
    return CheckpointBrief(
        name=found.name, step=found.step, bytes=found.bytes, created_at=found.created_at
    )
