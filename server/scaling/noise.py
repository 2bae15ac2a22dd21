"""Noise between seeds: the pooled spread, and whether a difference exceeds it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Noise:
    """spread: standard deviation between seeds, pooled over cells; None below two seeds."""

    spread: float | None
    degrees_of_freedom: int

    def half_width(self, num_a: int, num_b: int) -> float | None:
        """Half of the CONFIDENCE interval of a difference of two means; None where unknown."""
        if self.spread is None or not num_a or not num_b:
            return None
        error = self.spread * math.sqrt(1 / num_a + 1 / num_b)
        return t_quantile(self.degrees_of_freedom) * error


def pooled(cells: Iterable[Sequence[float]]) -> Noise:
    """The noise of values in cells that differ by their seed alone: one variance for all cells."""
    squares, degrees = 0.0, 0
    for values in cells:
        if len(values) > 1:
            mean = fmean(values)
            squares += sum((value - mean) ** 2 for value in values)
            degrees += len(values) - 1
    return Noise(math.sqrt(squares / degrees) if degrees else None, degrees)


def spread(values: Sequence[float]) -> float | None:
    """Standard deviation (n - 1); None below two values."""
    return pooled([values]).spread


def t_quantile(degrees: int, confidence: float = CONFIDENCE) -> float:
    """Student's t that |t| stays below with that probability, for 1 degree of freedom or more."""
    low, high = 0.0, 1.0
    while _within(high, degrees) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return (low + high) / 2


def _within(t: float, degrees: int) -> float:
    """P(|T| < t), as a finite sum: Abramowitz & Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2
    term = cosine if is_odd else 1.0
    total, power = 0.0, 1 if is_odd else 0
    while power <= degrees - 2:
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
        power += 2
    return 2 / math.pi * (angle + sine * total) if is_odd else sine * total
