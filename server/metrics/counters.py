"""Monotonic counters for Prometheus, stored in rows: a replay or a restart never resets them.

They change in the transaction that applies what they count, under the run's name, and stay when
the run is deleted. A histogram is one row a bucket.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

TOKENS = "tokens_processed_total"
STEPS = "steps_processed_total"
LOST_STEPS = "lost_steps_total"
RESTARTS = "restarts_total"
YIELDS = "yields_total"
WAITING_SECONDS = "yield_waiting_seconds_total"
WITH_REASON = (
    RESTARTS,
    YIELDS,
    WAITING_SECONDS,
)  # their label is a reason; they have a line for each that occurred
ENERGY = "energy_joules_total"
CHECKPOINT_BYTES = "checkpoint_bytes_total"
STEP_SECONDS = "step_duration_seconds"
SAVE_SECONDS = "checkpoint_save_seconds"

BUCKETS: dict[str, tuple[float, ...]] = {
    STEP_SECONDS: (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 1.5, 2, 3, 5, 10, 30, 60, 300),
    SAVE_SECONDS: (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
}


class Tally:
    """Additions gathered in memory and written together. Keys: (name, run, label)."""

    def __init__(self) -> None:
        self._added: dict[tuple[str, str, str], float] = defaultdict(float)

    def add(self, name: str, run: str, value: float, label: str = "") -> None:
        if value > 0:
            self._added[name, run, label] += value

    def observe(self, name: str, run: str, value: float) -> None:
        """One observation of a run's histogram: its own bucket, the sum and the count."""
        bounds = BUCKETS[name]
        place = bisect_left(bounds, value)
        bound = f"{bounds[place]:g}" if place < len(bounds) else "+Inf"
        self._added[f"{name}_bucket", run, bound] += 1
        self._added[f"{name}_sum", run, ""] += value
        self._added[f"{name}_count", run, ""] += 1

    def write(self, session: Session) -> None:
        if self._added:
            session.connection().exec_driver_sql(
                "INSERT INTO counters (name, run, label, value) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (name, run, label) DO UPDATE SET value = value + excluded.value",
                [(*key, value) for key, value in self._added.items()],
            )
        self._added.clear()


def rename(session: Session, before: str, after: str) -> None:
    """Rename a run's counters from `before` to `after`; a deleted run that had this name
    has left its totals there, which never go back, so the two are added."""
    held = session.connection().exec_driver_sql(
        "DELETE FROM counters WHERE run = ? RETURNING name, label, value", (before,)
    )
    tally = Tally()
    for name, label, value in held.all():
        tally.add(name, after, value, label)
    tally.write(session)


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


def observed(session: Session, runs: Sequence[str]) -> dict[tuple[str, str], float]:
    """{(histogram, run): number of observations}: what has changed when it has."""
    query = (
        "SELECT name, run, value FROM counters WHERE name IN (SELECT value FROM json_each(?)) "
        "AND run IN (SELECT value FROM json_each(?))"
    )
    counts = {f"{name}_count": name for name in BUCKETS}
    given = json.dumps(list(counts)), json.dumps(list(runs))
    rows = session.connection().exec_driver_sql(query, given)
    return {(counts[name], run): value for name, run, value in rows}


def histograms(session: Session, runs: Sequence[str]) -> dict[str, dict[str, Histogram]]:
    """{name: {run: histogram}} of the runs that have been observed."""
    known = dict.fromkeys(runs)
    query = (
        "SELECT name, run, label, value FROM counters "
        "WHERE run IN (SELECT value FROM json_each(?)) AND name IN (SELECT value FROM json_each(?))"
    )
    given = json.dumps(list(known)), json.dumps(_HISTOGRAM_ROWS)
    held: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    for name, run, label, value in session.connection().exec_driver_sql(query, given):
        held[name, run][label] = value
    return {
        name: {run: _histogram(name, run, held) for run in known if (f"{name}_count", run) in held}
        for name in BUCKETS
    }


def _histogram(name: str, run: str, held: dict[tuple[str, str], dict[str, float]]) -> Histogram:
    own, total, buckets = held.get((f"{name}_bucket", run), {}), 0.0, []
    for bound in _BOUNDS[name]:
        total += own.get(bound, 0.0)
        buckets.append((bound, total))
    return Histogram(buckets, held[f"{name}_sum", run].get("", 0.0), held[f"{name}_count", run][""])


_HISTOGRAM_ROWS = [f"{name}_{part}" for name in BUCKETS for part in ("bucket", "sum", "count")]
_BOUNDS = {name: [*(f"{bound:g}" for bound in BUCKETS[name]), "+Inf"] for name in BUCKETS}
