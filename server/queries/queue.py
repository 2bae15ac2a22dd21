"""GET /v1/queue: the run on each device, and the waiting runs with the reason and end of each
wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from server.database.tables import Attempt, Execution, Job, Run
from server.domain import executions, gang
from server.domain.states import OCCUPYING, State
from server.machine.devices import Device
from server.scheduling import rows
from server.scheduling.decide import Decision, Place, Workload, decide
from server.scheduling.inputs import SchedulerInputs
from server.schemas.queue import QueueEntry, QueuePlace, QueueView
from trainer.contract.reasons import Reason

MAX_WAITING = 100


def view(
    session: Session,
    devices: Sequence[Device],
    around: SchedulerInputs,
    power_limits: Mapping[str, float | None],
) -> QueueView:
    """The queue as the supervisor's next tick would see it; the first MAX_WAITING runs.

    power_limits: {device: its limit in watts}.
    """
    holding, waiting = _holding(session), _waiting(session)
    places = rows.places(session, devices, around)
    workloads = {
        run.id: rows.of_run(
            run,
            attempt,
            rows.devices_of(session, run, attempt, devices)[0],
            around.now,
            around.prices,
        )
        for run, attempt in [*holding, *((run, None) for run in waiting)]
    }
    jobs = {job.id: rows.of_job(job, devices) for job in _jobs(session)}
    elsewhere = {run.id for run in waiting if gang.is_elsewhere(run)}
    elsewhere |= {run.id for run, _ in holding if gang.is_elsewhere(run)}
    decided = [workload for workload in workloads.values() if workload.id not in elsewhere]
    found = decide(places, [*decided, *jobs.values()], around.now)
    names = {run.id: run.name for run, _ in holding} | {run.id: run.name for run in waiting}
    queued = Run.queue_position.is_not(None)
    return QueueView(
        places=[
            _place(
                place,
                devices,
                {workload.id: workload for workload in decided},
                jobs,
                names,
                around,
                power_limits,
            )
            for place in places
            if place.name not in rows.SLOTS
        ],
        waiting=[
            _entry(number, run, workloads[run.id], found, names)
            for number, run in enumerate(waiting, 1)
        ],
        num_waiting=session.scalar(select(func.count()).where(queued)) or 0,
        next_change_at=found.wake_at,
    )


def _holding(session: Session) -> list[tuple[Run, Attempt | None]]:
    found: dict[str, tuple[Run, Attempt | None]] = {}
    occupying = select(Run).where(Run.state.in_(OCCUPYING))
    for run in session.scalars(occupying):
        found[run.id] = (run, None)
    living = select(Run, Attempt).join(Attempt).join(Execution).where(executions.IS_OPEN)
    for run, attempt in session.execute(living):
        found[run.id] = (run, attempt)
    return list(found.values())


def _waiting(session: Session) -> list[Run]:
    queued = select(Run).where(Run.queue_position.is_not(None))
    return list(
        session.scalars(queued.order_by(Run.queue_rank, Run.queue_position).limit(MAX_WAITING))
    )


def _jobs(session: Session) -> Sequence[Job]:
    open_ones = select(Job).join(Execution).where(executions.IS_OPEN, Job.where == "device")
    return session.scalars(open_ones).all()


def _place(
    place: Place,
    devices: Sequence[Device],
    runs: dict[str, Workload],
    jobs: dict[str, Workload],
    names: dict[str, str],
    around: SchedulerInputs,
    power_limits: Mapping[str, float | None],
) -> QueuePlace:
    run = next(
        (names[workload.id] for workload in runs.values() if place.name in workload.holds), None
    )
    found = next(device for device in devices if device.device == place.name)
    return QueuePlace(
        device=place.name,
        name=found.name,
        run=run,
        job=next((workload.id for workload in jobs.values() if place.name in workload.holds), None),
        is_open=place.opening.is_open,
        closes_at=place.opening.closes_at,
        opens_at=place.opening.opens_at,
        neighbour=place.neighbour,
        too_hot=place.too_hot,
        power_limit_watts=power_limits.get(place.name),
        problems=[why for name, why in around.power_problems.items() if name == place.name],
    )


def _entry(
    position: int, run: Run, workload: Workload, found: Decision, names: dict[str, str]
) -> QueueEntry:
    verdict = found.waits.get(run.id)
    reason, message = Reason(run.reason), run.reason_message
    if verdict is not None and State(run.state) is State.queued:
        reason, message = rows.in_words(verdict, names, ", ".join(workload.places))
    return QueueEntry(
        position=position,
        run=run.id,
        name=run.name,
        priority=workload.priority,
        devices=list(workload.places),
        reason=reason,
        reason_message=message,
        until=verdict.until if verdict is not None else None,
    )
