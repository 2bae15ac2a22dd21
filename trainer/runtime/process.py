"""Start and end of every trainer and job process: lock, journals, signals, exit record."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainer.contract import events, journal, os_errors
from trainer.contract.exits import ExitRecord, write_exit
from trainer.contract.reasons import Reason
from trainer.contract.rundir import INBOX, LOCK, OUTBOX, acquire, identify
from trainer.runtime.control import Control
from trainer.runtime.reporter import Reporter

LOCK_BYTES = 1024  # no less: the padding covers what an earlier holder wrote


@dataclass
class Process:
    """An attempt's or job's process: holds the lock of its directory for life."""

    directory: Path
    reporter: Reporter
    control: Control
    lock_fd: int

    def end(self, ended: events.Ended) -> None:
        """Write the `ended` record, then the exit record; both durable."""
        try:
            self.reporter.emit(ended)
        finally:
            write_exit(
                self.directory,
                ExitRecord(
                    outcome=ended.outcome,
                    reason=ended.reason,
                    step=ended.step,
                    checkpoint=ended.checkpoint,
                    message=ended.message,
                    unix_seconds=time.time(),
                ),
            )


def begin(directory: Path, run: str, attempt: int, token: str) -> Process:
    """Take the lock, open the outbox, listen. Raises Held, FileExistsError (started twice)."""
    lock_fd = acquire(directory / LOCK, _holder(token, None))
    control = Control(directory / INBOX)
    control.install_signals()
    writer = journal.Writer.create(directory / OUTBOX, journal.JournalHeader(run, attempt, token))

    def report_waiting(reason: str | None) -> None:
        # The lock file already has its full length on disk: this needs no new space.
        os.pwrite(lock_fd, _holder(token, reason).encode(), 0)

    reporter = Reporter(writer, report_waiting, lambda: control.terminated)
    return Process(directory, reporter, control, lock_fd)


def _holder(token: str, waiting: str | None) -> str:
    own = identify(os.getpid())
    holder = {
        "pid": os.getpid(),
        "boot_id": own.boot_id if own else "",
        "start_ticks": own.start_ticks if own else 0,
        "token": token,
        "waiting": waiting,
    }
    return json.dumps(holder).ljust(LOCK_BYTES)


def explain(error: BaseException) -> tuple[Reason, str]:
    """Failure reason of an exception that ended the process, and one line for a person.

    Considers its causes too: a data set that cannot be read because too many files are open is
    not unusable.
    """
    led = list(os_errors.chain(error))
    for matches, reason in _REASONS:
        if any(matches(one) for one in led):
            return reason, _one_line(error)
    return Reason.crashed, _one_line(error)


def _one_line(error: BaseException) -> str:
    """The message of traind's own errors; others are prefixed with their class."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {os.fsdecode(error.filename)}"[:2000]
    text, kind = " ".join(str(error).split()), type(error)
    if kind.__module__.partition(".")[0] == "trainer" and text:
        return text[:2000]
    return f"{kind.__name__}: {text}"[:2000] if text else kind.__name__


def log_traceback(error: BaseException) -> None:
    traceback.print_exception(error)


def _named(*names: str) -> Callable[[BaseException], bool]:
    def matches(error: BaseException) -> bool:
        return any(kind.__name__ in names for kind in type(error).__mro__)

    return matches


def _errno(numbers: frozenset[int], *words: str) -> Callable[[BaseException], bool]:
    """Matches errors by errno, or by message for libraries whose errors have none."""

    def matches(error: BaseException) -> bool:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno in numbers
        return any(part in str(error) for part in words)

    return matches


def _mentions(*words: str) -> Callable[[BaseException], bool]:
    return lambda error: any(part in str(error) for part in words)


def _is_out_of_memory(error: BaseException) -> bool:
    """True for out of memory: torch's error, the driver's, or cuBLAS failing to create a handle."""
    words = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA out of memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _is_gpu_lost(error: BaseException) -> bool:
    words = ("device-side assert", "unspecified launch failure", "uncorrectable ECC",
             "GPU is lost", "has fallen off the bus", "illegal memory access",
             "launch timed out", "misaligned address", "illegal instruction", "unknown error",
             "no CUDA-capable device")  # fmt: skip
    cuda = "CUDA" in str(error) or _named("AcceleratorError")(error)
    return cuda and any(word in str(error) for word in words)


# By name, so that this module needs neither torch nor the data code. The first match counts:
# causes outside the process come before what it was doing.
_REASONS: list[tuple[Callable[[BaseException], bool], Reason]] = [
    (_named("OutOfMemoryError"), Reason.out_of_memory),
    (_is_out_of_memory, Reason.out_of_memory),
    (_named("MemoryError"), Reason.host_out_of_memory),
    (
        _errno(os_errors.NO_MEMORY, "Cannot allocate memory", "can't allocate memory"),
        Reason.host_out_of_memory,
    ),
    (_errno(os_errors.TOO_MANY_FILES, "Too many open files"), Reason.too_many_open_files),
    (_named("JournalFull"), Reason.disk_full),
    (_errno(os_errors.DISK_FULL, "No space left on device"), Reason.disk_full),
    (_named("DataChanged"), Reason.data_changed),
    (_named("DataError", "InteropError"), Reason.data_unusable),
    (_named("NonFinite"), Reason.non_finite_loss),
    (_named("NoSuchDevice"), Reason.device_missing),
    (_named("Bad"), Reason.no_checkpoint),
    (_named("Fenced", "Held"), Reason.superseded),
    (_named("RanksDiffer"), Reason.ranks_differ),
    (_named("LostPeer", "NotDealt"), Reason.rank_lost),
    (_is_gpu_lost, Reason.gpu_lost),
    (
        _mentions("no kernel image is available", "driver version is insufficient",
              "Found no NVIDIA driver", "not compiled with CUDA"),
        Reason.software_missing,
    ),
    (
        _named("InductorError", "CppCompileError", "LoweringException", "BackendCompilerFailed",
               "CompilationError"),
        Reason.compile_failed,
    ),
    (_named("ImportError"), Reason.software_missing),
    (_errno(os_errors.NOT_PERMITTED), Reason.not_permitted),
    (_errno(os_errors.MISSING), Reason.file_missing),
    (_named("ConnectionError", "gaierror", "ConnectError", "TimeoutError"), Reason.network_failed),
    (_named("OSError", "CannotSave", "JournalError", "Damaged"), Reason.io_error),
]  # fmt: skip
