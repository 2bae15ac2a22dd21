"""Routes of the queue and of the devices' policies."""

from __future__ import annotations

import time
from typing import Annotated

from fastapi import APIRouter, Path, Request

from server.api.deps import Conf, Db, Doing, StrictRoute
from server.api.openapi import problems
from server.domain import policies, preflight
from server.machine import devices
from server.machine.devices import Device
from server.queries import queue
from server.scheduling.inputs import SchedulerInputs
from server.schemas.policies import PlacePolicyAnswer, PlacePolicyView
from server.schemas.queue import QueueView

router = APIRouter(prefix="/v1", tags=["system"], route_class=StrictRoute)
DeviceRef = Annotated[
    str, Path(pattern=r"^(cpu|mps|cuda:\d{1,3})$", description="cpu, cuda:N or mps.")
]


@router.get("/queue")
def show(request: Request, db: Db) -> QueueView:
    """The queue: the run on each device, and the waiting runs with the reason and end of each
    wait."""
    source = request.app.state.scheduler_inputs
    around = source.seen() if source is not None else SchedulerInputs(time.time())
    present, readings = devices.discover(), request.app.state.readings
    limits = {one.device: readings.of(one.uuid).power_limit_watts for one in present}
    with db.read() as session:
        return queue.view(session, present, around, limits)


@router.get("/devices/{device}/policy", responses=problems(422))
def policy(device: DeviceRef, db: Db) -> PlacePolicyAnswer:
    """Policy of a device: hours, programs that runs yield to, power limits, temperature
    ceilings."""
    found = _device(device)
    with db.read() as session:
        return _answer(found, policies.get(session, device))


@router.put("/devices/{device}/policy", responses=problems(422))
def put_policy(
    device: DeviceRef, body: PlacePolicyView, act: Doing, conf: Conf
) -> PlacePolicyAnswer:
    """Replace the policy of a device; runs follow it within seconds.

    `problems` explains why a power limit cannot be set, with the command that permits it.
    """
    found = _device(device)
    preflight.require_tariff(body.hours, conf.tariff)
    for rule in body.power or ():
        preflight.require_tariff(rule.hours, conf.tariff)
    policies.require_power(found, body)
    with act.db.write() as session:
        policies.put(session, device, body)
        session.flush()
        kept = policies.get(session, device)
    return _answer(found, kept)


def _device(name: str) -> Device:
    devices.resolve(name)
    return next(one for one in devices.discover() if one.device == name)


def _answer(device: Device, policy: PlacePolicyView) -> PlacePolicyAnswer:
    return PlacePolicyAnswer(
        hours=policy.hours,
        neighbours=policy.neighbours,
        power=policy.power,
        problems=policies.problems(device, policy),
    )
