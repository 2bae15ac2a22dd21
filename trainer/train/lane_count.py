"""Lane count of a step: frozen at the first start, since the bits depend on it."""

from __future__ import annotations

from trainer.contract.lanes import lanes_for
from trainer.contract.orders import AttemptOrder
from trainer.train.frozen_choices import Choices


class LanesDoNotFit(Exception):
    """The micro-batches of a step cannot be shared by the lanes."""


def of_attempt(order: AttemptOrder, chosen: Choices) -> int:
    """The frozen number, or if the attempt's ranks cannot share it, the smallest that they can: the
    resume is then approximate, by the fingerprint. Raises LanesDoNotFit."""
    lanes = (
        chosen.lanes if chosen.lanes % order.num_ranks == 0 else lanes_for(order.num_ranks, None)
    )
    batch = order.plan.batch
    micro_batches = batch.tokens // (chosen.device_batch_size * batch.sequence_len)
    if micro_batches % lanes:
        raise LanesDoNotFit(
            f"{micro_batches:,} micro-batches of {chosen.device_batch_size} rows a step do not "
            f"divide among {lanes} lanes: resume with a smaller overrides.device_batch_size"
        )
    return lanes
