"""Axes of an SVG chart: scale, ticks and grid. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from trainer.contract import units


@dataclass(frozen=True)
class Frame:
    """Steps `first` to `last` from left to right, values `low` to `high` from bottom to top.

    width, height and the margins in user units of the picture's viewBox. `low` < `high`.
    """

    first: int
    last: int
    low: float
    high: float
    width: int = 720
    height: int = 200
    left: int = 56
    right: int = 8
    top: int = 8
    bottom: int = 22

    def x(self, step: int) -> str:
        span = max(self.last - self.first, 1)
        share = (step - self.first) / span
        return f"{self.left + share * (self.width - self.left - self.right):.1f}"

    def y(self, value: float) -> str:
        """A value outside of the frame is drawn on its edge."""
        share = min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))
        return f"{self.height - self.bottom - share * (self.height - self.top - self.bottom):.1f}"

    def points(self, pairs: Iterable[tuple[int, float]]) -> str:
        """The `points` of a polyline or polygon through (step, value)."""
        return " ".join(f"{self.x(step)},{self.y(value)}" for step, value in pairs)

    def grid(self) -> str:
        """Lines at the lowest, the middle and the highest value, each with its number."""
        return "".join(
            f'<line class="grid" x1="{self.left}" x2="{self.width - self.right}" '
            f'y1="{self.y(v)}" y2="{self.y(v)}"/>'
            f'<text x="{self.left - 6}" y="{self.y(v)}" dy="4" text-anchor="end">'
            f"{units.count(v)}</text>"
            for v in (self.low, (self.low + self.high) / 2, self.high)
        )

    def steps(self) -> str:
        """The first and the last step, below the grid."""
        return (
            f'<text x="{self.left}" y="{self.height - 5}">step {self.first:,}</text>'
            f'<text x="{self.width - self.right}" y="{self.height - 5}" text-anchor="end">'
            f"{max(self.last, self.first + 1):,}</text>"
        )
