"""Trainers: SIGKILL at random, also while they start. No run is lost, every one completes."""

from __future__ import annotations

import os
import random
import signal
import time

from sqlalchemy import select

from server.database.tables import Attempt, Point
from tests.soak.counts import Budget, Counts, Stopwatch
from tests.soak.processes import Settlement

KILLS_PER_RUN = 12
NOTICED_SECONDS = 2.0
PATIENT = {"max_attempts_without_progress": 1000}


def run(budget: float, seed: int) -> Counts:
    counts, left = Counts("trainers", seed), Budget(budget)
    draw = random.Random(seed)
    town = Settlement(step_seconds=0.004, save_every=10)
    try:
        town.start()
        while left.has_more():
            _one_run(town, counts, draw, KILLS_PER_RUN, left)
        _end(town, counts)
    finally:
        town.close()
    return counts


def control(seed: int) -> Counts:
    """The same, then one point row deleted without the program: it must be detected."""
    counts = Counts("trainers", seed)
    town = Settlement(step_seconds=0.004, save_every=10)
    try:
        town.start()
        run_id = _one_run(town, counts, random.Random(seed), 1, Budget(0))
        with town.house.db.write() as session:
            points = select(Point).where(Point.attempt_id == town.house.attempts(run_id)[-1].id)
            victim = session.scalars(points).first()
            session.delete(victim)
        _end(town, counts)
    finally:
        town.close()
    return counts


def _one_run(
    town: Settlement, counts: Counts, draw: random.Random, kills: int, left: Budget
) -> str:
    number = counts.done["runs"]
    run_id = town.house.create(f"run-{number}", steps=150, recovery=PATIENT)
    counts.add("runs")
    for _ in range(kills):
        if town.house.run(run_id).state == "completed":
            break
        if draw.random() < 0.75:  # mostly while it steps: a start takes longer than that
            town.sees(lambda: _has_begun(town, run_id), 10)
        time.sleep(draw.uniform(0.0, 0.4))
        _kill(town, counts, run_id)
        if left.is_over and kills > 1:
            break
    counts.expect(town.completes(run_id), f"run {number} was lost: {town.house.picture()[-600:]}")
    return run_id


def _kill(town: Settlement, counts: Counts, run_id: str) -> None:
    if not town.sees(lambda: town.trainer(run_id), 10):
        return
    found = town.trainer(run_id)
    if found is None:
        return
    pid, attempt = found
    with Stopwatch() as watch:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        counts.add("kills")
        place = town.place(attempt)
        counts.add("of them past a first step", town.has_stepped(attempt))
        counts.say(f"killed {pid} at {place}")
        if "ended" in place:
            return
        row = _closed(town, attempt)
    _expect_noticed(counts, attempt, row, watch.seconds)


def _closed(town: Settlement, attempt: Attempt) -> Attempt | None:
    """The row of an attempt once the daemon has closed it; None if not within 10 s."""

    def closed() -> Attempt | None:
        rows = town.house.attempts(attempt.run_id)
        return next((a for a in rows if a.id == attempt.id and a.is_over), None)

    town.sees(closed, 10)
    return closed()


def _expect_noticed(counts: Counts, attempt: Attempt, row: Attempt | None, seconds: float) -> None:
    """Check that the daemon closed the attempt as crashed by SIGKILL, soon enough."""
    counts.longest("until a kill was noticed", seconds)
    counts.expect(seconds <= NOTICED_SECONDS, f"a kill was noticed after {seconds:.2f} s")
    said = (row.outcome, row.message) if row else ("nothing", "")
    is_right = said[0] == "crashed" and "SIGKILL" in said[1]
    counts.expect(is_right, f"attempt {attempt.number}, killed: {said}")
    counts.add("kills noticed", is_right)


def _has_begun(town: Settlement, run_id: str) -> bool:
    """True if the newest attempt is past its start, or the run has ended."""
    if town.house.run(run_id).state == "completed":
        return True
    return town.house.last(run_id, lambda a: a.start_step is not None and not a.is_over) is not None


def _end(town: Settlement, counts: Counts) -> None:
    town.kill()
    town.audit(counts)
    for run in town.house._run_ids():
        town.house.check(run)
