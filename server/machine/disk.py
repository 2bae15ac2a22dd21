"""Disk space of the file systems that hold the data directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

FULL_BYTES = 8_000_000  # less than the database and its log need for a request


class DiskSpace(NamedTuple):
    """Bytes."""

    total: int
    free: int

    @property
    def is_full(self) -> bool:
        return self.free < FULL_BYTES


def space(path: Path) -> DiskSpace:
    """Raises OSError."""
    found = shutil.disk_usage(path)
    return DiskSpace(found.total, found.free)


def least_free(*paths: Path) -> int | None:
    """Free bytes on the fullest of the disks of these paths; None if none can be asked.

    A path that does not exist yet counts as its nearest parent.
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
