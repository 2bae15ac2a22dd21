"""Monotonic counters for Prometheus, stored in rows: a replay or a restart never resets them.

They change in the transaction that applies what they count, under the run's name, and stay when
the run is deleted. Histograms are kept for the whole daemon (run ""), one row a bucket.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

TOKENS = "tokens_processed_total"
STEPS = "steps_processed_total"
LOST_STEPS = "lost_steps_total"
RESTARTS = "restarts_total"
ENERGY = "energy_joules_total"
CHECKPOINT_BYTES = "checkpoint_bytes_total"
STEP_SECONDS = "step_duration_seconds"
SAVE_SECONDS = "checkpoint_save_seconds"

BUCKETS: dict[str, tuple[float, ...]] = {
    STEP_SECONDS: (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 1.5, 2, 3, 5, 10, 30, 60, 300),
    SAVE_SECONDS: (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
}


class Tally:
    """Additions gathered in memory and written at once. Keys: (name, run, label)."""

    def __init__(self) -> None:
        self._added: dict[tuple[str, str, str], float] = defaultdict(float)

    def add(self, name: str, run: str, value: float, label: str = "") -> None:
        if value > 0:
            self._added[name, run, label] += value

    def observe(self, name: str, value: float) -> None:
        """One observation of a histogram: its own bucket, the sum and the count."""
        bounds = BUCKETS[name]
        place = bisect_left(bounds, value)
        bound = f"{bounds[place]:g}" if place < len(bounds) else "+Inf"
        self._added[f"{name}_bucket", "", bound] += 1
        self._added[f"{name}_sum", "", ""] += value
        self._added[f"{name}_count", "", ""] += 1

    def write(self, session: Session) -> None:
        if self._added:
            session.connection().exec_driver_sql(
                "INSERT INTO counters (name, run, label, value) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (name, run, label) DO UPDATE SET value = value + excluded.value",
                [(*key, value) for key, value in self._added.items()],
            )
        self._added.clear()


@dataclass
class Histogram:
    """buckets: (upper bound, cumulative count), ending with ('+Inf', count)."""

    buckets: list[tuple[str, float]] = field(default_factory=list)
    sum: float = 0.0
    count: float = 0.0


def add(session: Session, name: str, run: str, value: float, label: str = "") -> None:
    tally = Tally()
    tally.add(name, run, value, label)
    tally.write(session)


def read(session: Session) -> dict[str, list[tuple[str, str, float]]]:
    """All counters but histograms: {name: [(run, label, value)]}."""
    found: dict[str, list[tuple[str, str, float]]] = defaultdict(list)
    rows = session.connection().exec_driver_sql("SELECT name, run, label, value FROM counters")
    for name, run, label, value in rows:
        if not name.startswith(tuple(BUCKETS)):
            found[name].append((run, label, value))
    return dict(found)


def histogram(session: Session, name: str) -> Histogram:
    rows = session.connection().exec_driver_sql(
        "SELECT name, label, value FROM counters WHERE run = '' AND name IN (?, ?, ?)",
        (f"{name}_bucket", f"{name}_sum", f"{name}_count"),
    )
    held = {(row[0], row[1]): row[2] for row in rows}
    total, buckets = 0.0, []
    for bound in [*(f"{b:g}" for b in BUCKETS[name]), "+Inf"]:
        total += held.get((f"{name}_bucket", bound), 0.0)
        buckets.append((bound, total))
    return Histogram(
        buckets, held.get((f"{name}_sum", ""), 0.0), held.get((f"{name}_count", ""), 0.0)
    )
