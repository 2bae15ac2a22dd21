"""Sparkline of a run: at most 64 means of the loss, stored with the run.

{"base": first step, "size": steps per bin, "bins": [[count, sum], ...]}: when the bins are full,
neighbours are merged and the size doubles, so that keeping it costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

MAX_BINS = 64


def add(line: dict[str, Any], points: Iterable[tuple[int, float | None]]) -> dict[str, Any]:
    """The line with (step, loss) pairs added; steps do not go back."""
    base, size = line.get("base"), line.get("size", 1)
    bins = [list(b) for b in line.get("bins", [])]
    for step, loss in points:
        if base is None:
            base = step
        while (step - base) // size >= MAX_BINS:
            bins, size = _halved(bins), size * 2
        index = max(0, step - base) // size
        bins.extend([0, 0.0] for _ in range(index + 1 - len(bins)))
        if loss is not None:
            bins[index][0] += 1
            bins[index][1] += loss
    return {"base": base, "size": size, "bins": bins} if base is not None else {}


def cut(line: dict[str, Any], step: int) -> tuple[dict[str, Any], tuple[int, int] | None]:
    """The line without steps from `step` on, and the steps [low, high) to be counted again.

    The bin that `step` falls into is emptied, since it cannot be split any more.
    """
    if not line or step <= line["base"]:
        return {}, None
    whole, part = divmod(step - line["base"], line["size"])
    kept = {**line, "bins": line["bins"][:whole]}
    low = line["base"] + whole * line["size"]
    return kept, ((low, step) if part else None)


def add_total(line: dict[str, Any], low: int, count: int, total: float) -> dict[str, Any]:
    """The line with a bin that begins at step `low` set to what it really holds."""
    index = (low - line["base"]) // line["size"]
    return {**line, "bins": [*line["bins"][:index], [count, total]]}


def means(line: dict[str, Any]) -> list[float | None]:
    return [total / count if count else None for count, total in line.get("bins", [])]


def _halved(bins: list[list[float]]) -> list[list[float]]:
    if len(bins) % 2:
        bins = [*bins, [0, 0.0]]
    return [[a[0] + b[0], a[1] + b[1]] for a, b in zip(bins[::2], bins[1::2], strict=True)]
