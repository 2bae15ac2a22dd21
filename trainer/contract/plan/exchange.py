"""Exchange between devices in a step: bytes, seconds, and the batch size for which it pays off."""

from __future__ import annotations

import math
from typing import Literal

from trainer.contract.plan.answer import BatchPlan, ExchangePlan
from trainer.contract.plan.context import PlanContext
from trainer.contract.plan.memory import touched_share
from trainer.contract.shape import ModelShape, count_parameters
from trainer.contract.spec import RunSpec

# Assumed, in bytes a second that each device sends: two cards on PCIe 4.0 x8; gloo over loopback.
ASSUMED_BANDWIDTH: dict[Literal["cpu", "cuda", "mps"], float] = {
    "cpu": 1.2e9,
    "cuda": 10e9,
    "mps": 1.2e9,
}
WORTH_A_WARNING = 0.2  # share of a step


def plan_exchange(
    spec: RunSpec, shape: ModelShape, batch: BatchPlan, rate_of_one: float, context: PlanContext
) -> ExchangePlan | None:
    """Exchange of a run; None on one device. rate_of_one: tokens per second of one device."""
    ranks = spec.num_ranks
    if ranks == 1:
        return None
    sent, bandwidth = bytes_sent(shape, batch, ranks), ASSUMED_BANDWIDTH[context.device_type]
    seconds, compute = sent / bandwidth, batch.tokens / (rate_of_one * ranks)
    enough = (1 / WORTH_A_WARNING - 1) * seconds * rate_of_one * ranks
    return ExchangePlan(
        devices=ranks,
        lanes=spec.lanes,
        bytes_per_step=sent,
        bytes_per_second=bandwidth,
        seconds_per_step=seconds,
        share_of_step=seconds / (seconds + compute),
        enough_tokens=1 << math.ceil(math.log2(max(1.0, enough))),
    )


def bytes_sent(shape: ModelShape, batch: BatchPlan, ranks: int) -> int:
    """Bytes that each rank sends in a step: gradients out and back (all-to-all, all-gather), of the
    tables only the touched rows, and the matrices that it updated."""
    counts = count_parameters(shape)
    tables = counts.wte + counts.value_embeds
    dense = counts.total - tables
    rows = tables * touched_share(shape.vocab_size, batch.tokens)
    share = (ranks - 1) / ranks
    return int(4 * share * (2 * (dense + rows) + counts.transformer))
