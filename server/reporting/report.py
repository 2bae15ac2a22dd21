"""Collects a run's report from the database.

Correct while it runs, with an ETA, and afterwards. Only rollups are read of the steps.
"""

from __future__ import annotations

import time

from sqlalchemy.orm import Session

from server.database import tables
from server.domain import lineage
from server.domain.states import State
from server.queries import curves, eta, history
from server.reporting import answer, phases, story
from server.reporting.answer import Report
from server.reporting.html import html
from server.reporting.markdown import markdown
from server.schemas.checkpoints import CheckpointView
from server.schemas.evaluations import SampleView
from server.schemas.system import PeakFlops
from trainer.contract.metrics import JOULES_PER_KWH, METRICS
from trainer.contract.peaks import known_peak
from trainer.contract.plan import CHINCHILLA_RATIO, Plan
from trainer.contract.spec import RunSpec

CURVE_KEYS = [metric.key for metric in METRICS if metric.is_reported]
CURVE_POINTS = 400
MAX_SAMPLES = 20


def summary(
    session: Session,
    run: tables.Run,
    *,
    now: float | None = None,
    energy_price: float | None = None,
) -> Report:
    """The report of a run. energy_price: per kWh, in any currency."""
    now = time.time() if now is None else now
    spec, plan = RunSpec.model_validate(run.spec), Plan.model_validate(run.plan)
    views = history.phases(session, run, superseded=False)
    evaluated = history.evaluations(session, run)
    kept = history.checkpoints(session, run)
    peak = _peak(session, run)
    phase_reports = phases.reports(
        session, run, plan, evaluated, kept, views, peak.value if peak else None, now
    )
    tried, down = story.attempts(session, run, {view.index: view.name for view in views})
    incidents, verdicts = story.incidents(session, run)
    values = story.evaluations(evaluated)
    everything = phases.sums(session, lineage.stretches(session, run.id))
    totals = _totals(run, plan, everything, kept, down, now)
    drawn = curves.metrics(session, run, CURVE_KEYS, max_points=CURVE_POINTS)
    return Report(
        id=run.id,
        name=run.name,
        title=run.title,
        generated_at=now,
        standing=_progress(session, run, now),
        shape=plan.shape,
        parameters=plan.parameters,
        batch=plan.batch,
        hyperparameters=plan.hyperparameters,
        schedule=spec.schedule,
        data={
            **spec.data.model_dump(mode="json", exclude_none=True),
            "notes": story.data_notes(session, run),
        },
        hardware=_hardware(run, spec, plan, tried, session, everything, totals, peak),
        phases=phase_reports,
        attempts=tried,
        totals=totals,
        energy=_energy(run, everything, energy_price),
        exact_resume=run.exact_resume,
        verdicts=verdicts,
        evaluations=values,
        differences=story.differences(values),
        samples=_samples(history.samples(session, run)),
        incidents=incidents,
        timeline=story.timeline(run, phase_reports, tried, views),
        curves=drawn.series,
        curve_bin_steps=drawn.bin_steps,
    )


def _progress(session: Session, run: tables.Run, now: float) -> answer.RunProgress:
    view = eta.progress(session, run, now)
    left = run.step < run.end_step and view.state not in (State.completed, State.cancelled)
    return answer.RunProgress(
        state=view.state,
        reason=view.reason,
        reason_message=view.reason_message,
        step=run.step,
        end_step=run.end_step,
        fraction=view.fraction,
        eta_seconds=view.eta_seconds if left else None,
        finish_at=view.finish_at if left else None,
        eta_source=view.eta_source if left else None,
        created_at=run.created_at,
        started_at=run.started_at,
        ended_at=run.ended_at,
        last_step_at=run.last_step_at,
    )


def _peak(session: Session, run: tables.Run) -> PeakFlops | None:
    """Peak FLOP/s that MFU refers to: from the newest attempt, else from the table of devices."""
    for row in _attempt_rows(session, run):
        if row.peak_flops:
            return PeakFlops(value=row.peak_flops, source=row.peak_source or "reported")
        known = known_peak(row.device_name) if row.device_name else None
        if known:
            return PeakFlops(value=known.value, source=known.source)
    return None


def _attempt_rows(session: Session, run: tables.Run) -> list[tables.Attempt]:
    """The newest first."""
    table = tables.Attempt
    return list(
        session.query(table).filter(table.run_id == run.id).order_by(table.number.desc()).all()
    )


def _hardware(
    run: tables.Run,
    spec: RunSpec,
    plan: Plan,
    tried: list[answer.AttemptReport],
    session: Session,
    everything: phases.Sums,
    totals: answer.Totals,
    peak: PeakFlops | None,
) -> answer.Hardware:
    devices: dict[str, list[int]] = {}
    for attempt in tried:
        devices.setdefault(attempt.device, []).append(attempt.number)
    rows = _attempt_rows(session, run)
    rate, per = totals.tokens_per_second, plan.horizon
    frozen = {k: v for k, v in run.frozen.items() if isinstance(v, str | int | float | bool)}
    precision = str(frozen.get("compute_dtype", spec.numerics.precision))
    return answer.Hardware(
        devices=devices,
        precision=precision + (", products in fp8" if frozen.pop("fp8", False) else ""),
        deterministic=spec.numerics.deterministic,
        choices=frozen,
        versions={k: str(v) for k, v in (rows[0].versions if rows else {}).items() if v},
        vram_reserved_peak_bytes=run.progress.get("vram_peak_bytes") or everything.vram,
        mfu=rate * per.flops_per_token / peak.value if rate and peak else None,
        mfu_causal=rate * per.flops_per_token_causal / peak.value if rate and peak else None,
        peak_flops=peak,
    )


def _totals(
    run: tables.Run,
    plan: Plan,
    everything: phases.Sums,
    kept: list[CheckpointView],
    down: float,
    now: float,
) -> answer.Totals:
    tokens, per = run.step * run.batch_tokens, plan.horizon
    ended = run.ended_at or now
    measured = everything.steps * run.batch_tokens
    return answer.Totals(
        steps=run.step,
        tokens=tokens,
        flops=float(tokens) * per.flops_per_token,
        flops_per_token=per.flops_per_token,
        flops_per_token_causal=per.flops_per_token_causal,
        ratio=tokens / plan.parameters.total,
        chinchilla_ratio=CHINCHILLA_RATIO,
        chinchilla_tokens=int(CHINCHILLA_RATIO * plan.parameters.total),
        processed_steps=int(run.totals.get("steps", everything.steps)),
        processed_tokens=int(run.totals.get("tokens", measured)),
        lost_steps=int(run.totals.get("lost_steps", 0)),
        restarts=int(run.totals.get("restarts", 0)),
        training_seconds=everything.seconds,
        wall_seconds=max(0.0, ended - run.started_at) if run.started_at else None,
        down_seconds=down,
        tokens_per_second=measured / everything.seconds if everything.seconds else None,
        checkpoints=len(kept),
        checkpoint_bytes=sum(c.bytes for c in kept),
    )


def _energy(run: tables.Run, everything: phases.Sums, price: float | None) -> answer.Energy | None:
    joules = run.totals.get("energy_joules")
    if not joules:
        return None
    kilowatt_hours = joules / JOULES_PER_KWH
    tokens = run.totals.get("tokens")
    return answer.Energy(
        joules=joules,
        kilowatt_hours=kilowatt_hours,
        mean_watts=everything.watts,
        joules_per_million_tokens=joules / tokens * 1e6 if tokens else None,
        price=price,
        cost=kilowatt_hours * price if price is not None else None,
    )


def _samples(views: list[SampleView]) -> list[answer.SampleReport]:
    """Samples of the newest step that has any."""
    if not views:
        return []
    newest = max(view.step for view in views)
    found = [view for view in views if view.step == newest][-MAX_SAMPLES:]
    return [answer.SampleReport(step=v.step, prompt=v.prompt, text=v.text) for v in found]


__all__ = ["Report", "html", "markdown", "summary"]
