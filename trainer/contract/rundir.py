"""Paths of a data directory, its documents, locks and process identity.

Layout: runs/<run_id>/{spec.json, plan.json, data.json, checkpoints/, attempts/NNNN/} and
jobs/<job_id>/.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

# ignored by a process that has no handler for it yet, unlike SIGQUIT
DUMP_SIGNAL = getattr(signal, "SIGURG", signal.SIGTERM)
NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})
OUTBOX, INBOX, LOG, LOCK = "outbox.jsonl", "inbox.jsonl", "trainer.log", "lock"


@dataclass(frozen=True)
class DataDir:
    """The paths of one data directory."""

    root: Path

    @property
    def database_directory(self) -> Path:
        """The database's directory: the target of `database`, which may link to a local disk."""
        linked = self.root / "database"
        return linked if linked.is_dir() else self.root

    @property
    def database(self) -> Path:
        return self.database_directory / "traind.db"

    @property
    def corpora(self) -> Path:
        return self.root / "corpora"

    @property
    def backups(self) -> Path:
        return self.root / "backups"

    @property
    def compiled(self) -> Path:
        """Compiler cache for this machine's devices; may be removed at any time."""
        return self.root / "compiled"

    @property
    def core_bundle(self) -> Path:
        """Directory of the bundle that `traind fetch core` downloads."""
        return self.root / "core"

    def run(self, run_id: str) -> RunDir:
        return RunDir(self.root / "runs" / run_id)

    def job(self, job_id: str) -> Path:
        return self.root / "jobs" / job_id


@dataclass(frozen=True)
class RunDir:
    """The paths of one run."""

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "spec.json"

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def data(self) -> Path:
        return self.root / "data.json"

    @property
    def frozen(self) -> Path:
        """Choices made by racing or probing at the first start: part of the run's identity."""
        return self.root / "frozen.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def checkpoint(self, step: int, attempt: int) -> Path:
        return self.checkpoints / checkpoint_name(step, attempt)

    def attempt(self, number: int) -> Path:
        return self.root / "attempts" / f"{number:04d}"

    def highest_attempt(self) -> int:
        """Highest attempt number of any attempt or checkpoint on disk; 0 without any."""
        saved = (parse_checkpoint_name(name) for name in _names(self.checkpoints))
        numbers = (parse_attempt_name(name) for name in _names(self.root / "attempts"))
        found = [number for number in numbers if number is not None]
        return max([0, *found, *(attempt for _, attempt in filter(None, saved))])


def rank_record(attempt: Path, rank: int) -> Path:
    """The exit record of a rank other than 0, whose record is the attempt's own."""
    return attempt / "ranks" / f"{rank:04d}.json"


def rank_process(attempt: Path, rank: int) -> Path:
    """File in which a rank, also rank 0, names its process to the others before they join."""
    return attempt / "ranks" / f"{rank:04d}.process"


def rank_log(attempt: Path, rank: int) -> Path:
    """Log of a rank; rank 0 uses the attempt's own log."""
    return attempt / "ranks" / f"{rank:04d}.log" if rank else attempt / LOG


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


# Padded so that names sort by step; longer numbers need more digits.
# Eighteen digits fit into a row; `[0-9]` since \d takes the digits of every script.
CHECKPOINT_PATTERN = r"^step-([0-9]{9,18})-a([0-9]{4,18})$"
_CHECKPOINT = re.compile(CHECKPOINT_PATTERN)
CHECKPOINT_FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
_ATTEMPT = re.compile(r"[0-9]{4,18}")


def checkpoint_name(step: int, attempt: int) -> str:
    return f"step-{step:09d}-a{attempt:04d}"


def parse_checkpoint_name(name: str) -> tuple[int, int] | None:
    """(step, attempt) of a checkpoint's name, None for any other name."""
    match = _CHECKPOINT.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def parse_attempt_name(name: str) -> int | None:
    """The number of an attempt's directory; None for any other name, such as a stray file's."""
    return int(name) if _ATTEMPT.fullmatch(name) else None


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint's directory; for a link to another disk, its target too. Files that
    cannot be removed stay.
    """
    if not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    target = path.resolve()
    with suppress(OSError):
        for name in CHECKPOINT_FILES:
            (target / name).unlink(missing_ok=True)
        path.unlink()
        target.rmdir()  # stays if it contains anything else


# --- documents that were written durably ----------------------------------------------------------


class Damaged(Exception):
    """A file of a run is damaged: its content is not what was written. The message names it."""


Document = TypeVar("Document", bound=BaseModel)


def read_document(path: Path, kind: type[Document], remedy: str) -> Document:
    """Read a JSON document of a run. Raises OSError, or Damaged, which ends with `remedy`."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValueError as error:
        why = " ".join(str(error).partition("[type=")[0].split())[:200]
        raise Damaged(f"{path} is damaged ({why}). {remedy}") from None


# --- locks and identity --------------------------------------------------------------------------


class Held(Exception):
    """Another process holds the lock; `holder` is the text that it wrote into the file."""

    def __init__(self, path: Path, holder: str) -> None:
        super().__init__(f"{path} is held by {holder or 'another process'}")
        self.holder = holder


def acquire(path: Path, holder: str) -> int:
    """Lock `path` for the life of the returned descriptor (close-on-exec). Raises Held."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            words = os.pread(fd, 4096, 0).decode("utf-8", "replace").strip()
            os.close(fd)
            raise Held(path, words) from None
        except OSError as error:  # Lustre without -o flock, NFS without a lock service
            if error.errno not in NO_LOCKS:
                os.close(fd)
                raise
            words = f"{path} cannot be locked ({error.strerror}): it is used unlocked"
            print(words, file=sys.stderr)
        if is_at(fd, path):  # not a file that was deleted between the two lines above
            break
        os.close(fd)
    os.ftruncate(fd, 0)
    os.pwrite(fd, holder.encode(), 0)
    return fd


def is_at(fd: int, path: Path) -> bool:
    """True if `path` still names the open file."""
    try:
        found = os.stat(path)
    except OSError:
        return False
    own = os.fstat(fd)
    return (own.st_dev, own.st_ino) == (found.st_dev, found.st_ino)


def is_held(path: Path) -> bool:
    """True if a live process holds the lock at `path`."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    finally:
        os.close(fd)
    return False


@contextmanager
def locked(path: Path, holder: str) -> Iterator[int]:
    fd = acquire(path, holder)
    try:
        yield fd
    finally:
        os.close(fd)


@dataclass(frozen=True)
class ProcessIdentity:
    """Identity of a process: pid, start time and boot, since pids are reused."""

    boot_id: str
    pid: int
    start_ticks: int


def boot_id() -> str:
    """The kernel's id of this boot; elsewhere the time of boot to the minute."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"boot-{int((time.time() - time.monotonic()) // 60)}"


def identify(pid: int) -> ProcessIdentity | None:
    """The identity of a live process; None if it has exited or is a zombie.

    Raises OSError if it cannot be read (too many open files), which does not mean it has exited.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return _identify_portably(pid)
    after_name = stat.rpartition(")")[2].split()
    if after_name[0] in ("Z", "X"):
        return None
    return ProcessIdentity(boot_id(), pid, int(after_name[19]))


def _identify_portably(pid: int) -> ProcessIdentity | None:
    if Path("/proc/self/stat").exists():
        return None
    try:
        import psutil  # only where there is no /proc

        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return ProcessIdentity(boot_id(), pid, int(process.create_time() * 100))
    except Exception:
        return None
