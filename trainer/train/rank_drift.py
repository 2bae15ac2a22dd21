"""Drift check: all ranks must hold the same weights, since each makes every update itself."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.model.gpt import GPT
from trainer.runtime.world import World


class RanksDiffer(Exception):
    """The weights of a rank differ from the others': memory or a device failed silently."""


def check(world: World, model: GPT) -> None:
    """Raises RanksDiffer, on all ranks, before the weights are saved."""
    if world.size == 1:
        return
    sums = world.all_gather(_sum(model))
    usual = max(sums, key=sums.count)
    others = [m for m, found in zip(world.members, sums, strict=True) if found != usual]
    if others:
        named = ", ".join(f"rank {m.rank} ({m.device} on {m.host})" for m in others)
        raise RanksDiffer(
            f"the weights of {named} differ from those of the other ranks: its memory or device "
            "failed silently. They were not saved"
        )


@torch.no_grad()
def _sum(model: GPT) -> int:
    """Checksum of the weights: their bits summed as integers, so any single change shows."""
    return int(sum(_bits(tensor).sum().cpu() for tensor in model.state_dict().values()))


def _bits(tensor: Tensor) -> Tensor:
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().view(kinds[tensor.element_size()])
