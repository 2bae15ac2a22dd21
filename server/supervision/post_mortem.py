"""Post-mortem of a dead process: exit code, last log lines, kernel messages."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from server.launch import process, registry, torchrun
from server.machine import kernel_log
from server.machine.kernel_log import Xid
from server.machine.xid_events import XidListener
from server.supervision.watch import Watch
from trainer.contract.exits import first_failure
from trainer.contract.rundir import LOG, rank_log

KERNEL_LOG_SECONDS = 600.0  # age at which a kernel message may still be related to an exit
STACK_DUMP_LINES = 120
LAST_WORDS_CHARACTERS = 200


@dataclass(frozen=True)
class PostMortem:
    """Findings. oom: the limits as text if the kernel killed it for lack of memory, else None."""

    exit_code: int | None
    oom: str | None
    xid: Xid | None
    log_tail: str

    @property
    def last_words(self) -> str:
        """Last non-blank line of the log, shortened to fit a sentence."""
        own = torchrun.without_report(self.log_tail)
        said = [line.strip() for line in own.splitlines() if line.strip()]
        return said[-1][:LAST_WORDS_CHARACTERS] if said else ""


def examine(
    watch: Watch, cards: Mapping[str, str] | None = None, xids: XidListener | None = None
) -> PostMortem:
    """Examine what a directory's dead process left. cards: {pci: device} of the GPUs that it used,
    if known. xids: from NVIDIA's library; a readable kernel log has the processes as well.
    """
    if watch.launcher.name not in registry.ON_THIS_MACHINE:
        tail = process.log_tail(watch.directory / LOG)
        return PostMortem(watch.exit_code, None, None, tail)
    start = _kernel_log_start(watch)
    lines = kernel_log.kernel_lines(start) or (xids.lines(start) if xids is not None else [])
    tail_lines = STACK_DUMP_LINES if watch.stall_step else process.LOG_TAIL_LINES
    if watch.launcher.name == torchrun.NAME:
        tail_lines = torchrun.LOG_LINES
    return PostMortem(
        exit_code=watch.exit_code,
        oom=_oom(watch, lines),
        xid=kernel_log.worst_xid_of(
            lines, cards or {}, found.pid if (found := watch.process) else None
        ),
        log_tail=_log_tail(watch.directory, tail_lines),
    )


def _log_tail(directory: Path, lines: int) -> str:
    """End of the log; preceded by that of the rank that failed first, if it is not rank 0."""
    tail = process.log_tail(directory / LOG, lines)
    failed = first_failure(directory)
    if failed is None:
        return tail
    rank, _ = failed
    of_rank = process.log_tail(rank_log(directory, rank), lines)
    return f"--- rank {rank} ---\n{of_rank}\n--- rank 0 ---\n{tail}" if of_rank else tail


def _kernel_log_start(watch: Watch) -> float:
    """Uptime in seconds from which the kernel's log may be related to this process."""
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else 0.0
    began = 0.0
    if (found := watch.process) is not None:
        began = found.start_ticks / os.sysconf("SC_CLK_TCK")
    return max(began, uptime - KERNEL_LOG_SECONDS)


def _oom(watch: Watch, lines: list[str]) -> str | None:
    if watch.exit_code not in (None, -signal.SIGKILL):
        return None
    group = kernel_log.memory_group()
    found = watch.process
    if found is not None and found.pid in kernel_log.oom_killed(lines):
        return kernel_log.oom_sentence(lines, found.pid) or str(group)
    if group.oom_kills > watch.oom_kills:
        return str(group)
    return None
