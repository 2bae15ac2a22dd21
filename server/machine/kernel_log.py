"""Kernel log: NVIDIA Xid errors and out-of-memory kills.

Xid numbers and required actions are from NVIDIA's "XID Errors" catalog
(docs.nvidia.com/deploy/xid-errors).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from trainer.contract import units


class XidAction(StrEnum):
    """Required action after an Xid error."""

    restart = "restart"  # restarting the program may be enough
    reset = "reset"  # the GPU must be reset (nvidia-smi -r) or the machine rebooted
    reboot = "reboot"  # the machine, after a power cycle
    inspect = "inspect"  # cabling, power, cooling, the card itself


@dataclass(frozen=True)
class Xid:
    """An Xid error. device: the card, if a run uses several."""

    number: int
    meaning: str
    action: XidAction
    device: str | None = None

    def __str__(self) -> str:
        where = f" on {self.device}" if self.device else ""
        return f"Xid {self.number} ({self.meaning}){where}"


KIB = 1_024  # what the kernel calls kB
_ADVICE = {
    XidAction.restart: "Restarting the trainer is enough; if the error recurs, test the card.",
    XidAction.reset: "Reset the GPU (nvidia-smi -r) or reboot the machine, then resume.",
    XidAction.reboot: "Switch the machine off and on again, then resume.",
    XidAction.inspect: "Check power, cooling and seating of the card before resuming.",
}

_XIDS = {
    xid.number: xid
    for xid in (
        Xid(8, "GPU stopped processing", XidAction.restart),
        Xid(13, "graphics engine exception", XidAction.restart),
        Xid(31, "GPU memory page fault", XidAction.restart),
        Xid(32, "invalid or corrupted push buffer stream", XidAction.restart),
        Xid(38, "driver firmware error", XidAction.reset),
        Xid(43, "GPU stopped processing after a program error", XidAction.restart),
        Xid(45, "preemptive cleanup after an earlier error", XidAction.restart),
        Xid(46, "GPU stopped processing", XidAction.reset),
        Xid(48, "double-bit ECC error", XidAction.reset),
        Xid(61, "internal microcontroller breakpoint", XidAction.reset),
        Xid(62, "internal microcontroller halt", XidAction.reset),
        Xid(63, "memory row remapping or page retirement recorded", XidAction.reset),
        Xid(64, "memory row remapping or page retirement failed", XidAction.inspect),
        Xid(69, "graphics engine class error", XidAction.restart),
        Xid(74, "NVLink error", XidAction.inspect),
        Xid(79, "GPU has fallen off the bus", XidAction.reboot),
        Xid(92, "high rate of single-bit ECC errors", XidAction.inspect),
        Xid(94, "contained memory error", XidAction.restart),
        Xid(95, "uncontained memory error", XidAction.reset),
        Xid(109, "context switch timeout", XidAction.reset),
        Xid(119, "GSP firmware did not answer", XidAction.reset),
        Xid(120, "GSP firmware error", XidAction.reset),
        Xid(140, "unrecovered ECC error", XidAction.reset),
        Xid(143, "GPU initialisation error", XidAction.reset),
        Xid(154, "GPU recovery action changed", XidAction.reset),
    )
}

_XID_LINE = re.compile(
    r"NVRM: Xid \((?:PCI:)?(?P<where>[^)]*)\): (?P<number>\d+)(?:, pid='?(?P<pid>\d+))?"
)
_OOM_LINE = re.compile(r"(?:Killed process|oom-kill:.*?\bpid=)\s*(?P<pid>\d+)")
_OOM_LIMIT_LINE = re.compile(r"memory: usage \d+kB, limit (?P<limit>\d+)kB")
_OOM_HELD = re.compile(r"anon-rss:(?P<held>\d+)kB")
_SEVERITY = (XidAction.restart, XidAction.reset, XidAction.inspect, XidAction.reboot)


def advice(xid: Xid) -> str:
    return _ADVICE[xid.action]


def worst_xid(
    kernel_lines: Iterable[str], pci: str | None = None, pid: int | None = None
) -> Xid | None:
    """The most severe Xid among kernel log lines, or None.

    pci: only of this card (0000:01:00). pid: an error that ends only a program counts if the line
    has this pid or none; a fault of the card always counts.
    """
    reported = [m for line in kernel_lines if (m := _XID_LINE.search(line))]
    here = [m for m in reported if pci is None or m["where"].lower().partition(".")[0] == pci]
    found = [(_xid(int(m["number"])), m["pid"]) for m in here]
    ours = [x for x, of in found if x.action != XidAction.restart or _may_be(of, pid)]
    return max(ours, key=lambda xid: _SEVERITY.index(xid.action), default=None)


def worst_xid_of(
    kernel_lines: Sequence[str], cards: Mapping[str, str], pid: int | None = None
) -> Xid | None:
    """The most severe Xid of the cards that a program uses, with the device if it uses several.

    cards: {pci: device}; empty: any card. pid: as in `worst_xid`, for one card; with several, any
    pid counts, as each card may have its own process.
    """
    if len(cards) < 2:
        return worst_xid(kernel_lines, next(iter(cards), None), pid)
    found = [
        replace(xid, device=device)
        for pci, device in cards.items()
        if (xid := worst_xid(kernel_lines, pci)) is not None
    ]
    return max(found, key=lambda xid: _SEVERITY.index(xid.action), default=None)


def _xid(number: int) -> Xid:
    return _XIDS.get(number, Xid(number, "see NVIDIA's list of Xid errors", XidAction.reset))


def _may_be(named: str | None, pid: int | None) -> bool:
    return named is None or pid is None or int(named) == pid


def oom_killed(kernel_lines: Iterable[str]) -> set[int]:
    """Pids of out-of-memory kills in the kernel log."""
    return {int(m["pid"]) for line in kernel_lines if (m := _OOM_LINE.search(line))}


def oom_sentence(kernel_lines: Iterable[str], pid: int) -> str:
    """Memory limit and usage from the out-of-memory kill of `pid`; empty without one."""
    limit: int | None = None
    for line in kernel_lines:
        if found := _OOM_LIMIT_LINE.search(line):
            limit = int(found["limit"]) * KIB
        elif (named := _OOM_LINE.search(line)) and int(named["pid"]) == pid:
            held = _OOM_HELD.search(line)
            if held is not None:
                return _sizes(("limit", limit), ("it held", int(held["held"]) * KIB))
    return ""


def _sizes(*named: tuple[str, int | None]) -> str:
    return ", ".join(f"{word} {units.num_bytes(size)}" for word, size in named if size is not None)


def kernel_lines(since_uptime_seconds: float = 0.0, path: str = "/dev/kmsg") -> list[str]:
    """Kernel log lines since that time after boot; empty without permission to read them."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return [text for uptime, text in _records(fd) if uptime >= since_uptime_seconds]
    finally:
        os.close(fd)


def _records(fd: int) -> Iterable[tuple[float, str]]:
    """(uptime in seconds, message) of each record; a read returns one record,
    'priority,sequence,microseconds,flags;message'."""
    for _ in range(100_000):
        try:
            record = os.read(fd, 8192)
        except BrokenPipeError:
            continue  # overwritten during the read: the next read continues after the gap
        except OSError:
            return
        if not record:
            return
        head, _, text = record.decode("utf-8", "replace").partition(";")
        fields = head.split(",")
        if len(fields) >= 3 and fields[2].isdigit():
            yield int(fields[2]) / 1e6, text.split("\n")[0]


# --- memory control groups -----------------------------------------------------------------------


@dataclass(frozen=True)
class MemoryGroup:
    """Memory control group (cgroup) of a trainer. Sizes in bytes; None: unlimited or unknown."""

    oom_kills: int
    limit: int | None
    peak: int | None

    def __str__(self) -> str:
        return _sizes(("limit", self.limit), ("peak", self.peak))


def memory_group(root: Path = Path("/sys/fs/cgroup"), pid: int | str = "self") -> MemoryGroup:
    """Memory control group (cgroup v2) of a process; zeros without one."""
    try:
        line = Path(f"/proc/{pid}/cgroup").read_text().strip().splitlines()[-1]
    except (OSError, IndexError):
        return MemoryGroup(0, None, None)
    group = root / line.rpartition(":")[2].lstrip("/")
    if not (group / "memory.events").exists():
        group = root
    return MemoryGroup(
        _field(group / "memory.events", "oom_kill"),
        _number(group / "memory.max"),
        _number(group / "memory.peak"),
    )


def _field(path: Path, name: str) -> int:
    try:
        pairs = dict(line.split() for line in path.read_text().splitlines())
        return int(pairs.get(name, 0))
    except (OSError, ValueError):
        return 0


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
