"""Power limits: set while a process of traind uses a device, restored afterwards.

The previous limit is stored as a row before the first change, so that the next start restores it
after a kill. A limit that another program has set in the meantime stays.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Protocol

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database.db import Database
from server.database.tables import PowerLimit
from server.domain import events
from server.machine.devices import Device
from server.machine.power import SAME_WATTS, PowerDenied, PowerState

log = logging.getLogger("traind.scheduling")


class PowerControl(Protocol):
    """`server.machine.power`, or its fake in tests."""

    def read(self, uuid: str) -> PowerState: ...

    def set_limit(self, device: str, uuid: str, watts: float) -> None: ...


class PowerLimits:
    """Holds power limits. problems: why a limit cannot be set, by device."""

    def __init__(self, db: Database, control: PowerControl) -> None:
        self._db, self._control = db, control
        self.problems: dict[str, str] = {}

    def hold(self, devices: Sequence[Device], wanted: Mapping[str, float]) -> None:
        """Set each device to its wanted limit, and all others to their previous one."""
        with self._db.read() as session:
            held = {row.place: row for row in session.scalars(select(PowerLimit))}
        self.problems = {name: why for name, why in self.problems.items() if name in wanted}
        for device in devices:
            if device.uuid is not None and device.device in wanted:
                try:
                    self._set(device, held.get(device.device), wanted[device.device])
                    self.problems.pop(device.device, None)
                except PowerDenied as error:
                    self._problem(device.device, error.detail)
        for place, row in held.items():
            if place not in wanted:
                self.put_back(row)

    def put_back_all(self) -> None:
        """Restore all power limits when the daemon stops."""
        with self._db.read() as session:
            held = list(session.scalars(select(PowerLimit)))
        for row in held:
            self.put_back(row)

    def put_back(self, row: PowerLimit) -> None:
        """Restore the previous limit, unless another program has changed it since."""
        state = self._control.read(row.uuid)
        if state.limit_watts is None:
            return  # no driver now: keep the row
        try:
            if abs(state.limit_watts - row.watts) < SAME_WATTS:
                self._control.set_limit(row.place, row.uuid, row.watts_before)
        except PowerDenied as error:
            self._problem(row.place, error.detail)
            return
        with self._db.write() as session:
            session.delete(session.get_one(PowerLimit, row.place))
            words = f"the power limit of {row.place} is restored to {row.watts_before:g} W"
            _record(session, words, row.place, row.watts_before)

    def _set(self, device: Device, row: PowerLimit | None, watts: float) -> None:
        uuid = device.uuid or ""
        before = self._control.read(uuid).limit_watts
        if before is None:
            raise PowerDenied(f"{device.device} reports no power limit, so none can be set.")
        if abs(before - watts) < SAME_WATTS:
            return
        with self._db.write() as session:
            session.merge(
                PowerLimit(
                    place=device.device,
                    uuid=uuid,
                    watts_before=row.watts_before if row is not None else before,
                    watts=watts,
                )
            )
        try:
            self._control.set_limit(device.device, uuid, watts)
        except PowerDenied:
            self._forget(device.device, row)
            raise
        with self._db.write() as session:
            words = f"the power limit of {device.device} is {watts:g} W, previously {before:g} W"
            _record(session, words, device.device, watts)

    def _forget(self, place: str, row: PowerLimit | None) -> None:
        """Restore the row of a limit that could not be set."""
        with self._db.write() as session:
            if row is None:
                session.delete(session.get_one(PowerLimit, place))
            else:
                session.merge(row)

    def _problem(self, place: str, why: str) -> None:
        if self.problems.get(place) != why:
            log.warning("%s", why)
        self.problems[place] = why


def _record(session: Session, words: str, place: str, watts: float) -> None:
    events.record(session, "power", words, data={"device": place, "watts": watts})
