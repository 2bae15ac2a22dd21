"""Atomic file writes, and sha256 of files."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; at a clean end it is synced and takes the name.

    On an error the temporary file goes. A kill leaves one named `<name>.tmp-<pid>`, which
    `sweep` removes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_directory(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as file:
        file.write(content)


def sync_directory(path: Path) -> None:
    """Make names durable. Some platforms cannot open a directory; they need not."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def sweep(directory: Path) -> None:
    """Remove temporary files whose writer is gone."""
    for left in directory.glob("*.tmp-*"):
        writer = left.name.rpartition("-")[2]
        if writer.isdigit() and not alive(int(writer)):
            left.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """Whether another process of this id lives; one's own leftovers count as left."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return pid != os.getpid()


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
