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

# Identifies an execution to its launcher: JSON, stored in its row, read only by that launcher.
Handle = Mapping[str, Any]


class Liveness(StrEnum):
    """Liveness of an execution. unreachable: the engine does not respond, which is never taken for
    an end. waiting: the engine has not started the execution, or has suspended it."""

    alive = "alive"
    waiting = "waiting"
    gone = "gone"
    unreachable = "unreachable"


@dataclass(frozen=True)
class Workspace:
    """Directory and token of an execution, which identify it to a launcher.

    directory: absolute, with its order, journals and log. token: unique secret in the environment
    of its processes.
    """

    directory: Path
    token: str


@dataclass(frozen=True)
class LaunchRequest:
    """A process to launch: `python -P -m module directory`. niceness: 0 to 19, as of nice(1).
    ranks: number of processes. place: a cluster; None for this machine. uses_gpus: True if each
    rank needs a GPU."""

    workspace: Workspace
    module: str
    niceness: int = 0
    ranks: int = 1
    place: PlaceSpec | None = None
    uses_gpus: bool = False


@dataclass(frozen=True)
class EngineWait:
    """Why an execution is `waiting` or `unreachable`, for the row of its run."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class EngineEnding:
    """Why an engine ended an execution; used if the process itself recorded no cause."""

    reason: Reason
    message: str


class Launcher(Protocol):
    """Launches processes in one kind of place. Called only from the supervisor's thread."""

    @property
    def name(self) -> str:
        """Name of the launcher in the database."""
        ...

    def reserve(self) -> Handle:
        """Handle before the start; committed with the order, so that a reboot is detected."""
        ...

    def spawn(self, work: LaunchRequest) -> Handle | None:
        """Start the execution. None if it ended before it was identified. Raises OSError."""
        ...

    def find(self, workspace: Workspace) -> Handle | None:
        """Handle of an execution started in this workspace whose handle was not recorded."""
        ...

    def starting(self, workspace: Workspace) -> Liveness | None:
        """Liveness of an execution without a handle: waiting while its start is undecided, alive
        once `find` returns it, None if it was not started."""
        ...

    def is_known(self, handle: Handle) -> bool:
        """True if the handle names something that was started."""
        ...

    def is_alive(self, workspace: Workspace, handle: Handle) -> Liveness:
        """Liveness of exactly this execution."""
        ...

    def is_stopped(self, handle: Handle) -> bool:
        """True if a signal or a debugger stopped it."""
        ...

    def signal(self, workspace: Workspace, handle: Handle, *signals: signal.Signals) -> bool:
        """Send the signals in order. Returns False and sends nothing if the identity of the process
        is not verified. SIGCONT also goes to the child processes."""
        ...

    def has_leftovers(self, workspace: Workspace) -> bool:
        """True if processes of an ended execution still run or hold its lock."""
        ...

    def sweep(self, workspace: Workspace) -> None:
        """End the remaining processes of an ended execution."""
        ...

    def exit_code(self, workspace: Workspace) -> int | None:
        """Exit code, None while it runs or if it is unknown; negative: the signal's number."""
        ...

    def waits(self, workspace: Workspace, handle: Handle) -> EngineWait | None:
        """Cause of the liveness `waiting` or `unreachable`."""
        ...

    def ending(self, workspace: Workspace, save_seconds: float) -> EngineEnding | None:
        """Why the engine ended the execution, if it reports a cause. save_seconds: seconds before
        the time limit at which the trainer is signalled to save."""
        ...

    def is_of_another_boot(self, handle: Handle) -> bool:
        """True if the machine was rebooted since, so that no process of it remains."""
        ...

    def process(self, handle: Handle) -> ProcessIdentity | None:
        """The execution's main process on this machine; None if it runs elsewhere."""
        ...

    def release(self, workspace: Workspace) -> None:
        """Release all state of the execution; no further calls for it follow."""
        ...

    def reap(self) -> None:
        """Reap children that ended after their release. Called once a tick."""
        ...

    def leave(self) -> None:
        """Detach at the daemon's shutdown: processes continue to run."""
        ...
