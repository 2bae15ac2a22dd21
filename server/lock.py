"""The daemon's lock on its data directory: one daemon per directory."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from server import errors
from trainer.contract import units
from trainer.contract.rundir import Held, acquire, is_at

if TYPE_CHECKING:
    from server.settings import Settings

LOCK = "daemon.lock"

# data directory -> (pid, lock file descriptor); the pid excludes the forked ingestion process
_held: dict[str, tuple[int, int]] = {}


class CannotServe(Exception):
    """The daemon cannot start; the message states cause and remedy."""

    @classmethod
    def from_error(cls, error: OSError | errors.TraindError) -> CannotServe:
        where = f"{error.filename}: " if isinstance(error, OSError) and error.filename else ""
        why = f"{where}{error.strerror}" if isinstance(error, OSError) else str(error).rstrip(".")
        hint = getattr(error, "hint", None)
        return cls(f"The daemon cannot start: {why}. {hint or 'Repair that, then start again.'}")


class Lost(errors.StorageBroken):
    """The lock file was deleted or replaced while this process held it."""


@contextmanager
def held(settings: Settings) -> Iterator[None]:
    """Lock the data directory for this process. Raises CannotServe naming the holder."""
    root = settings.paths.root
    if is_held(root):
        yield  # already locked by `serve`, before it listens
        return
    with ExitStack() as stack:
        _take(root, stack)
        yield


def _take(root: Path, stack: ExitStack) -> None:
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        words = f"pid {os.getpid()}, since {units.exactly(time.time())}"
        stack.enter_context(holding(root, words))
    except Held as error:
        raise CannotServe(
            f"Another traind serves {root} ({error.holder}). Use that one, stop it, or choose "
            "another directory with --data-dir."
        ) from None
    except OSError as error:
        raise CannotServe(
            f"The data directory {root} cannot be used: {error.filename or root}: "
            f"{error.strerror}. Repair that, or choose another one with --data-dir or "
            "TRAIND_DATA_DIR."
        ) from error


@contextmanager
def holding(root: Path, holder: str) -> Iterator[None]:
    """Lock the data directory for this process. Raises Held naming the holder, OSError."""
    fd = acquire(root / LOCK, holder)
    folder = -1
    try:
        folder = _lock_directory(root)
        _held[str(root)] = (os.getpid(), fd)
        yield
    finally:
        _held.pop(str(root), None)
        os.close(fd)
        if folder >= 0:
            os.close(folder)


def is_held(root: Path) -> bool:
    """True if this process holds the data directory."""
    return _own(root) is not None


def require(root: Path) -> None:
    """Raises Lost if the lock file of this process was deleted or replaced: another daemon could
    lock the directory, so nothing more may be written. No-op in a process without the lock."""
    fd = _own(root)
    if fd is not None and not is_at(fd, root / LOCK):
        raise Lost(
            f"{root / LOCK} was deleted or replaced while the daemon held it; nothing more is "
            "written, since another daemon may take the directory.",
            hint="Restart the daemon: trainers continue meanwhile, and nothing is lost.",
            headers={"Retry-After": "5"},
        )


def _own(root: Path) -> int | None:
    pid, fd = _held.get(str(root), (None, None))
    return fd if pid == os.getpid() else None


def _lock_directory(root: Path) -> int:
    """Lock the directory. Returns its descriptor, or -1 where directories cannot be locked."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise Held(root, _holder_from_daemon_file(root)) from None
    except OSError:
        os.close(fd)
        return -1
    return fd


def _holder_from_daemon_file(root: Path) -> str:
    """The holder named in daemon.json, for when the lock file was deleted."""
    with suppress(OSError):
        return f"{(root / 'daemon.json').read_text().strip()}; its {LOCK} was deleted"
    return f"a process whose {LOCK} was deleted"
