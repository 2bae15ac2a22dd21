"""The daemon with a long history: ingestion, memory, idle cost, and polled answers.

A database of RUNS runs; one of them has STEPS steps and is read while records are ingested.
"""

from __future__ import annotations

import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from sqlalchemy import select

from server.database import tables
from server.database.db import Database
from server.domain import runs
from server.ingestion import ingest
from server.queries import curves, eta, run_views
from server.settings import Settings
from tests.bench import bars
from trainer.contract import events, journal
from trainer.contract.plan import PlanContext

RUNS, STEPS = 10, 20_000


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else STEPS
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder))
        db = Database.open(settings)
        attempts = [_run(db, settings, f"run-{i}", steps) for i in range(RUNS)]
        if hasattr(os, "sched_setaffinity"):  # one core, whatever there is
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        began = time.perf_counter()
        records = _ingest(db, settings, attempts)
        took = time.perf_counter() - began
        print(f"ingest: {records:,} records of {RUNS} runs, {steps:,} steps each")
        bars.at_least("ingest on one core, 10 runs in turn", records / took, 2_000, "records/s")
        _poll(db, steps)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        size = settings.paths.database.stat().st_size / 1e6
        print(f"peak memory of this process {memory:.0f} MB; database {size:.0f} MB")
        db.close()


def _run(db: Database, settings: Settings, name: str, steps: int) -> int:
    with db.write() as session:
        body = {"name": name, "preset": "rtx4070-d12", "horizon": {"steps": 200_000}}
        run = runs.create(session, body, context=PlanContext(), now=time.time())
        attempt = runs.next_attempt(session, run, device="cpu", now=time.time())
        session.flush()
        number, run_id, token = attempt.number, run.id, attempt.token
        execution_id = attempt.execution_id
    folder = settings.paths.run(run_id).attempt(number)
    folder.mkdir(parents=True)
    writer = journal.Writer.create(
        folder / "outbox.jsonl", journal.JournalHeader(run_id, number, token)
    )
    writer.append(events.Resumed(step=0, checkpoint=None, tokens_seen=0).model_dump(mode="json"))
    for step in range(steps):
        writer.append(
            events.Step(
                step=step, loss=4 - step / steps, loss_smooth=4 - step / steps, lr_multiplier=1.0,
                momentum=0.97, weight_decay=0.1, grad_norm=0.5, tokens=65_536, seconds=1.18,
            ).model_dump(mode="json")
        )  # fmt: skip
    writer.close()
    return execution_id


def _ingest(db: Database, settings: Settings, attempts: list[int]) -> int:
    """Ingest everything, a batch of each run in turn, as the supervisor does."""
    total, left = 0, list(attempts)
    while left:
        results = [(a, ingest.ingest(db, a, settings.paths)) for a in left]
        total += sum(result.applied for _, result in results)
        left = [attempt for attempt, result in results if result.more]
    return total


def _poll(db: Database, steps: int) -> None:
    def timed(call) -> list[float]:
        took = []
        for _ in range(100):
            began = time.perf_counter()
            call()
            took.append((time.perf_counter() - began) * 1e3)
        return sorted(took)

    def progress() -> None:
        with db.read() as session:
            eta.progress(session, session.scalars(select(tables.Run)).first())  # type: ignore[arg-type]

    def metrics() -> None:
        with db.read() as session:
            run = run_views.get_run(session, "run-0")
            curves.metrics(session, run, keys=["loss"], max_points=1000)

    for name, call in (("progress", progress), (f"metrics of {steps:,} steps", metrics)):
        took = timed(call)
        print(f"{name}: median {statistics.median(took):.1f} ms, p99 {took[98]:.1f} ms")


if __name__ == "__main__":
    main()
