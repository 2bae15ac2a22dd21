"""What every launcher offers to the supervisor, and the values both exchange."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from trainer.contract.rundir import ProcessIdentity

# What a launcher knows an execution by: JSON, kept in its row, read by its own launcher alone.
Handle = Mapping[str, Any]


class Liveness(StrEnum):
    """unreachable: whoever knows does not answer now; that is never taken for a death."""

    alive = "alive"
    gone = "gone"
    unreachable = "unreachable"


@dataclass(frozen=True)
class Spot:
    """Where an execution works and the secret that its processes carry: who it is, to a launcher.

    directory: absolute, with its order, journals and log. token: unique to this execution.
    """

    directory: Path
    token: str


@dataclass(frozen=True)
class Work:
    """What is to be started: `python -P -m module directory`. niceness: 0 to 19, as of nice(1).
    ranks: how many processes of it work together."""

    spot: Spot
    module: str
    niceness: int = 0
    ranks: int = 1


class Launcher(Protocol):
    """Starts processes in one kind of place. Called by the supervisor's thread only."""

    @property
    def name(self) -> str:
        """As it is kept in the rows."""
        ...

    def reserve(self) -> Handle:
        """What is known before the start; committed with the order, so that a reboot is noticed."""
        ...

    def spawn(self, work: Work) -> Handle | None:
        """Start it; None when it died before it could be identified. Raises OSError."""
        ...

    def find(self, spot: Spot) -> Handle | None:
        """What was started there and whose handle was never recorded."""
        ...

    def is_known(self, handle: Handle) -> bool:
        """Whether the handle names something that was started."""
        ...

    def is_alive(self, spot: Spot, handle: Handle) -> Liveness:
        """Whether exactly this execution still runs."""
        ...

    def is_stopped(self, handle: Handle) -> bool:
        """Whether a signal or a debugger stopped it."""
        ...

    def signal(self, spot: Spot, handle: Handle, *signals: signal.Signals) -> bool:
        """Send the signals in order. False, and nothing sent, when it is in doubt whom they reach.
        SIGCONT also reaches what the execution started."""
        ...

    def has_leftovers(self, spot: Spot) -> bool:
        """Whether something of an execution that is gone still lives or holds its lock."""
        ...

    def sweep(self, spot: Spot) -> None:
        """End what an execution that is gone left behind."""
        ...

    def exit_code(self, spot: Spot) -> int | None:
        """Once it is dead and known; negative: the number of the signal."""
        ...

    def is_of_another_boot(self, handle: Handle) -> bool:
        """Whether the place was restarted since, so that nothing of it can live."""
        ...

    def process(self, handle: Handle) -> ProcessIdentity | None:
        """The process on this machine whose end is its end; None where there is no such one."""
        ...

    def release(self, spot: Spot) -> None:
        """Nobody asks about it any more."""
        ...

    def reap(self) -> None:
        """Once a tick: collect children that ended after their release."""
        ...

    def leave(self) -> None:
        """The daemon ends, what runs continues."""
        ...
