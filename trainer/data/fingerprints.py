"""File fingerprints: sha256 of all bytes, or of a sample of a large file.

A corpus of hundreds of gigabytes takes most of an hour to hash, and a run need not wait for it: its
files are identified by their size and three blocks, and hashed completely in the background
(`hashing.py`). A hash is remembered while the file's stat is unchanged.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.contract import durable

SAMPLE_BYTES = 65_536  # part of every stored fingerprint
CHUNK_BYTES = 2_000 * 4_096  # whole pages, which leave the page cache after each chunk
FOLDER = "known"


@dataclass(frozen=True)
class FileStat:
    """A file's stat. If all fields are equal, the content counts as the same."""

    path: str
    size: int
    mtime_ns: int | None
    ctime_ns: int | None
    inode: int | None

    @classmethod
    def of(cls, path: str | Path) -> FileStat:
        """Raises OSError."""
        stat = os.stat(path)
        absolute = str(Path(path).absolute())
        return cls(absolute, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)


def sample(path: str | Path) -> str:
    """sha256 of the size and of the first, middle and last 65,536 bytes, which contain a parquet
    file's footer. Raises OSError."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.sha256(f"sampled {size} ".encode())
        for at in (0, max(0, size // 2 - SAMPLE_BYTES // 2), max(0, size - SAMPLE_BYTES)):
            file.seek(at)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def full(path: str | Path, step: Callable[[int], None] = lambda num_bytes: None) -> str:
    """sha256 of every byte, read past the page cache where the system allows it.

    Calls `step(bytes)` after each chunk; an exception from it ends the reading. Raises OSError.
    """
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            _forget(file.fileno())
            step(len(chunk))
    return digest.hexdigest()


def recorded(corpora_dir: Path, seen: FileStat) -> str | None:
    """The full sha256 of a file, if it was hashed with this stat; otherwise None."""
    try:
        return json.loads(_memo(corpora_dir, seen).read_bytes())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def record(corpora_dir: Path, seen: FileStat, sha256: str) -> None:
    """Record the sha256 of every byte of a file with this stat."""
    content = json.dumps({"name": Path(seen.path).name, "sha256": sha256})
    durable.write_shared(_memo(corpora_dir, seen), content.encode())


def _memo(corpora_dir: Path, seen: FileStat) -> Path:
    content = ["content", seen.path, seen.size, seen.mtime_ns, seen.ctime_ns, seen.inode]
    return corpora_dir / FOLDER / f"{hashlib.sha256(json.dumps(content).encode()).hexdigest()}.json"


def _forget(descriptor: int) -> None:
    """Drop a file from the page cache: a corpus read once must not evict the training data."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
