"""Measured throughput and memory by (device, shape, rows per pass)."""

from __future__ import annotations

from typing import Any, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from trainer.contract.events import Probed
from trainer.contract.shape import shape_of
from trainer.contract.spec import RunSpec

MIN_STEPS = 5


class MeasuredThroughput(NamedTuple):
    tokens_per_second: float
    peak_bytes: int | None
    rows: int
    source: str


def shape_key(spec: RunSpec) -> str:
    """Key of a shape: everything besides device and rows that determines the speed of a step.

    The threads are the spec's; unset means all of the machine's.
    """
    shape = shape_of(spec.model)
    return (
        f"L{shape.n_layer}-D{shape.n_embd}-H{shape.n_head}-K{shape.n_kv_head}"
        f"-T{shape.sequence_len}-V{shape.padded_vocab_size}-{shape.window_pattern}"
        f"-{spec.numerics.precision}-t{spec.numerics.threads or 'all'}"
        f"{'-triton' if spec.numerics.kernels == 'triton' else ''}"
    )


def rows_of(run: tables.Run) -> int:
    """Effective rows per forward pass: the override, the frozen choice, or the plan's."""
    for chosen in (run.overrides, run.frozen):
        if isinstance(rows := chosen.get("device_batch_size"), int):
            return rows
    return run.plan["batch"]["device_batch_size"]


def record(session: Session, run: tables.Run, attempt: tables.Attempt) -> None:
    """Record the throughput of an attempt that has run at least MIN_STEPS steps."""
    progress: dict[str, Any] = run.progress
    rate = progress.get("tokens_per_second")
    if progress.get("attempt") != attempt.number or not rate:
        return
    if progress.get("rate_steps", 0) < MIN_STEPS:
        return
    seen = Probed(
        rows=rows_of(run),
        steps=progress["rate_steps"],
        tokens_per_second=rate,
        peak_bytes=progress.get("vram_peak_bytes"),
    )
    _keep(session, run, attempt, seen)


def record_probe(
    session: Session, run: tables.Run, attempt: tables.Attempt, probed: Probed
) -> None:
    """Record a probe's measurement, unless one over more steps exists."""
    place = (_device(attempt), shape_key(RunSpec.model_validate(run.spec)), probed.rows)
    known = session.get(tables.Throughput, place)
    if known is None or known.steps <= probed.steps:
        _keep(session, run, attempt, probed)


def _keep(session: Session, run: tables.Run, attempt: tables.Attempt, seen: Probed) -> None:
    session.merge(
        tables.Throughput(
            device=_device(attempt),
            shape_key=shape_key(RunSpec.model_validate(run.spec)),
            rows=seen.rows,
            tokens_per_second=seen.tokens_per_second,
            peak_bytes=seen.peak_bytes,
            steps=seen.steps,
            run_name=run.name,
        )
    )


def _device(attempt: tables.Attempt) -> str:
    return attempt.device_name or attempt.device


def measured(
    session: Session, device: str | None, spec: RunSpec, rows: int | None = None
) -> MeasuredThroughput | None:
    """Measured throughput of this shape on this device: with `rows`, or the fastest if None."""
    if device is None:
        return None
    table = tables.Throughput
    found = session.scalars(
        select(table)
        .where(table.device == device, table.shape_key == shape_key(spec))
        .order_by(table.tokens_per_second.desc())
    ).all()
    best = next((row for row in found if row.rows == rows), None)
    if best is None and rows is None and found:
        best = found[0]
    if best is None:
        return None
    source = f"measured on {best.device} in run {best.run_name} over {best.steps:,} steps"
    return MeasuredThroughput(best.tokens_per_second, best.peak_bytes, best.rows, source)
