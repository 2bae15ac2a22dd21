"""Learning rate, momentum and weight decay of a step, from the schedule of its phase."""

from __future__ import annotations

from trainer.contract.orders import AttemptOrder
from trainer.contract.schedule import lr_multiplier, muon_momentum, weight_decay_multiplier


def scheduled(order: AttemptOrder, step: int) -> dict[str, float]:
    """LR multiplier, momentum and weight decay (absolute) at `step`, in its phase."""
    own = order.schedule
    if step < own.start_step and order.earlier_schedules:
        earlier = order.earlier_schedules
        own = next((s for s in reversed(earlier) if s.start_step <= step), earlier[0])
    return {
        "lr_multiplier": lr_multiplier(own, step),
        "momentum": muon_momentum(own, step),
        "weight_decay": weight_decay_multiplier(own, step)
        * order.plan.hyperparameters.weight_decay,
    }
