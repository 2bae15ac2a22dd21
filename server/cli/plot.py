"""Plots in a terminal: sparklines, and line plots in Braille characters. Pure.

A Braille character has 2 x 4 dots, so a plot of 72 x 14 cells resolves 144 x 56 points.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field

from trainer.contract import units

BARS = "▁▂▃▄▅▆▇█"
# Bit of the dot at (column, row) inside a Braille cell (Unicode chart U+2800).
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


@dataclass(frozen=True)
class Curve:
    """points: (x, y), x ascending. style: a rich style for the cells it owns."""

    points: list[tuple[float, float]]
    style: str = ""


@dataclass(frozen=True)
class PlotCell:
    char: str
    style: str = ""


@dataclass
class Plot:
    """Rows of cells, and the labels of the axes around them."""

    rows: list[list[PlotCell]]
    y_labels: dict[int, str]
    x_labels: list[tuple[int, str]]
    width: int
    margin: int = field(default=0)

    def lines(self) -> list[str]:
        """The plot as plain text, including axes."""
        return ["".join(cell.char for cell in row) for row in self.framed()]

    def framed(self) -> list[list[PlotCell]]:
        """Rows of cells with the axes: labels left of a line, ticks below one."""
        framed = [
            [*_cells(f"{self.y_labels.get(i, ''):>{self.margin}} │", "dim"), *row]
            for i, row in enumerate(self.rows)
        ]
        framed.append(_cells(" " * self.margin + " └" + "─" * self.width, "dim"))
        framed.append(_cells(" " * (self.margin + 2) + self._ticks(), "dim"))
        return framed

    def _ticks(self) -> str:
        line = [" "] * self.width
        for column, label in sorted(self.x_labels, key=lambda tick: tick[0] != 0):
            start = max(0, min(column - len(label) // 2, self.width - len(label)))
            room = line[max(0, start - 1) : start + len(label) + 1]
            if len(label) <= self.width and all(char == " " for char in room):
                line[start : start + len(label)] = label
        return "".join(line).rstrip()


def sparkline(values: list[float | None], width: int) -> str:
    """Sparkline of `values` in `width` bars, each a mean of its values; gaps are blank."""
    if not values or width < 1:
        return ""
    means = _binned(values, min(width, len(values)))
    bins = [v if v is not None and math.isfinite(v) else None for v in means]
    finite = [v for v in bins if v is not None]
    if not finite:
        return " " * len(bins)
    low, high = min(finite), max(finite)
    span = high / 2 - low / 2  # halves: the difference of two floats may overflow
    return "".join(
        " " if v is None else BARS[round((v / 2 - low / 2) / span * 7) if span else 3] for v in bins
    )


def bar(fraction: float, width: int) -> str:
    """A bar of `width` cells, in eighths of a cell."""
    eighths = round(min(max(fraction, 0.0), 1.0) * width * 8)
    full, rest = divmod(eighths, 8)
    drawn = "█" * full + (" ▏▎▍▌▋▊▉"[rest] if rest else "")
    return drawn + "·" * (width - len(drawn))


def draw(
    curves: list[Curve],
    *,
    width: int = 72,
    height: int = 14,
    joint: float | None = None,
    x_ticks: list[float] | None = None,
) -> Plot:
    """Plot `curves` in one frame, later ones on top, with a broken line at x = `joint`."""
    points = [p for curve in curves for p in curve.points] or [(0.0, 0.0)]
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_low, y_high = min(0.0, min(y for _, y in points)), max(y for _, y in points)
    x_span, y_span = (x_high - x_low) or 1.0, (y_high - y_low) or 1.0
    bits = [[0] * width for _ in range(height)]
    owner = [[""] * width for _ in range(height)]
    for curve in curves:
        for column, row in _dots(curve.points, x_low, x_span, y_low, y_span, width, height):
            bits[row // 4][column // 2] |= _DOTS[column % 2][row % 4]
            owner[row // 4][column // 2] = curve.style
    rows = [
        [
            PlotCell(chr(0x2800 + b), s) if b else PlotCell(" ")
            for b, s in zip(line, styles, strict=True)
        ]
        for line, styles in zip(bits, owner, strict=True)
    ]
    if joint is not None and x_low <= joint <= x_high:
        column = min(width - 1, int((joint - x_low) / x_span * (width - 1)))
        for row in rows:
            if row[column].char == " ":
                row[column] = PlotCell("┊", "yellow")
    labels = {
        0: units.count(y_high),
        height // 2: units.count((y_low + y_high) / 2),
        height - 1: units.count(y_low),
    }
    ticks = x_ticks or [x_low, x_low + x_span / 2, x_high]
    return Plot(
        rows=rows,
        y_labels=labels,
        x_labels=[(round((x - x_low) / x_span * (width - 1)), units.integer(x)) for x in ticks],
        width=width,
        margin=max(len(label) for label in labels.values()),
    )


def _dots(
    points: list[tuple[float, float]],
    x_low: float, x_span: float, y_low: float, y_span: float,
    width: int, height: int,
) -> list[tuple[int, int]]:  # fmt: skip
    """Dot coordinates along the curve, neighbours joined by straight lines. Row 0 is the top."""
    placed = [
        (
            (x - x_low) / x_span * (2 * width - 1),
            (1 - (y - y_low) / y_span) * (4 * height - 1),
        )
        for x, y in points
        if math.isfinite(y)
    ]
    dots = [(round(x), round(y)) for x, y in placed[:1]]
    for (x0, y0), (x1, y1) in itertools.pairwise(placed):
        count = max(1, math.ceil(max(abs(x1 - x0), abs(y1 - y0))))
        dots += [
            (round(x0 + (x1 - x0) * i / count), round(y0 + (y1 - y0) * i / count))
            for i in range(1, count + 1)
        ]
    return dots


def _binned(values: list[float | None], width: int) -> list[float | None]:
    bins: list[float | None] = []
    for i in range(width):
        part = values[i * len(values) // width : (i + 1) * len(values) // width]
        finite = [v for v in part if v is not None and math.isfinite(v)]
        bins.append(sum(finite) / len(finite) if finite else None)
    return bins


def _cells(text: str, style: str) -> list[PlotCell]:
    return [PlotCell(char, style) for char in text]
