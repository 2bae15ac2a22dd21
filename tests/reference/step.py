"""Reference training step: gradients are the mean over micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tests.reference.model import PlainGPT
from tests.reference.optimizer import PlainOptimizer


def train_step(
    model: PlainGPT,
    optimizer: PlainOptimizer,
    micro_batches: Sequence[tuple[Tensor, Tensor]],
    *,
    lr_multiplier: float,
    momentum: float,
    weight_decay: float,
    loss_function=None,
) -> float:
    """Train one step; returns the mean loss. Synchronizes, as nanochat's script does."""
    compute = loss_function or model.loss
    losses = []
    for tokens, targets in micro_batches:
        loss = compute(tokens, targets)
        (loss / len(micro_batches)).backward()
        losses.append(loss.detach())
    optimizer.step(lr_multiplier, momentum, weight_decay)
    model.zero_grad(set_to_none=True)
    return sum(loss.item() for loss in losses) / len(losses)
