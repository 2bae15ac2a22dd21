"""Prometheus metrics of the daemon and its runs.

Counters come from rows, so that neither a replay nor a restart moves them back. Labels are a fixed
list; at most MAX_RUNS runs are shown, and how many were left out is counted.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.exposition import generate_latest
from sqlalchemy.orm import Session

from server.database.db import Database
from server.database.migrate import version
from server.metrics import counters
from server.prometheus import rows, text

METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE", "PUT", "OPTIONS"})


class Metrics:
    """The metrics of one app, in a registry of its own. Not shared between apps."""

    def __init__(self, data_dir: Path) -> None:
        self.registry = CollectorRegistry()
        self._data_dir = data_dir
        self._known = rows.Known({}, {})
        self._histograms: dict[tuple[str, str], tuple[float, str]] = {}  # with its observations
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "traind_http_requests", "HTTP requests", ["method", "route", "status"],
            registry=self.registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "traind_http_request_duration_seconds", "Time to answer an HTTP request", ["route"],
            registry=self.registry, buckets=(0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 1, 5),
        )  # fmt: skip
        self._dropped = Counter(
            "traind_metrics_dropped", "Runs left out of scrapes because there were too many",
            registry=self.registry,
        )  # fmt: skip

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """One answered request; route is a template, never a path as it came."""
        method = method if method in METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def _keep_histograms(self, session: Session, names: list[str]) -> None:
        """Refresh the cached histogram lines of runs with new observations."""
        counts = counters.observed(session, names)
        known = {key: kept for key, kept in self._histograms.items() if key in counts}
        changed = {key for key, n in counts.items() if key not in known or known[key][0] != n}
        fresh = counters.histograms(session, sorted({run for _, run in changed}))
        for name, run in changed:
            lines = text.of_histogram(name, run, fresh[name][run])
            known[name, run] = counts[name, run], lines
        self._histograms = known

    def scrape(self, db: Database, now: float) -> bytes:
        """The scrape of GET /metrics, in Prometheus' text format."""
        with db.read() as session:
            runs = rows.runs(session, now, self._known)
            left_out = rows.how_many(session, now) - len(runs)
            names = [run.name for run in runs]
            counted = rows.counted(session, names)
            self._keep_histograms(session, names)
            unread = rows.unread(session)
        if left_out > 0:
            self._dropped.inc(left_out)
        lines = [
            *text.of_runs(runs),
            *text.of_counters(counted),
            *text.of_histograms({key: lines for key, (_, lines) in self._histograms.items()}),
            *text.of_daemon(
                disk_free=shutil.disk_usage(self._data_dir).free,
                wal_bytes=db.wal_bytes,
                lag_seconds=max((rows.lag(self._data_dir, *w, now) for w in unread), default=0.0),
                version=version(),
            ),
        ]
        return "".join(lines).encode() + generate_latest(self.registry)
