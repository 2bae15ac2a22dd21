"""Condition of an active run that makes no steps: full disk, or silent trainer.

The database may be on the disk that is full, so nothing here depends on a row that had to be
written when it filled up: the trainer's lock file, the free space and the clock are read instead.
"""

from __future__ import annotations

import json
from pathlib import Path

from server.database import tables
from server.domain.states import YIELDS, State
from server.machine import disk
from server.schemas.runs import Condition
from trainer.contract import units
from trainer.contract.reasons import Reason
from trainer.contract.rundir import LOCK, RunDir

SILENT_STEPS = 10  # usual step times without a step that are reported; twenty are a stall
SILENT_AT_LEAST_SECONDS = 15.0

# States in which no process of the run is alive and one is started as soon as possible.
_TO_START = frozenset({State.queued, State.preparing, State.recovering})


def condition(
    paths: RunDir, run: tables.Run, attempt: tables.Attempt | None, now: float
) -> Condition | None:
    """The condition of a run; None if it makes steps, or waits for another reason."""
    if run.state in _TO_START:
        return _full(paths.root, run, "it starts") if _finds_no_room(paths.root, run) else None
    if run.state != State.running or attempt is None:
        return None
    if run.reason == Reason.disk_full or _waits_for_space(paths.attempt(attempt.number)):
        return _full(paths.root, run, "training continues")
    return _silence(run, attempt, now)


def _finds_no_room(root: Path, run: tables.Run) -> bool:
    if run.reason in YIELDS:
        return False
    free = disk.least_free(root)
    return run.reason == Reason.disk_full or (free is not None and free < disk.FULL_BYTES)


def _waits_for_space(directory: Path) -> bool:
    try:
        return json.loads((directory / LOCK).read_bytes()).get("waiting") == Reason.disk_full
    except (OSError, ValueError, AttributeError):
        return False


def _full(root: Path, run: tables.Run, then: str) -> Condition:
    free = disk.least_free(root)
    left = f", {units.num_bytes(free)} left" if free is not None else ""
    message = f"Waiting for disk space{left}: {then} by itself once space is free."
    return Condition(code="disk_full", message=message, since=run.last_step_at)


def _silence(run: tables.Run, attempt: tables.Attempt, now: float) -> Condition | None:
    usual = run.progress.get("step_seconds")
    if attempt.stage != "training" or not usual or run.last_step_at is None:
        return None
    silent = now - run.last_step_at
    if silent < max(SILENT_AT_LEAST_SECONDS, SILENT_STEPS * usual):
        return None
    message = (
        f"No step for {units.duration(silent)}, {silent / usual:,.0f} × the usual "
        f"{units.duration(usual)}."
    )
    return Condition(code="silent", message=message, since=run.last_step_at)
