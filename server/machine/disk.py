"""Disk space of the file system that holds the data directory."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple


class DiskSpace(NamedTuple):
    """Bytes."""

    total: int
    free: int


def space(path: Path) -> DiskSpace:
    """Raises OSError."""
    found = shutil.disk_usage(path)
    return DiskSpace(found.total, found.free)
