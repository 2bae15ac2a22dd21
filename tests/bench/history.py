"""Builds a database with long histories: `python -m tests.bench.history RUNS STEPS DIRECTORY`.

Real history of this size takes hours to ingest. Here the ingestion code processes one run's steps,
and every other run gets a copy of its rows, made inside SQLite: 100 runs of 200,000 steps in
minutes instead of hours, with the rows, rollups and live views that ingestion would have written.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.orm import Session

from server.database import tables
from server.database.db import Database
from server.domain import attempts, executions, runs, states
from server.domain.states import Desired, State
from server.ingestion import steps
from server.metrics.counters import Tally
from server.settings import Settings
from trainer.contract import events
from trainer.contract.plan import PlanContext
from trainer.contract.reasons import Reason

RUNS, STEPS = 100, 200_000
BATCH = 2_000  # steps per transaction, as in ingestion
STEP_SECONDS = 1.18
PEAK_FLOPS = 58.3e12
_COPIED = ("step", "tokens_seen", "last_step_at", "progress", "totals", "sparkline")


def build(db: Database, num_runs: int, num_steps: int) -> list[str]:
    """Create `num_runs` paused runs, `run-0` and on, with every step; returns their ids."""
    now = time.time()
    attempt_ids = [_make(db, f"run-{i}", num_steps, now) for i in range(num_runs)]
    first, *others = attempt_ids
    for low in range(0, num_steps, BATCH):
        with db.write() as session:
            _report(session, first, range(low, min(low + BATCH, num_steps)), now)
    for attempt_id in others:
        with db.write() as session:
            _copy(session, first, attempt_id)
    db.checkpoint()
    with db.write() as session:
        return [_settle(session, attempt_id, now) for attempt_id in attempt_ids]


def _make(db: Database, name: str, num_steps: int, now: float) -> int:
    """Create a run with one attempt; returns the attempt's id."""
    body = {"name": name, "preset": "rtx4070-d12", "horizon": {"steps": max(num_steps, 1_000)}}
    with db.write() as session:
        run = runs.create(session, body, context=PlanContext(), now=now)
        attempt = attempts.next_attempt(session, run, device="cuda:0", now=now)
        attempt.device_name, attempt.peak_flops = "NVIDIA GeForce RTX 4070", PEAK_FLOPS
        attempt.start_step, attempt.started_at = 0, now - num_steps * STEP_SECONDS
        session.flush()
        return attempt.id


def _report(session: Session, attempt_id: int, numbers: range, now: float) -> None:
    attempt = session.get_one(tables.Attempt, attempt_id)
    run = session.get_one(tables.Run, attempt.run_id)
    tally = Tally()
    reported = [(now - (run.end_step - n) * STEP_SECONDS, _step(n)) for n in numbers]
    steps.add(session, run, attempt, reported, tally, is_newest=True)
    tally.write(session)


def _step(number: int) -> events.Step:
    """A step with a realistic, noisy, falling loss and every field filled in."""
    draw = random.Random(number)
    loss = 2.6 + 8 * math.exp(-number / 400) + 0.9 * math.exp(-number / 30_000)
    return events.Step(
        step=number, loss=loss + draw.gauss(0, 0.05), loss_smooth=loss, lr_multiplier=1.0,
        momentum=0.97, weight_decay=0.099, grad_norm=0.3 + 0.05 * draw.random(), tokens=65_536,
        seconds=STEP_SECONDS + 0.01 * draw.random(), vram_allocated_bytes=8_100_000_000,
        vram_reserved_bytes=9_400_000_000, vram_peak_bytes=9_100_000_000,
        vram_total_bytes=12_282_000_000, power_watts=185 + 10 * draw.random(),
        temperature_celsius=66.0, energy_joules=218.0,
    )  # fmt: skip


def _copy(session: Session, source_id: int, target_id: int) -> None:
    """Copy the ingested rows of one attempt to the attempt of another run of the same plan."""
    connection = session.connection()
    for table in (tables.Base.metadata.tables[n] for n in ("points", "rollups")):
        columns = ", ".join(f'"{c.name}"' for c in table.columns if c.name != "attempt_id")
        connection.exec_driver_sql(
            f"INSERT INTO {table.name} (attempt_id, {columns}) "
            f"SELECT ?, {columns} FROM {table.name} WHERE attempt_id = ?",
            (target_id, source_id),
        )
    source, target = (session.get_one(tables.Attempt, i) for i in (source_id, target_id))
    target.steps_done, target.last_step = source.steps_done, source.last_step
    told, run = (session.get_one(tables.Run, a.run_id) for a in (source, target))
    for name in _COPIED:
        setattr(run, name, getattr(told, name))


def _settle(session: Session, attempt_id: int, now: float) -> str:
    """End the attempt by a pause, so that no daemon looks for its process; returns the run's id."""
    attempt = session.get_one(tables.Attempt, attempt_id)
    executions.end_as_found(attempt.execution, "paused", Reason.requested, "", now)
    run = session.get_one(tables.Run, attempt.run_id)
    for state in (State.preparing, State.starting, State.running, State.pausing, State.paused):
        states.move(session, run, state, Reason.requested, now=now)
    run.queue_position, run.desired_state = None, Desired.paused
    return run.id


@contextmanager
def asked_for(about: str | None) -> Iterator[Path]:
    """A folder whose `data` has the history given on the command line: RUNS STEPS DIRECTORY.

    Created if missing; without a DIRECTORY it is removed at the end.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("runs", type=int, nargs="?", default=RUNS)
    parser.add_argument("steps", type=int, nargs="?", default=STEPS)
    parser.add_argument(
        "directory", type=Path, nargs="?", default=os.environ.get("TRAIND_BENCH_HISTORY"),
        help="kept, and used again if there [TRAIND_BENCH_HISTORY; else temporary]",
    )  # fmt: skip
    asked = parser.parse_args()
    folder: Path = asked.directory or Path(tempfile.mkdtemp(prefix="traind-bench-"))
    try:
        if not (folder / "data" / "traind.db").exists():
            _make_all(folder / "data", asked.runs, asked.steps)
        yield folder
    finally:
        if asked.directory is None:
            shutil.rmtree(folder, ignore_errors=True)


def _make_all(data_dir: Path, num_runs: int, num_steps: int) -> None:
    began = time.perf_counter()
    data_dir.mkdir(parents=True, exist_ok=True)
    db = Database.open(Settings(data_dir=data_dir))
    build(db, num_runs, num_steps)
    size = db.size_bytes / 1e9
    db.close()
    took = time.perf_counter() - began
    print(
        f"{num_runs} runs of {num_steps:,} steps: {size:.2f} GB, made in {took:.0f} s", flush=True
    )


def main() -> None:
    with asked_for(__doc__):
        pass


if __name__ == "__main__":
    main()
