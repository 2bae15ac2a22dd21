"""Files used in place: size, times, and an identity by content."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from trainer.data import fingerprints
from trainer.data.fingerprints import FileStat
from trainer.data.prepared import DataFile
from trainer.data.progress import ReportProgress

HASH_FIRST_BYTES = 4_000_000_000  # a larger corpus is hashed in the background: 4 GB take seconds


def is_sampled(paths: Iterable[Path]) -> bool:
    """True if these files are too large to be hashed before a run starts.

    Decided by size alone, so that names do not depend on what was hashed before.
    """
    return sum(path.stat().st_size for path in paths) > HASH_FIRST_BYTES


def describe(
    paths: list[Path], corpora_dir: Path, sampled: bool, progress: ReportProgress
) -> list[DataFile]:
    """Describe each file: stat and identity. Calls `progress(fraction, words)` after each."""
    total, done = sum(path.stat().st_size for path in paths) or 1, 0
    found = []
    for path in paths:
        seen = FileStat.of(path)
        found.append(
            DataFile(
                path=seen.path,
                size=seen.size,
                sha256=name_of(seen, corpora_dir, sampled),
                sampled=sampled,
                mtime_ns=seen.mtime_ns,
                inode=seen.inode,
                ctime_ns=seen.ctime_ns,
            )
        )
        done += seen.size
        progress(done / total, f"read {path.name}")
    return found


def name_of(seen: FileStat, corpora_dir: Path, sampled: bool) -> str:
    """A file's identity: the sha256 of a sample, or of every byte, which is recorded."""
    if sampled:
        return fingerprints.sample(seen.path)
    sha256 = fingerprints.recorded(corpora_dir, seen)
    if sha256 is None:
        sha256 = fingerprints.full(seen.path)
        fingerprints.record(corpora_dir, seen, sha256)
    return sha256
