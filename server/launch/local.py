"""Local launcher: processes on this machine, started by exec in a new session.

handle: {"boot_id", "pid", "start_ticks"}; before the start only `boot_id`.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType

from server.launch import process
from server.launch.launcher import (
    EngineEnding,
    EngineWait,
    Handle,
    LaunchRequest,
    Liveness,
    Workspace,
)
from server.launch.process import Child
from trainer.contract import failpoint, rundir
from trainer.contract.rundir import LOCK, ProcessIdentity

NAME = "local"


class Local:
    """Launcher for this machine. python: interpreter of trainers and jobs. cache_bytes, compiled:
    as of `process.environment`."""

    name = NAME
    variables: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self, python: str, cache_bytes: int | None = None, compiled: Path | None = None
    ) -> None:
        self._python, self._cache_bytes, self._compiled = python, cache_bytes, compiled
        self._children: dict[str, Child] = {}  # by token
        self._exiting: list[Child] = []

    # --- starting --------------------------------------------------------------------------------

    def reserve(self) -> Handle:
        return {"boot_id": rundir.boot_id()}

    def spawn(self, work: LaunchRequest) -> Handle | None:
        failpoint.hit("supervisor.spawn")
        child, identity = process.spawn(
            [self._python, *self.command(work), str(work.workspace.directory)],
            work.workspace.directory,
            work.workspace.token,
            niceness=work.niceness,
            cache_bytes=self._cache_bytes,
            compiled=self._compiled,
            variables=self.variables,
        )
        self._children[work.workspace.token] = child
        failpoint.hit("supervisor.record")
        return asdict(identity) if identity is not None else None

    def command(self, work: LaunchRequest) -> Sequence[str]:
        """Arguments of the interpreter, without the directory."""
        return ("-P", "-m", work.module)

    def find(self, workspace: Workspace) -> Handle | None:
        found = process.leader(workspace.token)
        is_here = found is not None and process.works_in(found.pid, workspace.directory)
        return asdict(found) if found is not None and is_here else None

    def starting(self, workspace: Workspace) -> Liveness | None:
        return None

    # --- liveness --------------------------------------------------------------------------------

    def is_known(self, handle: Handle) -> bool:
        return self.process(handle) is not None

    def is_alive(self, workspace: Workspace, handle: Handle) -> Liveness:
        identity = self.process(handle)
        if identity is None or not process.is_alive(identity):
            return Liveness.gone
        is_here = process.works_in(identity.pid, workspace.directory)
        return Liveness.alive if is_here else Liveness.gone

    def is_stopped(self, handle: Handle) -> bool:
        identity = self.process(handle)
        return identity is not None and process.is_stopped(identity.pid)

    def is_of_another_boot(self, handle: Handle) -> bool:
        return handle.get("boot_id") not in (None, rundir.boot_id())

    def process(self, handle: Handle) -> ProcessIdentity | None:
        boot_id, pid, start_ticks = (handle.get(k) for k in ("boot_id", "pid", "start_ticks"))
        if boot_id is None or pid is None or start_ticks is None:
            return None
        return ProcessIdentity(boot_id, pid, start_ticks)

    def exit_code(self, workspace: Workspace) -> int | None:
        child = self._children.get(workspace.token)
        return child.poll() if child is not None else None

    def waits(self, workspace: Workspace, handle: Handle) -> EngineWait | None:
        return None

    def ending(self, workspace: Workspace, save_seconds: float) -> EngineEnding | None:
        return None

    # --- signalling ------------------------------------------------------------------------------

    def signal(self, workspace: Workspace, handle: Handle, *signals: signal.Signals) -> bool:
        identity = self.process(handle)
        sent = identity is not None and process.send(identity, workspace.token, *signals)
        if sent and signal.SIGCONT in signals:
            process.continue_helpers(workspace.token)
        return sent

    # --- cleanup ---------------------------------------------------------------------------------

    def has_leftovers(self, workspace: Workspace) -> bool:
        return bool(helpers(workspace)) or rundir.is_held(workspace.directory / LOCK)

    def sweep(self, workspace: Workspace) -> None:
        for one in helpers(workspace):
            process.send(one, workspace.token, signal.SIGKILL)

    def release(self, workspace: Workspace) -> None:
        child = self._children.pop(workspace.token, None)
        if child is not None and child.poll() is None:
            self._exiting.append(child)

    def reap(self) -> None:
        self._exiting = [child for child in self._exiting if child.poll() is None]

    def leave(self) -> None:
        for child in (*self._children.values(), *self._exiting):
            child.leave()


def helpers(workspace: Workspace) -> list[ProcessIdentity]:
    """Live processes of this workspace: those with its token and directory."""
    found = process.carriers(workspace.token)
    return [one for one in found if process.works_in(one.pid, workspace.directory)]
