"""Ranks of a run on several devices: their rows, and the total memory of their devices."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from server.database import tables
from server.schemas.progress import RankView, Vram


def rows(run: tables.Run) -> list[RankView]:
    """Rows of the newest attempt's ranks, as last reported."""
    rows, seen_at = run.progress.get("ranks", ()), run.progress.get("ranks_at", 0.0)
    return [RankView(**row, seen_at=seen_at) for row in rows]


def vram(view: Mapping[str, Any]) -> dict[str, int | None]:
    """Device memory by kind: of all ranks together, or of the one process."""
    ranks = view.get("ranks", ())
    return {
        kind: _sum(rank.get(key) for rank in ranks) if ranks else view.get(key)
        for kind in Vram.model_fields
        for key in (f"vram_{kind}_bytes",)
    }


def _sum(values: Iterable[int | None]) -> int | None:
    """The sum; None if one of the values is unknown."""
    known = list(values)
    return None if None in known else sum(value for value in known if value is not None)
