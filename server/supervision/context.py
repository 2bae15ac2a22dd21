"""Supervisor context: database, settings, devices and processes that its actions share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from server.database import tables
from server.database.db import Database
from server.ingestion.worker import Worker
from server.launch import registry
from server.launch.launcher import Launcher, Workspace
from server.machine.devices import Device
from server.machine.xid_events import XidListener
from server.scheduling.inputs import SchedulerInputs
from server.settings import Settings
from server.supervision import recovery
from server.supervision.watch import Watch


@dataclass(frozen=True)
class SupervisorContext:
    """Shared context. backoff: seconds before the first, second, … retry. worker: the ingestion
    process; None if the supervisor's thread ingests. xids: GPU errors reported by NVIDIA's library.
    launchers: by name; the default is all of the registry. scheduler_inputs: prices and other
    programs; None without them.
    """

    db: Database
    settings: Settings
    devices: Sequence[Device]
    backoff: tuple[float, ...] = field(default=recovery.BACKOFF_SECONDS)
    worker: Worker | None = None
    xids: XidListener | None = None
    launchers: Mapping[str, Launcher] = field(default_factory=dict)
    scheduler_inputs: Callable[[], SchedulerInputs] | None = None

    def __post_init__(self) -> None:
        if not self.launchers:
            object.__setattr__(self, "launchers", registry.make(self.settings))

    def launcher(self, execution: tables.Execution) -> Launcher:
        return self.launchers[execution.launcher]

    def watch(self, execution: tables.Execution) -> Watch:
        """Create the watch of an execution's directory."""
        directory = self.settings.paths.root / execution.directory
        return Watch(Workspace(directory, execution.token), self.launcher(execution))
