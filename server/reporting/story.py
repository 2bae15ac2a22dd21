"""The report's narrative: attempts, incidents, resume checks, evaluation differences, timeline."""

from __future__ import annotations

from itertools import pairwise

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from server.reporting.answer import (
    AttemptReport,
    EvaluationDifference,
    EvaluationReport,
    Incident,
    Moment,
    PhaseReport,
    ResumeVerdict,
)
from server.schemas.evaluations import EvaluationView
from server.schemas.phases import PhaseView
from trainer.contract import bpb_causes, units
from trainer.contract.evaluations import BY_KIND
from trainer.contract.reasons import Reason

MAX_INCIDENTS = 100
EQUAL = 1e-6  # relative: the same weights on the same span give the same value


def attempts(
    session: Session, run: tables.Run, names: dict[int, str]
) -> tuple[list[AttemptReport], float]:
    """(attempts in order, seconds without a trainer between two of them that were meant to run)."""
    table = tables.Attempt
    rows = list(session.scalars(select(table).where(table.run_id == run.id).order_by(table.number)))
    found, down_total, before = [], 0.0, None
    for row in rows:
        down = None
        if before is not None and before.ended_at is not None:
            began = row.started_at or row.created_at
            down = max(0.0, began - before.ended_at)
            if before.outcome in (None, "failed", "terminated"):
                down_total += down
        found.append(_attempt(row, names, down))
        before = row
    return found, down_total


def _attempt(row: tables.Attempt, names: dict[int, str], down: float | None) -> AttemptReport:
    return AttemptReport(
        number=row.number,
        phase=names.get(row.phase_index, str(row.phase_index)),
        device=row.device_name or row.device,
        start_step=row.start_step,
        last_step=row.last_step,
        started_at=row.started_at,
        ended_at=row.ended_at,
        outcome=row.outcome,
        reason=row.reason,
        sentence=row.message or (Reason(row.reason).sentence if row.reason else ""),
        repeated_steps=row.steps_lost,
        down_seconds=down,
        exact_resume=row.exact_resume,
    )


def data_notes(session: Session, run: tables.Run) -> list[str]:
    """Sentences about the corpus: its splits and omissions, as the preparation reported them."""
    table = tables.Event
    mine = select(table.message).where(table.run_id == run.id)
    query = mine.where(table.kind.in_(("data_note", "data_left_out"))).order_by(table.id)
    return list(session.scalars(query.limit(MAX_INCIDENTS)))


def incidents(session: Session, run: tables.Run) -> tuple[list[Incident], list[ResumeVerdict]]:
    """Warnings and errors, the newest kept; and every verdict on an exact resume."""
    table = tables.Event
    mine = select(table).where(table.run_id == run.id)
    trouble = session.scalars(
        mine.where(table.level != "info", table.kind != "resume_checked")
        .order_by(table.id.desc())
        .limit(MAX_INCIDENTS)
    )
    checked = session.scalars(mine.where(table.kind == "resume_checked").order_by(table.id))
    return [
        Incident(unix_seconds=e.unix_seconds, step=e.step, level=e.level, message=e.message)
        for e in reversed(list(trouble))
    ], [
        ResumeVerdict(
            step=e.step,
            attempt=e.attempt_number,
            what=str(e.data.get("what", "")),
            verdict=str(e.data.get("verdict", "")),
            expected=e.data.get("expected"),
            found=e.data.get("found"),
            message=e.message,
        )
        for e in checked
    ]


def evaluations(views: list[EvaluationView]) -> list[EvaluationReport]:
    labels: dict[tuple[str, str], str] = {}
    for view in views:
        taken = sum(1 for kind, _ in labels if kind == view.kind)
        labels.setdefault((view.kind, view.identity), _letter(taken))
    return [
        EvaluationReport(
            kind=view.kind,
            step=view.step,
            value=view.value,
            identity=view.identity,
            settings=view.settings,
            label=labels[view.kind, view.identity],
            attempt=view.attempt,
            seconds=view.seconds,
            unix_seconds=view.unix_seconds,
            best=view.best,
        )
        for view in views
    ]


def differences(evaluated: list[EvaluationReport]) -> list[EvaluationDifference]:
    """Values of one kind at one step, so of the same weights, that are not the same number."""
    by_place: dict[tuple[str, int], list[EvaluationReport]] = {}
    for e in evaluated:
        by_place.setdefault((e.kind, e.step), []).append(e)
    found = []
    for same in by_place.values():
        for one, two in pairwise(sorted(same, key=lambda e: e.unix_seconds)):
            if abs(two.value - one.value) > EQUAL * abs(one.value):
                found.append(_difference(one, two))
    return sorted(found, key=lambda d: d.step)


def _difference(one: EvaluationReport, two: EvaluationReport) -> EvaluationDifference:
    kind, comparable = BY_KIND[one.kind], one.identity == two.identity
    sentence = (
        f"{kind.label} of the weights at step {one.step:,} was {kind.text(one.value)} and then "
        f"{kind.text(two.value)} ({two.value - one.value:+.{kind.digits}f}): "
    )
    sentence += (
        "the same weights under the same settings should give the same value"
        if comparable
        else f"measured under different settings ({one.label} and {two.label}), not comparable"
        + _why(one, two)
    )
    return EvaluationDifference(
        kind=one.kind,
        step=one.step,
        before=one.value,
        after=two.value,
        comparable=comparable,
        sentence=sentence,
    )


def _why(one: EvaluationReport, two: EvaluationReport) -> str:
    """The settings of val bpb that differ, as far as both are recorded."""
    if one.kind != "bpb":
        return ""
    before, now = ({"settings": e.settings} for e in (one, two))
    why = bpb_causes.sentence(bpb_causes.causes(before, now))
    return f": {why}" if why else ""


def timeline(run: tables.Run, phases: list[PhaseReport], rows: list[AttemptReport],
             views: list[PhaseView]) -> list[Moment]:  # fmt: skip
    found = [Moment(unix_seconds=run.created_at, text="run created")]
    for report, view in zip(phases, views, strict=True):
        span = f"steps {report.start_step:,} to {report.planned_end_step:,}"
        if view.started_at is not None:
            found.append(Moment(unix_seconds=view.started_at, text=f"{report.name} began: {span}"))
        if view.ended_at is not None:
            text = f"{report.name} ended at step {view.ended_at_step or report.end_step:,}"
            found.append(Moment(unix_seconds=view.ended_at, text=text))
    for a in rows:
        if a.started_at is not None:
            text = f"attempt {a.number} started at step {a.start_step or 0:,} on {a.device}"
            if a.down_seconds:
                text += f", {units.duration(a.down_seconds)} after the one before"
            found.append(Moment(unix_seconds=a.started_at, text=text))
        if a.ended_at is not None:
            text = f"attempt {a.number} ended: {a.outcome or 'crashed'}"
            if a.repeated_steps:
                text += f", {a.repeated_steps:,} steps repeated later"
            found.append(Moment(unix_seconds=a.ended_at, text=text))
    return sorted(found, key=lambda moment: moment.unix_seconds)


def _letter(number: int) -> str:
    return chr(ord("A") + number) if number < 26 else f"#{number + 1}"
