"""Disk space of the file systems that hold the data directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

FULL_BYTES = 8_000_000  # below this, a request may not fit into the database and its WAL


class DiskSpace(NamedTuple):
    """Size and free space of a file system, in bytes."""

    total: int
    free: int

    @property
    def is_full(self) -> bool:
        return self.free < FULL_BYTES


def space(path: Path) -> DiskSpace:
    """Disk space of the file system of `path`. Raises OSError."""
    found = shutil.disk_usage(path)
    return DiskSpace(found.total, found.free)


def least_free(*paths: Path) -> int | None:
    """Least free space of the disks of these paths, in bytes; None if none is readable.

    For a path that does not exist, the nearest existing parent counts.
    """
    found = [free for path in paths if (free := _free(path)) is not None]
    return min(found, default=None)


def _free(path: Path) -> int | None:
    for place in (path, *path.parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            return None
    return None
