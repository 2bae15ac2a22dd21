"""Stores step records in bulk: points, rollups, counters, and the run's live progress."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import inf
from typing import Any

from sqlalchemy.orm import Session

from server.database import tables
from server.domain import executions
from server.domain.states import State, explain, sentence
from server.metrics import counters, rollups, sparkline
from server.metrics.counters import Tally
from trainer.contract.evaluations import KIND_OF_METRIC
from trainer.contract.events import Step
from trainer.contract.metrics import STEP_KEYS
from trainer.contract.reasons import Reason

# Weight of a new step in the smoothed rate, a mean over about twenty steps.
SMOOTHING = 0.05
_COLUMNS = ("attempt_id", "step", "unix_seconds", *rollups.COLUMNS, "more")
_POINT = f"INSERT INTO points ({', '.join(_COLUMNS)}) VALUES ({', '.join('?' * len(_COLUMNS))})"

Reported = tuple[float, Step]  # unix seconds, record


def add(
    session: Session,
    run: tables.Run,
    attempt: tables.Attempt,
    reported: Sequence[Reported],
    tally: Tally,
    *,
    is_newest: bool,
) -> int:
    """Store steps of one attempt, in order. Returns the number of duplicates, which are ignored."""
    last = -1 if attempt.last_step is None else attempt.last_step
    new: list[Reported] = []
    for seconds, step in reported:
        if step.step > last:
            new.append((seconds, step))
            last = step.step
    if new:
        _store(session, run, attempt, new)
        _count(run, attempt, new, tally)
        if is_newest:
            _follow(run, attempt, new)
    return len(reported) - len(new)


def _store(
    session: Session, run: tables.Run, attempt: tables.Attempt, new: Sequence[Reported]
) -> None:
    per_token = run.plan["horizon"]["flops_per_token"]
    factor = per_token / attempt.peak_flops if attempt.peak_flops else None
    rows, points = [], []
    for seconds, s in new:
        values = _values(s, factor)
        points.append((s.step, seconds, values))
        columns, more = values[: len(rollups.COLUMNS)], values[len(rollups.COLUMNS) :]
        later = dict(zip(rollups.KEYS[len(rollups.COLUMNS) :], more, strict=True))
        rows.append((attempt.id, s.step, seconds, *columns, json.dumps(later) if later else None))
    connection = session.connection()
    connection.exec_driver_sql(_POINT, rows)
    rollups.add(connection, attempt.id, points)


def _values(step: Step, factor: float | None) -> tuple[float | None, ...]:
    """The step's value of each binned metric. factor: FLOPs per token / peak FLOP/s, for MFU."""
    rate = step.tokens / step.seconds if step.seconds > 0 else None
    rates = {
        "step_seconds": step.seconds,
        "tokens_per_second": rate,
        "mfu": rate * factor if rate and factor else None,
    }
    return tuple(_finite(rates[k] if k in rates else step.value(k)) for k in rollups.KEYS)


def _count(run: tables.Run, attempt: tables.Attempt, new: Sequence[Reported], tally: Tally) -> None:
    tokens = sum(s.tokens for _, s in new)
    energy = sum(_finite(s.energy_joules) or 0.0 for _, s in new)
    seconds = sum(s.seconds for _, s in new)
    tally.add(counters.STEPS, run.name, len(new))
    tally.add(counters.TOKENS, run.name, tokens)
    tally.add(counters.ENERGY, run.name, energy)
    for _, s in new:
        tally.observe(counters.STEP_SECONDS, run.name, s.seconds)
    totals = dict(run.totals)
    for key, value in (("steps", len(new)), ("tokens", tokens), ("seconds", seconds)):
        totals[key] = totals.get(key, 0) + value
    if energy:
        totals["energy_joules"] = totals.get("energy_joules", 0.0) + energy
    # Late records of a superseded attempt count as lost steps.
    limit = attempt.lineage_limit
    if limit is not None:
        late = sum(1 for _, s in new if s.step >= limit)
        attempt.steps_lost += late
        tally.add(counters.LOST_STEPS, run.name, late)
        totals["lost_steps"] = totals.get("lost_steps", 0) + late
    run.totals = totals
    attempt.steps_done += len(new)
    attempt.last_step = new[-1][1].step


def _follow(run: tables.Run, attempt: tables.Attempt, new: Sequence[Reported]) -> None:
    seconds, step = new[-1]
    executions.enter_stage(attempt.execution, "training", seconds)
    if attempt.lineage_limit is not None:
        return
    run.step = step.step + 1
    run.tokens_seen += sum(s.tokens for _, s in new)
    run.last_step_at = seconds
    run.progress = _progress(run, attempt, new)
    run.sparkline = sparkline.add(run.sparkline, [(s.step, _finite(s.loss)) for _, s in new])
    if run.reason == Reason.disk_full and run.state == State.running:
        explain(run, Reason.requested, sentence(State.running, Reason.requested))


def _progress(run: tables.Run, attempt: tables.Attempt, new: Sequence[Reported]) -> dict[str, Any]:
    """The run's live progress after these steps; the rate restarts with each attempt."""
    before = run.progress
    same = before.get("attempt") == attempt.number
    count = before.get("rate_steps", 0) if same else 0
    tokens, busy = before.get("mean_tokens", 0.0), before.get("mean_seconds", 0.0)
    for _, s in new:
        count += 1
        # the first step of a process compiles and warms up, so the second replaces it
        weight = max(SMOOTHING, 1 / max(1, count - 1))
        tokens += weight * (s.tokens - tokens)
        busy += weight * (s.seconds - busy)
    seconds, last = new[-1]
    rate = tokens / busy if busy > 0 else None
    horizon = run.plan["horizon"]
    peak = attempt.peak_flops
    return {
        **{k: before[k] for k in (*KIND_OF_METRIC, "slowest_save_seconds") if k in before},
        **{k: before[k] for k in ("ranks", "ranks_at") if same and k in before},
        "attempt": attempt.number,
        "unix_seconds": seconds,
        "rate_steps": count,
        "mean_tokens": tokens,
        "mean_seconds": busy,
        "tokens_per_second": rate,
        "step_seconds": busy,
        "mfu": rate * horizon["flops_per_token"] / peak if rate and peak else None,
        "mfu_causal": rate * horizon["flops_per_token_causal"] / peak if rate and peak else None,
        "peak_flops": peak,
        "peak_source": attempt.peak_source,
        **{key: _finite(getattr(last, key)) for key in _VRAM},
        **{key: _finite(last.value(key)) for key in STEP_KEYS},
    }


_VRAM = ("vram_allocated_bytes", "vram_reserved_bytes", "vram_peak_bytes", "vram_total_bytes")


def _finite(value: float | None) -> float | None:
    """The value if finite, else None: neither columns nor JSON hold NaN and infinity."""
    return value if value is not None and -inf < value < inf else None
