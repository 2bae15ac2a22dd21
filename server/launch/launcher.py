"""Launcher interface: starts, finds, signals and watches the processes of an execution."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

from trainer.contract.reasons import Reason
from trainer.contract.rundir import ProcessIdentity
from trainer.contract.spec import PlaceSpec

# What a launcher knows an execution by: JSON, kept in its row, read by its own launcher alone.
Handle = Mapping[str, Any]


class Liveness(StrEnum):
    """unreachable: whoever knows does not answer now; that is never taken for a death. waiting: the
    engine has not started it, or has suspended it."""

    alive = "alive"
    waiting = "waiting"
    gone = "gone"
    unreachable = "unreachable"


@dataclass(frozen=True)
class Workspace:
    """Where an execution works and the secret that its processes carry: who it is, to a launcher.

    directory: absolute, with its order, journals and log. token: unique to this execution.
    """

    directory: Path
    token: str


@dataclass(frozen=True)
class LaunchRequest:
    """What is to be started: `python -P -m module directory`. niceness: 0 to 19, as of nice(1).
    ranks: how many processes of it work together. place: where, beyond this machine. uses_gpus:
    whether each of them needs one."""

    workspace: Workspace
    module: str
    niceness: int = 0
    ranks: int = 1
    place: PlaceSpec | None = None
    uses_gpus: bool = False


@dataclass(frozen=True)
class EngineWait:
    """Why an engine has not started an execution, or cannot say how it is: for its run's row."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class EngineEnding:
    """Why an engine ended an execution; it counts where the process itself named no cause."""

    reason: Reason
    message: str


class Launcher(Protocol):
    """Starts processes in one kind of place. Called by the supervisor's thread only."""

    @property
    def name(self) -> str:
        """The launcher's name in the rows."""
        ...

    def reserve(self) -> Handle:
        """What is known before the start; committed with the order, so that a reboot is noticed."""
        ...

    def spawn(self, work: LaunchRequest) -> Handle | None:
        """Start it; None when it died before it could be identified. Raises OSError."""
        ...

    def find(self, workspace: Workspace) -> Handle | None:
        """Handle of a process started there whose handle was never recorded."""
        ...

    def starting(self, workspace: Workspace) -> Liveness | None:
        """Of one whose handle is not known: waiting while it is not settled whether it was started,
        alive once `find` has it, None when it was not started."""
        ...

    def is_known(self, handle: Handle) -> bool:
        """True if the handle names something that was started."""
        ...

    def is_alive(self, workspace: Workspace, handle: Handle) -> Liveness:
        """Whether exactly this execution still runs."""
        ...

    def is_stopped(self, handle: Handle) -> bool:
        """True if a signal or a debugger stopped it."""
        ...

    def signal(self, workspace: Workspace, handle: Handle, *signals: signal.Signals) -> bool:
        """Send the signals in order. False, and nothing sent, when it is in doubt whom they reach.
        SIGCONT also reaches what the execution started."""
        ...

    def has_leftovers(self, workspace: Workspace) -> bool:
        """True if something of an execution that is gone still lives or holds its lock."""
        ...

    def sweep(self, workspace: Workspace) -> None:
        """End what an execution that is gone left behind."""
        ...

    def exit_code(self, workspace: Workspace) -> int | None:
        """Once it is dead and known; negative: the number of the signal."""
        ...

    def waits(self, workspace: Workspace, handle: Handle) -> EngineWait | None:
        """Cause of the liveness `waiting` or `unreachable`."""
        ...

    def ending(self, workspace: Workspace, save_seconds: float) -> EngineEnding | None:
        """Why the engine ended it, where there is one that knows. save_seconds: how long before a
        time limit it was told to save."""
        ...

    def is_of_another_boot(self, handle: Handle) -> bool:
        """True if the place was restarted since, so that nothing of it can live."""
        ...

    def process(self, handle: Handle) -> ProcessIdentity | None:
        """The process on this machine whose end is its end; None where there is no such one."""
        ...

    def release(self, workspace: Workspace) -> None:
        """Forget the execution: no call about it follows."""
        ...

    def reap(self) -> None:
        """Once a tick: collect children that ended after their release."""
        ...

    def leave(self) -> None:
        """The daemon ends, what runs continues."""
        ...
