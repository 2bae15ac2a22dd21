"""How many lanes a step has: frozen at the first start, since the bits depend on them."""

from __future__ import annotations

from trainer.contract.lanes import lanes_for
from trainer.contract.orders import AttemptOrder
from trainer.train.frozen_choices import Choices


def of_attempt(order: AttemptOrder, chosen: Choices) -> int:
    """The frozen number, or the smallest that the attempt's ranks can share where they cannot share
    that one: the resume is then approximate, by the fingerprint."""
    if chosen.lanes % order.num_ranks == 0:
        return chosen.lanes
    return lanes_for(order.num_ranks, None)
