"""Hashes a large corpus in a background process, file by file.

`python -m trainer.data.hashing <data.json> <parent pid>` hashes files identified by a sample, and
exits when its parent exits; the next one continues at the first unhashed file. Its state is stored
beside its results, for every run on the same corpus:
{"total_bytes", "done_bytes", "changed": [[path, why], ...], "touched": [path, ...], "finished",
"pid"}.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.contract import durable
from trainer.data import fingerprints
from trainer.data import prepared as prepared_data
from trainer.data.errors import DataChanged
from trainer.data.fingerprints import FileStat
from trainer.data.prepared import DataFile, PreparedData, gone, verify_file


class HashingStopped(Exception):
    """Hashing was stopped: its parent process has exited."""


def state_path(prepared: PreparedData) -> Path:
    return _folder(prepared) / f"hashing-{prepared.identity()[:16]}.state"


def read_state(prepared: PreparedData) -> dict[str, Any] | None:
    """Last report of the hashing process; None before the first."""
    try:
        return json.loads(state_path(prepared).read_bytes())
    except (OSError, ValueError):
        return None


def live_state(prepared: PreparedData) -> dict[str, Any] | None:
    """The state of a hashing process that is running now, whichever run started it.

    The state of an earlier one may be about files that were repaired since.
    """
    try:
        with lock_path(prepared).open("r") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                state = read_state(prepared)
                return state if state and str(state["pid"]) == lock.read() else None
    except OSError:
        pass
    return None


def lock_path(prepared: PreparedData) -> Path:
    """Lock of the hashing process, which contains its pid."""
    return state_path(prepared).with_suffix(".lock")


def left_to_hash(prepared: PreparedData) -> list[DataFile]:
    """The files named by a sample whose whole content is not recorded, in reading order."""
    sampled = [file for file in [*prepared.train_files, *prepared.val_files] if file.sampled]
    folder = prepared.corpora_dir
    return [f for f in sampled if fingerprints.recorded(folder, f.seen) is None]


def hash_all(prepared: PreparedData, stop: Callable[[], bool]) -> dict[str, Any]:
    """Hash the remaining files; returns the last state. Raises HashingStopped between chunks."""
    left = left_to_hash(prepared)
    total = sum(file.size for file in [*prepared.train_files, *prepared.val_files] if file.sampled)
    done = total - sum(file.size for file in left)
    changed: list[list[str]] = []
    touched: list[str] = []

    def report(finished: bool) -> dict[str, Any]:
        state = {
            "total_bytes": total,
            "done_bytes": done,
            "changed": changed,
            "touched": touched,
            "finished": finished,
            "pid": os.getpid(),
        }
        durable.write_shared(state_path(prepared), json.dumps(state).encode())
        return state

    report(finished=False)
    for file in left:
        try:
            if _hash(file, prepared.corpora_dir, stop):
                touched.append(file.path)
        except DataChanged as error:
            changed.append([file.path, error.why])
        done += file.size
        report(finished=False)
    return report(finished=True)


def _hash(file: DataFile, corpora_dir: Path, stop: Callable[[], bool]) -> bool:
    """Hash a file and record it; returns True if it was touched since the run was prepared.

    A touched file has the same sample; from then on every byte counts. Raises DataChanged,
    HashingStopped.
    """

    def step(num_bytes: int) -> None:
        if stop():
            raise HashingStopped

    verify_file(file, deep=True, corpora_dir=corpora_dir)
    try:
        before = FileStat.of(file.path)
        sha256 = fingerprints.full(file.path, step)
        after = FileStat.of(file.path)
    except OSError as error:
        raise gone(error, file.path, "read") from None
    if before != after:
        raise DataChanged(file.path, "was written to while it was hashed")
    fingerprints.record(corpora_dir, file.seen, sha256)
    return before != file.seen


def main(arguments: list[str]) -> int:
    """Run the hashing process, one per corpus; a second one exits at once."""
    description = Path(arguments[0]).absolute()
    prepared = prepared_data.read(description, description.parents[2])
    parent = int(arguments[1]) if len(arguments) > 1 else os.getppid()
    _folder(prepared).mkdir(parents=True, exist_ok=True)
    with lock_path(prepared).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        _be_modest()
        with contextlib.suppress(HashingStopped):
            hash_all(prepared, lambda: os.getppid() != parent)
    return 0


def _be_modest() -> None:
    """Set the lowest CPU and disk priority."""
    os.nice(19)
    with contextlib.suppress(ImportError, AttributeError, OSError):
        import psutil

        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)


def _folder(prepared: PreparedData) -> Path:
    return prepared.corpora_dir / fingerprints.FOLDER


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
