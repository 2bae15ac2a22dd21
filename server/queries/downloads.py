"""Downloads: a file is opened before the answer begins, so one deleted meanwhile is sent whole."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from server.database import tables
from server.errors import NotFound
from trainer.contract.text import printable


@dataclass(frozen=True)
class Download:
    """An open regular file. modified_at: in unix seconds; version: changes with its content."""

    file: BinaryIO
    size_bytes: int
    modified_at: float
    version: str


def opened(path: str | Path) -> Download:
    """Open a regular file, never through a link. Raises NotFound."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        raise NotFound("That file is not there (any more).") from None
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise NotFound("That file is not there (any more).")
    version = f"{status.st_size:x}-{status.st_mtime_ns:x}"
    return Download(os.fdopen(fd, "rb", buffering=0), status.st_size, status.st_mtime, version)


def path_of_export(job: tables.Job, name: str) -> Path:
    """Where a file listed in the result of an export is. Raises NotFound."""
    result = job.result or {}
    if name not in result.get("files", ()) or not isinstance(result.get("path"), str):
        raise NotFound(
            f"Job {job.id} has no file {printable(name, 200)}.",
            hint=f"GET /v1/jobs/{job.id} lists them as result.files.",
        )
    return Path(result["path"]) / name
