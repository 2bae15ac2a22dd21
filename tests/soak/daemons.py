"""Daemons: kill -9 under ingestion while a trainer reports thousands of records. Exactly once."""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

from server.database.db import Database
from server.database.tables import Attempt
from server.settings import Settings
from tests.e2e.real_daemon import RealDaemon
from tests.server import reporting
from tests.server.house import launcher
from tests.soak import books
from tests.soak.counts import Budget, Counts, Stopwatch
from tests.soak.processes import Settlement

PLACES = ("ingest.rows", "ingest.cursor", "db.commit", "ingest.committed")
ADOPTION_SECONDS = 1.0
KILLS_PER_RUN = 15
WHOLE_SHARE = 0.4  # maximum share of the time for the complete daemon
FAST = {"step_seconds": 0.0005, "save_every": 500}


def run(budget: float, seed: int) -> Counts:
    """First the complete daemon with its HTTP, then its internals, which start faster."""
    counts, left = Counts("daemons", seed), Budget(budget)
    draw = random.Random(seed)
    _whole(counts, draw, 3 if budget < 300 else 20, left)
    while left.has_more():
        _inside(counts, draw, left)
    return counts


# --- the whole daemon ----------------------------------------------------------------------------


def _whole(counts: Counts, draw: random.Random, kills: int, left: Budget) -> None:
    """Once /readyz returns 200, the trainer's reports must be read within a second."""
    with tempfile.TemporaryDirectory(prefix="soak-whole-") as folder:
        manners = '{"*": {"step_seconds": 0.002, "save_every": 500}}'
        python = launcher(Path(folder))
        daemon = RealDaemon(Path(folder), TRAIND_TRAINER_PYTHON=python, FAKE=manners)
        made = daemon.client.create_run({"name": "whole", "horizon": {"steps": 1_000_000}})
        daemon.until("whole", lambda now: now.step > 100)
        for _ in range(kills):
            time.sleep(draw.uniform(0.0, 0.8))
            reached = daemon.client.progress("whole").step
            daemon.kill()
            time.sleep(draw.uniform(0.0, 0.5))
            daemon.start()
            seconds = _adopted(daemon, reached)
            counts.add("kills")
            counts.longest("re-adoption", seconds)
            counts.say(f"whole daemon killed past step {reached}, re-adopted in {seconds:.3f} s")
            counts.expect(seconds <= ADOPTION_SECONDS, f"re-adoption took {seconds:.2f} s")
            if left.used > WHOLE_SHARE * left.seconds:
                break
        counts.expect(len(daemon.client.attempts(made.id)) == 1, "a trainer was started anew")
        daemon.end()
        _audit(daemon.data_dir, counts)


def _adopted(daemon: RealDaemon, reached: int) -> float:
    """Seconds after ready until steps beyond `reached` are in the rows."""
    with Stopwatch() as watch:
        daemon.until("whole", lambda now: now.state == "running" and now.step > reached, 20)
    return watch.seconds


def _audit(data_dir: Path, counts: Counts) -> None:
    settings = Settings(data_dir=data_dir)
    db = Database.open(settings)
    try:
        for words in books.differences(db, settings.paths):
            counts.fail(words)
    finally:
        db.close()


# --- its inside ----------------------------------------------------------------------------------


def _inside(counts: Counts, draw: random.Random, left: Budget) -> None:
    town = Settlement(**FAST)
    try:
        run_id = town.house.create("fast", steps=3_000 + 1_000 * KILLS_PER_RUN)
        for _ in range(KILLS_PER_RUN):
            _one_kill(town, counts, draw)
            if left.is_over or town.house.run(run_id).state == "completed":
                break
        town.start()
        if not town.completes(run_id, 120):
            counts.fail(f"the run was lost: {town.house.picture()[-600:]}")
        counts.add("runs")
        counts.add("records", sum(a.execution.outbox_seq for a in town.house.attempts(run_id)))
        counts.expect(len(town.house.attempts(run_id)) == 1, "a trainer was started anew")
        town.kill()
        town.audit(counts)
    finally:
        town.close()


def _one_kill(town: Settlement, counts: Counts, draw: random.Random) -> None:
    """kill -9 after a random time, or at a random pass of a place inside ingestion."""
    if draw.random() < 0.5:
        seconds = draw.uniform(0.0, 0.6)
        town.start()
        time.sleep(seconds)
        town.kill()
        counts.say(f"killed {seconds:.2f} s after it was ready")
    else:
        fail = f"{draw.choice(PLACES)}={draw.randrange(1, 12)}*off->1*kill"
        town.start(fail)
        reached = town.sees(town.is_dead, 5)
        town.kill()
        counts.say(f"killed by {fail}" if reached else f"killed: {fail} was not reached in time")
        counts.add("of them inside ingestion", reached)
    counts.add("kills")


# --- control -------------------------------------------------------------------------------------


def control_by_kill(seed: int) -> Counts:
    """A daemon that commits its cursor separately from the rows, killed between the two."""
    counts = Counts("daemons", seed)
    town = Settlement(**FAST)
    try:
        run_id = town.house.create("apart", steps=2_000)
        town.start("ingest.apart=4*off->1*kill", "cursor_apart")
        counts.expect(town.sees(town.is_dead, 60), "the place was never reached")
        town.kill()
        town.start()
        counts.expect(town.completes(run_id), "it never completed")
        town.kill()
        town.audit(counts)
    finally:
        town.close()
    return counts


def control(seed: int, how: str = "advanced") -> Counts:
    """A cursor that does not advance with its rows, as if committed separately."""
    counts = Counts("daemons", seed)
    with tempfile.TemporaryDirectory(prefix="soak-cursor-") as folder:
        settings = Settings(data_dir=Path(folder))
        db = Database.open(settings)
        try:
            reporter = reporting.attempt(db, settings, reporting.create(db, steps=200))
            reporter.begin()
            reporter.ingest()
            early = _cursor(db, reporter.attempt_id)
            reporter.steps(0, 100)
            reporter.save(100)
            if how == "advanced":
                size = reporter.outbox.stat().st_size
                _set_cursor(db, reporter.attempt_id, (103, size))
            else:
                reporter.ingest()
                _set_cursor(db, reporter.attempt_id, early)
            reporter.steps(100, 200)
            reporter.ingest()
            for words in books.differences(db, settings.paths):
                counts.fail(words)
        finally:
            db.close()
    return counts


def _cursor(db: Database, attempt_id: int) -> tuple[int, int]:
    with db.read() as session:
        row = session.get_one(Attempt, attempt_id)
        return row.execution.outbox_seq, row.execution.outbox_offset


def _set_cursor(db: Database, attempt_id: int, cursor: tuple[int, int]) -> None:
    with db.write() as session:
        row = session.get_one(Attempt, attempt_id)
        row.execution.outbox_seq, row.execution.outbox_offset = cursor
