"""Scheduler inputs beside the rows, kept up to date by a thread: prices and programs on the GPUs.

The thread keeps their delays out of the supervisor: a tariff comes over a network, and a driver
that lost a GPU may block for a minute.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database.db import Database
from server.database.tables import Attempt, Execution, Job, PlacePolicy
from server.domain import executions, gang
from server.errors import TraindError
from server.launch.process import TOKEN_VARIABLE
from server.machine import gpu_programs, power
from server.machine.devices import Device
from server.machine.gpu_programs import GpuProgram
from server.scheduling import heat
from server.scheduling.heat import Heat
from server.scheduling.hours import Price
from server.scheduling.neighbours import Neighbours, Watched
from server.scheduling.power_limits import PowerControl, PowerLimits
from server.scheduling.tariff import Tariff
from trainer.contract import units

POLL_SECONDS = 2.5

log = logging.getLogger("traind.scheduling")


@dataclass(frozen=True)
class SchedulerInputs:
    """Inputs of one decision. neighbours: {device: name of the program that uses it}. now: seconds
    since the epoch. hot: {device: its temperature as text}. power_problems: {device: why its limit
    is not set}."""

    now: float
    prices: Sequence[Price] = ()
    neighbours: Mapping[str, str] = field(default_factory=dict)
    hot: Mapping[str, str] = field(default_factory=dict)
    power_problems: Mapping[str, str] = field(default_factory=dict)


class SchedulerInputsThread:
    """Keeps the scheduler inputs up to date. One instance, one thread."""

    def __init__(
        self,
        db: Database,
        devices: Sequence[Device],
        tariff: str | None = None,
        programs: Callable[[], dict[str, list[GpuProgram]] | None] | None = None,
        control: PowerControl = power,
    ) -> None:
        self._db, self._devices = db, devices
        self.tariff = Tariff(tariff) if tariff else None
        self._programs = programs or (lambda: gpu_programs.programs(_is_ours))
        self._neighbours = Neighbours()
        self._used: dict[str, str] = {}
        self._control, self._limits = control, PowerLimits(db, control)
        self._heat, self._hot = Heat(), dict[str, str]()
        self._ends = threading.Event()
        self._thread: threading.Thread | None = None
        self.problem: str | None = None

    def seen(self) -> SchedulerInputs:
        """Latest known inputs; never blocks."""
        prices = self.tariff.prices if self.tariff else ()
        problems = dict(self._limits.problems)
        return SchedulerInputs(time.time(), prices, dict(self._used), dict(self._hot), problems)

    def problems(self) -> list[str]:
        """Reasons why prices or neighbours are unknown, as sentences."""
        around = [self.problem, self.tariff.problem if self.tariff else None]
        return [p for p in (*around, *self._limits.problems.values()) if p]

    def start(self) -> None:
        self.poll(time.monotonic())
        self._thread = threading.Thread(target=self._run, name="scheduler-inputs", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread and restore power limits. A thread blocked in a driver is abandoned."""
        self._ends.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
            if self._thread.is_alive():
                return
        try:
            self._limits.put_back_all()
        except TraindError as error:
            log.warning("power limits could not be restored; the next start retries: %s", error)

    def _run(self) -> None:
        while not self._ends.wait(POLL_SECONDS):
            self.poll(time.monotonic())

    def poll(self, now: float) -> None:
        """Read the tariff and the devices once. `now`: on a monotonic clock."""
        if self.tariff is not None:
            self.tariff.refresh(now)
            self._db.lend_prices(self.tariff.prices)
        try:
            with self._db.read() as session:
                rows = session.scalars(select(PlacePolicy)).all()
                in_use = _in_use(session, self._devices)
            self._check_power(rows, in_use, now)
        except TraindError as error:
            log.warning("the policies of the devices cannot be read: %s", error)
            return
        watched = {row.place: watched_of(row.neighbours) for row in rows}
        asked = any(rule is not None for rule in watched.values())
        self._note(self._programs() if asked else {}, watched, now)

    def _check_power(self, rows: Sequence[PlacePolicy], in_use: set[str], now: float) -> None:
        """Hold the power limits of devices in use, and update which devices are too hot."""
        prices, clock = self.tariff.prices if self.tariff else (), time.time()
        found = {row.place: heat.rule_at(row.power, clock, prices) for row in rows if row.power}
        rules = {place: rule for place, rule in found.items() if rule is not None}
        wanted = {
            place: rule.power_limit_watts
            for place, rule in rules.items()
            if rule.power_limit_watts is not None and place in in_use
        }
        self._limits.hold(self._devices, wanted)
        for device in self._devices:
            rule = rules.get(device.device)
            ceiling = rule.ceiling_celsius if rule is not None else None
            celsius = None
            if ceiling is not None and device.uuid is not None:
                celsius = self._control.read(device.uuid).temperature_celsius
            if self._heat.update(device.device, celsius, ceiling, now):
                degrees = "temperature unknown" if celsius is None else units.celsius(celsius)
                self._hot[device.device] = f"{degrees}, ceiling {units.celsius(ceiling)}"
            else:
                self._hot.pop(device.device, None)

    def _note(
        self,
        programs: dict[str, list[GpuProgram]] | None,
        watched: Mapping[str, Watched | None],
        now: float,
    ) -> None:
        self.problem = None
        if programs is None:
            self.problem = (
                "runs cannot yield to other programs: the driver does not list the processes "
                "on its GPUs"
            )
        for device in self._devices:
            found = (programs or {}).get(device.uuid or "", [])
            name = self._neighbours.update(device.device, found, watched.get(device.device), now)
            if name is None:
                self._used.pop(device.device, None)
            else:
                self._used[device.device] = name


def _in_use(session: Session, devices: Sequence[Device]) -> set[str]:
    """Devices in use by a process of traind."""
    attempts = session.scalars(select(Attempt).join(Execution).where(executions.IS_OPEN))
    found = {name for attempt in attempts for name in gang.used_by(attempt)}
    jobs = session.scalars(
        select(Job)
        .join(Execution)
        .where(Execution.state == executions.ExecutionState.running, Job.where == "device")
    )
    first = devices[0].device if devices else ""
    return found | {str(job.params.get("device") or first) for job in jobs}


def watched_of(neighbours: dict[str, Any] | None) -> Watched | None:
    """The rule in a policy's column; None is off."""
    if neighbours is None:
        return None
    return Watched(
        int(neighbours.get("least_bytes", Watched.least_bytes)),
        frozenset(neighbours.get("yield_to", ())),
        frozenset(neighbours.get("ignore", ())),
    )


def _is_ours(process: psutil.Process) -> bool:
    """True if the process has a daemon's token. False for another user's process, whose environment
    is unreadable."""
    try:
        return TOKEN_VARIABLE in process.environ()
    except (psutil.AccessDenied, psutil.ZombieProcess):
        return False
