"""Lineage: what the current state of a run descends from; the only place where it is cut.

An attempt that begins at step s sets aside what earlier attempts reported beyond s: the rows stay,
marked. Steps are counted as done, so a checkpoint at s belongs to both sides, a point at s (whose
loss is before its update) only to the later one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sqlalchemy import bindparam, or_, select, update
from sqlalchemy.orm import Session

from server.database import tables
from server.metrics import counters, rollups, sparkline
from trainer.contract.orders import Lineage
from trainer.contract.spec import MAX_STEPS

# Used many times a second; building a statement takes longer than running it.
_PHASES = (
    select(tables.Phase).where(tables.Phase.run_id == bindparam("run")).order_by(tables.Phase.index)
)
IS_CURRENT = or_(  # `is_current` as an SQL condition
    tables.Phase.lineage_limit.is_(None), tables.Phase.lineage_limit > tables.Phase.start_step
)
_WORSE = {"verified": 0, "approximate": 1, "mismatch": 2}


class Stretch(NamedTuple):
    """Points `[low, high)` of one attempt."""

    attempt_id: int
    number: int
    phase_index: int
    low: int
    high: int


def supersede(session: Session, run: tables.Run, from_step: int, by_attempt: int) -> int:
    """Supersede what attempts before number `by_attempt` did beyond `from_step`; returns steps
    lost.

    Cuts the attempts, marks checkpoints, evaluations and samples, counts the lost steps and moves
    the run back. Calling it again changes nothing.
    """
    earlier = _attempts(session, run.id, below=by_attempt)
    lost = sum(_cut(attempt, from_step) for attempt in earlier)
    ids = [attempt.id for attempt in earlier]
    for table in (tables.Checkpoint, tables.Evaluation, tables.Sample):
        session.execute(
            update(table)
            .where(table.run_id == run.id, table.step > from_step)
            .where(or_(table.attempt_id.is_(None), table.attempt_id.in_(ids)))
            .values(superseded=True)
            .execution_options(synchronize_session="fetch")
        )
    session.flush()
    counters.add(session, counters.LOST_STEPS, run.name, lost)
    run.totals = {**run.totals, "lost_steps": run.totals.get("lost_steps", 0) + lost}
    if run.step > from_step or lost:
        _cut_sparkline(session, run, from_step)
        run.tokens_seen = min(run.tokens_seen, from_step * run.batch_tokens)
    run.step = min(run.step, from_step)
    run.exact_resume = exactness(session, run.id)
    return lost


def stretches(session: Session, run_id: str, *, superseded: bool = False) -> list[Stretch]:
    """The stretches of points of the curve, in order; with `superseded` also superseded ones."""
    found = []
    for attempt in _attempts(session, run_id):
        if attempt.last_step is None:
            continue
        low, high = attempt.start_step or 0, attempt.last_step + 1
        if attempt.lineage_limit is not None and not superseded:
            high = min(high, attempt.lineage_limit)
        if high > low:
            found.append(Stretch(attempt.id, attempt.number, attempt.phase_index, low, high))
    return found


def limits(session: Session, run_id: str) -> Lineage:
    """Limits of the lineage that a run may resume from: {attempt: highest step that counts}."""
    return Lineage(
        limits={
            a.number: MAX_STEPS if a.lineage_limit is None else a.lineage_limit
            for a in _attempts(session, run_id)
        }
    )


def phases(session: Session, run_id: str) -> list[tables.Phase]:
    """The phases of the current lineage, in order: they tile its steps."""
    return [phase for phase in session.scalars(_PHASES, {"run": run_id}) if is_current(phase)]


def is_current(phase: tables.Phase) -> bool:
    return phase.lineage_limit is None or phase.lineage_limit > phase.start_step


def phase_end(phase: tables.Phase) -> int:
    """Last step of the phase in the current lineage, done or planned."""
    ends = (phase.ended_at_step, phase.lineage_limit)
    return min([phase.end_step, *(end for end in ends if end is not None)])


def recorded_steps(
    session: Session,
    run_id: str,
    usable: Sequence[tables.Checkpoint],
    steps: int,
    device: str | None = None,
) -> tuple[int, tables.Checkpoint, tables.Attempt] | None:
    """The checkpoint of `usable` with the most recorded steps behind it (at most `steps`; the first
    of equals), how many, and the attempt that made them; of that device where one is named."""
    found = []
    for stretch in stretches(session, run_id):
        attempt = session.get_one(tables.Attempt, stretch.attempt_id)
        if device not in (None, attempt.device):
            continue
        found += [
            (min(stretch.high - one.step, steps), one, attempt)
            for one in usable
            if stretch.low <= one.step < stretch.high
        ]
    order = {one.id: place for place, one in enumerate(usable)}
    return max(found, key=lambda one: (one[0], -order[one[1].id]), default=None)


def exactness(session: Session, run_id: str) -> str | None:
    """The worst resume verdict of the attempts in the current lineage."""
    verdicts = [
        a.exact_resume
        for a in _attempts(session, run_id)
        if a.exact_resume and (a.lineage_limit is None or a.lineage_limit > (a.start_step or 0))
    ]
    return max(verdicts, key=lambda v: _WORSE.get(v, 0), default=None)


def worse(one: str | None, two: str) -> str:
    return max((one or two, two), key=lambda v: _WORSE.get(v, 0))


def _attempts(session: Session, run_id: str, below: int | None = None) -> list[tables.Attempt]:
    query = select(tables.Attempt).where(tables.Attempt.run_id == run_id)
    if below is not None:
        query = query.where(tables.Attempt.number < below)
    return list(session.scalars(query.order_by(tables.Attempt.number)))


def _cut(attempt: tables.Attempt, step: int) -> int:
    """Lower the attempt's limit to `step`; returns the number of points that this supersedes."""
    if attempt.lineage_limit is not None and attempt.lineage_limit <= step:
        return 0
    done = 0 if attempt.last_step is None else attempt.last_step + 1
    counted = done if attempt.lineage_limit is None else min(done, attempt.lineage_limit)
    lost = max(0, counted - max(step, attempt.start_step or 0))
    attempt.lineage_limit = step
    attempt.steps_lost += lost
    return lost


def _cut_sparkline(session: Session, run: tables.Run, step: int) -> None:
    line, again = sparkline.cut(run.sparkline, step)
    if again:
        count, total = 0, 0.0
        for stretch in stretches(session, run.id):
            low, high = max(again[0], stretch.low), min(again[1], stretch.high)
            for part in rollups.read(
                session.connection(), stretch.attempt_id, low, high, MAX_STEPS, ["loss"]
            ):
                count, total = count + int(part.stats[0]), total + part.stats[1]
        line = sparkline.add_total(line, again[0], count, total)
    run.sparkline = line
