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
    """Shared context. backoff: seconds before the first, second, … retry. worker: the ingesting
    process; None where the supervisor's own thread does. xids: errors of GPUs as NVIDIA's library
    reports them. launchers: by name; left out, those of this traind. scheduler_inputs: prices and
    other programs; None where there are none.
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
        """Start to watch the directory of an execution."""
        directory = self.settings.paths.root / execution.directory
        return Watch(Workspace(directory, execution.token), self.launcher(execution))
