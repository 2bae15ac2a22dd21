"""Holds on checkpoints: retention does not remove a checkpoint while a job reads it.

A hold is a small file beside the checkpoint that names the job. It is valid while the job holds the
lock of its directory, and for a grace period before that, while the job starts.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from trainer.contract import rundir

STARTING_SECONDS = 120.0  # until the job holds its lock: torch may take a minute to load
_HOLD = ".held-"
_BETWEEN = "--"


def hold(checkpoints: Path, name: str, job_id: str) -> bool:
    """Hold the checkpoint for the job; returns False, holding nothing, if it does not exist.

    Raises OSError.
    """
    if not checkpoints.is_dir():
        return False
    path = checkpoints / f"{_HOLD}{name}{_BETWEEN}{job_id}"
    path.touch()
    if (checkpoints / name).is_dir():
        return True
    path.unlink(missing_ok=True)
    return False


def release(checkpoints: Path, job_id: str) -> None:
    """Release every hold of the job."""
    for path in _holds(checkpoints):
        if path.name.endswith(f"{_BETWEEN}{job_id}"):
            with suppress(OSError):
                path.unlink()


def is_held(checkpoints: Path, name: str) -> bool:
    """True if a job that is starting or running reads the checkpoint."""
    mine = f"{_HOLD}{name}{_BETWEEN}"
    return any(path.name.startswith(mine) and _counts(path) for path in _holds(checkpoints))


def _holds(checkpoints: Path) -> list[Path]:
    try:
        names = os.listdir(checkpoints)
    except OSError:
        return []
    return [checkpoints / name for name in names if name.startswith(_HOLD)]


def _counts(path: Path) -> bool:
    """True if the hold is valid; removes one whose job never started or ended with its daemon."""
    try:
        age = time.time() - path.stat().st_mtime
    except OSError:
        return False
    job = path.parents[3] / "jobs" / path.name.rpartition(_BETWEEN)[2]
    if 0 <= age < STARTING_SECONDS or rundir.is_held(job / rundir.LOCK):
        return True
    path.unlink(missing_ok=True)
    return False
