"""Atomic, durable file writes (fsync, rename): a power cut leaves the whole old or new file."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from trainer.contract import failpoint

OWNER_ONLY = 0o600
BY_UMASK = 0o666
_COPY_BYTES = 1_000_000


@contextmanager
def replacing(path: Path, mode: int = OWNER_ONLY) -> Iterator[BinaryIO]:
    """Replace `path` atomically: yields a temporary file, renamed to it at a clean exit.

    temp in the same directory -> write -> fsync -> rename -> fsync directory. Raises OSError; then
    the temporary file is removed and the old file is unchanged. A kill leaves the temporary file,
    which `sweep` removes.
    """
    temp = _temporary(path)
    try:
        with os.fdopen(_create(temp, mode), "w+b") as file:
            yield file
            file.flush()
            failpoint.hit("durable.fsync")
            os.fsync(file.fileno())
        failpoint.hit("durable.rename")
        os.replace(temp, path)
    except BaseException as error:
        with suppress(OSError):
            temp.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # errors of write and fsync name no file
        raise
    fsync_directory(path.parent)


def write_durably(path: Path, content: bytes, mode: int = OWNER_ONLY) -> None:
    """Replace the file at `path` with `content`; see `replacing`. Raises OSError.

    Only the owner can read the file: specs and orders hold URLs that may contain credentials.
    """
    with replacing(path, mode) as file:
        file.write(content)


def write_shared(path: Path, content: bytes) -> None:
    """`write_durably` for a file that other users may read; creates its directory if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_durably(path, content, BY_UMASK)


def write_once(path: Path, content: bytes) -> None:
    """Write a file durably without replacing one. Raises FileExistsError if it exists, OSError."""
    temp = _temporary(path)
    write_durably(temp, content)
    try:
        os.link(temp, path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK) or path.exists():
            raise
        os.rename(temp, path)  # a file system without hard links
    finally:
        temp.unlink(missing_ok=True)
    fsync_directory(path.parent)


def write_atomically(path: Path, content: bytes, mode: int = BY_UMASK) -> None:
    """Replace a file atomically but not durably, for heartbeats and caches. Raises OSError.

    A reader sees the whole old or new file. After a power cut it may be old, empty or missing, so
    its reader treats all of these as absent.
    """
    temp = _temporary(path)
    try:
        with os.fdopen(_create(temp, mode), "wb") as file:
            file.write(content)
        os.replace(temp, path)
    except BaseException:
        with suppress(OSError):
            temp.unlink()
        raise


def copy_durably(source: Path, target: Path, mode: int = BY_UMASK) -> None:
    """Replace `target` with a copy of the file `source`; see `replacing`. Raises OSError."""
    with source.open("rb") as content, replacing(target, mode) as file:
        shutil.copyfileobj(content, file, _COPY_BYTES)


def put_in_place(made: Path, target: Path) -> None:
    """Rename a complete file or directory to `target`, durable on return. Raises OSError.

    For what is written by others (SQLite, a downloader, torch) under a name of its own beside
    `target`. A file replaces a file, a directory only an empty one.
    """
    _fsync_tree(made)
    os.replace(made, target)
    fsync_directory(target.parent)


def move_durably(source: Path, target: Path) -> None:
    """Move a file or directory, also across file systems; durable on return.

    Across file systems it is copied beside `target`, fsynced, renamed, and then removed at
    `source`: after a kill the whole source or the whole target exists. Raises OSError, also if
    `target` exists.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    try:
        failpoint.hit("durable.move")
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_across(source, target)
        fsync_directory(target.parent)
        _discard(source)
    else:
        fsync_directory(target.parent)
    fsync_directory(source.parent)


def _copy_across(source: Path, target: Path) -> None:
    temp = target.with_name(f".{target.name}.moving")
    _discard(temp)
    try:
        if source.is_dir():
            shutil.copytree(source, temp, symlinks=True)
        else:
            shutil.copy2(source, temp)
        _fsync_tree(temp)
        failpoint.hit("durable.moved")
        os.rename(temp, target)
    except BaseException:
        with suppress(OSError):
            _discard(temp)
        raise


def _fsync_tree(root: Path) -> None:
    for folder, _, names in os.walk(root):
        for name in names:
            if not os.path.islink(os.path.join(folder, name)):
                _fsync_file(Path(folder, name))
        fsync_directory(Path(folder))
    if root.is_file():
        _fsync_file(root)


def _fsync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sweep(directory: Path) -> None:
    """Remove temporary files of `replacing` whose writer has exited."""
    for left in directory.glob(".*.*.tmp"):
        writer = left.name.split(".")[-2]
        if writer.isdigit() and not alive(int(writer)):
            left.unlink(missing_ok=True)


def alive(pid: int) -> bool:
    """True if another process with this id is running; files of one's own id are left over."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return pid != os.getpid()


def write_all(fd: int, content: bytes | memoryview) -> None:
    """os.write in a loop until everything is written: a short write is not an error."""
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]


def fsync_directory(path: Path) -> None:
    """fsync a directory, which makes its names durable; no-op where the file system cannot."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(fd)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _create(path: Path, mode: int) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
