"""Fence: a superseded attempt cannot commit a checkpoint, even if its process is still running.

A checkpoint is written into attempts/NNNN/staging, and the rename of that directory commits it. A
newer attempt renames the staging of older ones away and puts a file in its place. Both are single
operations by name in one directory, which the file server serializes: on a network file system the
listing of `attempts/` may be a minute old, so that a trainer on a node that was presumed dead would
not see its successor.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from trainer.contract.rundir import parse_attempt_name

STAGING = "staging"
_AWAY = ".superseded"


class Fenced(Exception):
    """A newer attempt of this run exists: this one may no longer commit anything."""


def staging(checkpoints: Path, attempt: int) -> Path | None:
    """Directory in which this attempt writes a checkpoint; None if it is on another disk than the
    checkpoints or does not exist (an import has none)."""
    place = checkpoints.parent / "attempts" / f"{attempt:04d}"
    try:
        same = place.stat().st_dev == checkpoints.stat().st_dev
    except OSError:
        return None
    return place / STAGING if same else None


def make(temp: Path) -> None:
    """An empty directory to write into. Raises Fenced, OSError."""
    shutil.rmtree(temp, ignore_errors=True)
    try:
        temp.mkdir()
    except FileExistsError:
        _refuse_if_shut(temp)
        raise


def commit(temp: Path, path: Path) -> None:
    """Commit the directory by renaming it. Raises Fenced, OSError."""
    try:
        os.rename(f"{temp}{os.sep}", path)  # the separator: a file is never committed
    except OSError:
        _refuse_if_shut(temp)
        raise
    if not path.is_dir():  # the file, which a cache still took for a directory
        path.unlink(missing_ok=True)
        raise Fenced(f"a newer attempt has taken over: {temp} is fenced off")


def shut_out(run_dir: Path, attempt: int) -> list[str]:
    """Fence off every older attempt from committing, and remove its unfinished files.

    Returns the removed names. Reports an attempt whose directory cannot be changed.
    """
    swept: list[str] = []
    for name in _names(run_dir / "attempts"):
        number = parse_attempt_name(name)
        if number is None or number >= attempt:
            continue
        place = run_dir / "attempts" / name
        try:
            _shut(place, attempt)
        except OSError as error:
            print(f"attempt {number} could not be fenced off: {error}", file=sys.stderr)
        for left in place.glob(f"{STAGING}{_AWAY}*"):
            shutil.rmtree(left, ignore_errors=True)
            swept.append(f"{name}/{left.name}")
    return swept


def check(run_dir: Path, attempt: int) -> None:
    """Raises Fenced once a newer attempt has fenced this one off."""
    _refuse_if_shut(run_dir / "attempts" / f"{attempt:04d}" / STAGING)


def refuse_if_succeeded(run_dir: Path, attempt: int) -> None:
    """Raises Fenced if the directory of a newer attempt is listed, OSError if the listing fails."""
    attempts = run_dir / "attempts"
    if not attempts.is_dir():
        return
    numbers = (parse_attempt_name(name) for name in os.listdir(attempts))
    newest = max((number for number in numbers if number is not None), default=0)
    if newest > attempt:
        raise Fenced(f"attempt {newest} has taken over from attempt {attempt}")


def _shut(place: Path, attempt: int) -> None:
    """Repeat until the file exists: the older trainer may recreate its directory in between."""
    while not (place / STAGING).is_file():
        with suppress(FileNotFoundError):
            os.rename(f"{place / STAGING}{os.sep}", place / f"{STAGING}{_AWAY}-{attempt:04d}")
        try:
            fd = os.open(place / STAGING, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            shutil.rmtree(place / f"{STAGING}{_AWAY}-{attempt:04d}", ignore_errors=True)
            continue
        os.write(fd, f"attempt {attempt} has taken over\n".encode())
        os.close(fd)


def _refuse_if_shut(temp: Path) -> None:
    with suppress(OSError):
        if temp.is_file():
            raise Fenced(f"{temp.read_text().strip() or 'a newer attempt has taken over'}")


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []
