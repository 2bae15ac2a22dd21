"""Compute multiplier: how many times the FLOPs a baseline needs for the same loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

from server.scaling.fit import LossPoint


@dataclass(frozen=True)
class Multiplier:
    """value: None where the baseline does not bracket the loss; note: why."""

    value: float | None
    note: str = ""


def envelope(points: Iterable[LossPoint]) -> list[LossPoint]:
    """Points in order of FLOPs, each better than all that cost less."""
    kept: list[LossPoint] = []
    for flops, loss in sorted(points):
        if not kept or loss < kept[-1][1]:
            kept.append((flops, loss))
    return kept


def against(baseline: Iterable[LossPoint], flops: float, loss: float) -> Multiplier:
    """FLOPs that the baseline needs for `loss`, over `flops`: linear between two of its points in
    log FLOPs and log loss. Never beyond them: an extrapolated multiplier is a guess.
    """
    known = envelope(baseline)
    if len(known) < 2:
        return Multiplier(None, "the baseline has fewer than two finished sizes")
    if loss > known[0][1]:
        return Multiplier(None, f"worse than the baseline's smallest run ({known[0][1]:.4f})")
    if loss < known[-1][1]:
        return Multiplier(None, f"better than every run of the baseline ({known[-1][1]:.4f})")
    for (low_flops, high_loss), (high_flops, low_loss) in itertools.pairwise(known):
        if low_loss <= loss <= high_loss:
            share = math.log(high_loss / loss) / math.log(high_loss / low_loss)
            needed = math.log(low_flops) + share * math.log(high_flops / low_flops)
            return Multiplier(math.exp(needed) / flops)
    raise AssertionError("a loss within the range lies between two points")
