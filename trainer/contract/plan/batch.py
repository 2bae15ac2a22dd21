"""Batch size: tokens per step and rows per forward pass."""

from __future__ import annotations

from trainer.contract.plan.answer import BatchPlan, CannotPlan
from trainer.contract.plan.context import PlanContext
from trainer.contract.plan.memory import NEAR_THE_LIMIT, estimate_memory
from trainer.contract.plan.scaling import auto_batch
from trainer.contract.shape import ModelShape
from trainer.contract.spec import RunSpec


def plan_batch(spec: RunSpec, shape: ModelShape, context: PlanContext) -> BatchPlan:
    """The batch plan of a spec. Raises CannotPlan if its sizes do not divide."""
    tokens = spec.batch.tokens if isinstance(spec.batch.tokens, int) else auto_batch(spec.model)
    rows_total, rest = divmod(tokens, shape.sequence_len)
    if rest or rows_total == 0:
        raise CannotPlan(
            "batch.tokens",
            f"a batch of {tokens:,} tokens is not a multiple of sequence_len "
            f"{shape.sequence_len:,}",
        )
    if rows_total % spec.data.streams:
        raise CannotPlan(
            "data.streams",
            f"a step of {rows_total:,} rows cannot be shared equally by {spec.data.streams} "
            "streams",
        )
    asked = spec.batch.device_batch_size
    rows = asked if isinstance(asked, int) else _assumed_rows(spec, shape, rows_total, context)
    if rows_total % rows:
        raise CannotPlan(
            "batch.device_batch_size",
            f"batch of {tokens:,} tokens = {rows_total} rows of {shape.sequence_len:,} "
            f"is not divisible by device_batch_size {rows}",
        )
    if rows_total // rows % spec.lanes:
        raise CannotPlan(
            "batch.device_batch_size",
            f"{rows_total // rows:,} micro-batches of {rows} rows a step do not divide among "
            f"{spec.lanes} lanes: fewer rows, or more batch.tokens",
        )
    return BatchPlan(
        tokens=tokens,
        device_batch_size=rows,
        sequence_len=shape.sequence_len,
        accumulation=rows_total // rows,
        device_batch_size_assumed=not isinstance(asked, int),
    )


def _assumed_rows(spec: RunSpec, shape: ModelShape, rows_total: int, context: PlanContext) -> int:
    """Rows of the fastest earlier run of this shape here, otherwise the most that should fit."""
    if context.measured_rows and rows_total % (context.measured_rows * spec.lanes) == 0:
        return context.measured_rows
    return fitting_rows(spec, shape, rows_total, context) or 1


def fitting_rows(
    spec: RunSpec, shape: ModelShape, rows_total: int, context: PlanContext
) -> int | None:
    """The largest divisor of the batch's rows, at most 64, whose estimate fits the device."""
    limit = 8 if context.device_type == "cpu" or context.device_memory_bytes is None else 64
    lanes = spec.lanes
    divisors = [r for r in range(1, min(rows_total, limit) + 1) if rows_total % (r * lanes) == 0]
    memory = context.device_memory_bytes
    for rows in reversed(divisors):
        trial = BatchPlan(
            tokens=rows_total * shape.sequence_len,
            device_batch_size=rows,
            sequence_len=shape.sequence_len,
            accumulation=rows_total // rows,
            device_batch_size_assumed=True,
        )
        needed = estimate_memory(shape, trial, spec, context).total
        if memory is None or needed <= NEAR_THE_LIMIT * memory:
            return rows
    return None
