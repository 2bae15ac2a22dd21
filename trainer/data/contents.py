"""The content of files that are used where they lie: size, times and a name by their content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from trainer.data import durable
from trainer.data.prepared import DataFile

Progress = Callable[[float, str], None]


def describe(paths: list[Path], corpora_dir: Path, progress: Progress) -> list[DataFile]:
    """Each file as it is now, its sha256 remembered for as long as its stat stays.

    `progress(fraction, words)` after each file.
    """
    total, done = sum(path.stat().st_size for path in paths) or 1, 0
    found = []
    for path in paths:
        found.append(_described(path, corpora_dir))
        done += found[-1].size
        progress(done / total, f"read {path.name}")
    return found


def _described(path: Path, corpora_dir: Path) -> DataFile:
    stat = path.stat()
    seen = [str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    name = hashlib.sha256(json.dumps(["bytes", *seen]).encode()).hexdigest()
    memo = corpora_dir / "known" / f"{name}.json"
    if memo.exists():
        try:
            return DataFile.model_validate_json(memo.read_bytes())
        except ValueError:
            pass  # a damaged memo is no more than work to do again
    found = DataFile(
        path=str(path.absolute()),
        size=stat.st_size,
        sha256=durable.sha256_of(path),
        mtime_ns=stat.st_mtime_ns,
        inode=stat.st_ino,
        ctime_ns=stat.st_ctime_ns,
    )
    durable.write_bytes(memo, found.model_dump_json().encode())
    return found
