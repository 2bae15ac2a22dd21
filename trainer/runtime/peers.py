"""Peers: the processes of one attempt's ranks, as they name themselves to one another.

Needs no torch: a rank registers in the attempt's directory before it loads it.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from trainer.contract.rundir import ProcessIdentity, identify, rank_process

ELSEWHERE = 0  # the pid of a process of another machine, which cannot be seen from here
NEVER_SEEN = -1  # the pid of one that was gone before it registered


@dataclass(frozen=True)
class Member:
    """Machine and process of a rank."""

    rank: int
    host: str
    device: str
    pid: int


class LostPeer(Exception):
    """Another rank of this attempt is gone, or does not answer. members: all of them, if known."""

    def __init__(self, message: str, members: Sequence[Member] = ()) -> None:
        super().__init__(message)
        self.members = list(members)


@dataclass(frozen=True)
class Registration:
    """The process of a rank, and the machine that it runs on. beat: counted up while it waits."""

    host: str
    identity: ProcessIdentity
    beat: int = 0

    @property
    def is_here(self) -> bool:
        return self.host == socket.gethostname()

    @property
    def is_gone(self) -> bool:
        """Whether it has ended; never of another machine's, which cannot be seen."""
        return self.is_here and identify(self.identity.pid) != self.identity


def register(attempt: Path, rank: int, beat: int = 0) -> None:
    """Name this process to the other ranks; what they read is always whole. Raises OSError."""
    own = identify(os.getpid())
    if own is None:
        return
    path = rank_process(attempt, rank)
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({"host": socket.gethostname(), "beat": beat, **asdict(own)}))
    os.replace(temporary, path)


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
