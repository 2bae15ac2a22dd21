"""Unix socket addresses for paths longer than the kernel accepts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_BYTES = 103  # macOS; Linux takes 107


@contextmanager
def address(path: Path) -> Iterator[str]:
    """Address to bind or connect to for the socket at `path`, valid within the context.

    A path that is too long is reached through its open directory, if the system has /proc. Raises
    OSError if the directory does not exist.
    """
    if len(os.fsencode(path)) <= MAX_BYTES or not hasattr(os, "O_PATH"):
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
