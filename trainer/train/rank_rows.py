"""Rank rows and stragglers: every 30 s each rank's own compute time, wait time and device.

A rank that computes longer than the others delays all of them, and they spend the difference
waiting, so only a rank's own compute time identifies the straggler.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

from trainer.contract import events, units
from trainer.contract.ranks import RankRow
from trainer.train.session import Session

EVERY_SECONDS = 30.0
FIRST_AFTER_STEPS = 4  # the first step compiles
STRAGGLES = 1.2  # times the median
SENSED = (
    *("vram_allocated_bytes", "vram_reserved_bytes", "vram_peak_bytes", "vram_total_bytes"),
    *("power_watts", "temperature_celsius"),
)


class RankRows:
    """Gathers the rows; rank 0 reports them. watts: total power of the other ranks' devices."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._gathered_at, self._steps, self._waited = 0.0, 0, 0.0
        self._warned: set[int] = set()
        self.watts = 0.0

    def count_step(self) -> None:
        self._steps += 1

    def due(self) -> bool:
        if self._gathered_at == 0.0:
            return self._steps >= FIRST_AFTER_STEPS
        return time.monotonic() - self._gathered_at >= EVERY_SECONDS and self._steps > 0

    def gather(self) -> None:
        """Gather the rows of all ranks at one boundary."""
        session = self._session
        found = session.world.all_gather(self._own())
        rows = [RankRow.model_validate(row) for row in found]
        self._gathered_at = time.monotonic()
        self.watts = sum(row.power_watts or 0.0 for row in rows[1:])
        session.reporter.emit(events.Ranks(step=session.state.step, ranks=rows))
        for row in stragglers(rows):
            self._warn(row, rows)

    def _own(self) -> dict[str, Any]:
        session = self._session
        world, sensors = session.world, session.sensors.read()
        steps, self._steps = max(1, self._steps), 0
        waited, self._waited = world.waited_seconds - self._waited, world.waited_seconds
        return {
            **vars(world.members[world.rank]),
            "compute_seconds": session.stepper.own_seconds(),
            "waited_seconds": waited / steps,
            **{key: sensors.get(key) for key in SENSED},
        }

    def _warn(self, row: RankRow, rows: list[RankRow]) -> None:
        if row.rank in self._warned:
            return
        self._warned.add(row.rank)
        usual = statistics.median(r.compute_seconds or 0.0 for r in rows)
        self._session.reporter.emit(
            events.Notice(
                level="warning",
                code="straggler",
                message=f"rank {row.rank} ({row.device} on {row.host}) computes "
                f"{units.duration(row.compute_seconds or 0)} per step (median: "
                f"{units.duration(usual)}), and every step waits for it. Check its "
                "temperature, power limit and other programs on it",
                step=self._session.state.step,
                data={"rank": row.rank, "seconds": row.compute_seconds, "median": usual},
            )
        )


def stragglers(rows: list[RankRow]) -> list[RankRow]:
    """The ranks with an own compute time far above the median."""
    known = [row.compute_seconds for row in rows if row.compute_seconds is not None]
    if len(known) < 2:
        return []
    limit = STRAGGLES * statistics.median(known)
    return [row for row in rows if (row.compute_seconds or 0.0) > limit]
