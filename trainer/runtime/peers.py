"""Peers: how the processes of one attempt's ranks register with one another.

Needs no torch: a rank registers in the attempt's directory before it loads it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.contract import durable
from trainer.contract.rundir import ProcessIdentity, identify, rank_process

ELSEWHERE = 0  # stands for the pid of a process on another machine, which is not visible here
NEVER_SEEN = -1  # stands for the pid of a process that exited before it registered


@dataclass(frozen=True)
class Member:
    """Machine and process of a rank."""

    rank: int
    host: str
    device: str
    pid: int


class LostPeer(Exception):
    """Another rank of this attempt has exited or does not answer. members: all ranks, if known."""

    def __init__(self, message: str, members: Sequence[Member] = ()) -> None:
        super().__init__(message)
        self.members = list(members)


@dataclass(frozen=True)
class Registration:
    """The process of a rank, and its machine. beat: heartbeat counter while it waits."""

    host: str
    identity: ProcessIdentity
    beat: int = 0

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def is_gone(self) -> bool:
        """True if the process has exited; always False for one on another machine."""
        return self.is_here and identify(self.identity.pid) != self.identity


def register(attempt: Path, rank: int, beat: int = 0) -> None:
    """Register this process for the other ranks, by an atomic write. Raises OSError."""
    own = identify(os.getpid())
    if own is None:
        return
    path = rank_process(attempt, rank)
    path.parent.mkdir(exist_ok=True)
    content = {"host": socket.gethostname(), "beat": beat, **asdict(own)}
    durable.write_atomically(path, json.dumps(content).encode())


def registered(attempt: Path) -> dict[int, Registration]:
    """The ranks that have registered so far."""
    found = {}
    for path in (attempt / "ranks").glob("[0-9]*.process"):
        try:
            fields = json.loads(path.read_bytes())
            host, beat = fields.pop("host"), fields.pop("beat")
            found[int(path.stem)] = Registration(host, ProcessIdentity(**fields), beat)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            continue
    return found
