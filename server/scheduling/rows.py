"""Converts rows to scheduler inputs: runs and jobs to workloads, devices and slots to places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import TypeAdapter
from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database.tables import Attempt, Job, PlacePolicy, Run
from server.domain import gang
from server.domain.executions import ExecutionState
from server.domain.states import OCCUPYING, Desired, State
from server.machine.devices import Device, DeviceMissing, resolve, resolve_all
from server.scheduling import hours
from server.scheduling.decide import ALWAYS, Opening, Place, SchedulingVerdict, WaitCause, Workload
from server.scheduling.hours import Price, Rule
from server.scheduling.inputs import SchedulerInputs
from trainer.contract import units
from trainer.contract.reasons import Reason
from trainer.contract.spec import HoursRule

JOB_PRIORITY = 1_000  # a short job precedes any waiting run, and displaces none
LEAST_SAVE_SECONDS = 60.0
END_SECONDS = 15.0  # for the process to exit and the supervisor to detect it
SAVE_MARGIN = 2.0  # of the slowest save so far: a disk may be busier next time
COMPLETIONS = "completions"
CPU_JOB = "cpu job"
SLOTS = (CPU_JOB, COMPLETIONS)  # places that are not devices
_HOURS = TypeAdapter(list[HoursRule])
_LEAVING = frozenset({State.pausing, State.cancelling})

REASON_OF = {
    WaitCause.displaced: Reason.preempted,
    WaitCause.hours: Reason.outside_hours,
    WaitCause.neighbour: Reason.device_wanted,
    WaitCause.heat: Reason.device_hot,
    WaitCause.queue: Reason.waiting_for_device,
    WaitCause.unavailable: Reason.device_missing,
}


def rules_of(text: str) -> list[Rule] | None:
    """Parse hours from a column; None is always open."""
    return hours.rules(_HOURS.validate_json(text)) if text else None


def opening_of(text: str, now: float, prices: Sequence[Price]) -> Opening:
    """Opening state at `now` of the hours in a column."""
    return hours.opening(rules_of(text), now, prices)


def places(session: Session, devices: Sequence[Device], around: SchedulerInputs) -> list[Place]:
    """Every device with its policy, and the slots for work on the CPU and for completions."""
    policies = {row.place: row for row in session.scalars(select(PlacePolicy))}
    found = [Place(slot) for slot in SLOTS]
    for device in devices:
        name = device.device
        policy = policies.get(name)
        hours = policy.hours if policy is not None else ""
        opening = opening_of(hours, around.now, around.prices)
        found.append(Place(name, opening, around.neighbours.get(name), around.hot.get(name)))
    return found


def devices_of(
    session: Session, run: Run, attempt: Attempt | None, devices: Sequence[Device]
) -> tuple[tuple[str, ...], str | None]:
    """Devices on which a run may start: all of them for a run on several; 'auto' stays on its first
    device and never falls back to the CPU. With an open attempt, the devices that it holds."""
    if gang.is_elsewhere(run):
        return (run.spec["place"]["engine"],), None
    if attempt is not None:
        return gang.held_by(attempt, run), None
    if together := gang.of_run(run, devices):
        return tuple(dict.fromkeys(together)), _missing(together, devices)
    wanted = run.device
    if wanted == "auto":
        before = session.scalars(
            select(Attempt.device)
            .where(Attempt.run_id == run.id, Attempt.number > 0)
            .order_by(Attempt.number.desc())
            .limit(1)
        ).first()
        wanted = before or wanted
    try:
        return resolve_all(wanted, devices), None
    except DeviceMissing as error:
        return (wanted,), error.detail


def _missing(together: Sequence[str], devices: Sequence[Device]) -> str | None:
    for device in together:
        try:
            resolve(device, devices)
        except DeviceMissing as error:
            return error.detail
    return None


def of_run(
    run: Run,
    attempt: Attempt | None,
    devices: Sequence[str],
    now: float,
    prices: Sequence[Price] = (),
) -> Workload:
    """Workload of a run that holds a device or waits for one. devices: the acceptable ones; a run
    on several needs all of them, and an open attempt holds all of them."""
    state = State(run.state)
    count = len(devices) if attempt is not None or gang.is_asked_for(run) else 1
    holds = devices[:count] if attempt is not None or state in OCCUPYING else ()
    wants_to_run = run.desired_state == Desired.running
    return Workload(
        run.id,
        tuple(devices),
        (0.0 if run.queue_position is not None else 1.0, run.queue_position or 0, run.created_at),
        count=count,
        holds=tuple(holds),
        priority=-run.queue_rank,
        is_preemptible=bool(run.spec.get("preemptible", True)),
        is_leaving=bool(holds) and (state in _LEAVING or state not in OCCUPYING),
        held_since=attempt.created_at if attempt is not None else run.state_since,
        save_seconds=save_seconds(run),
        opening=opening_of(run.hours, now, prices) if wants_to_run else ALWAYS,
    )


def save_seconds(run: Run) -> float:
    """Seconds from a pause request until the device is free: the step under way, a checkpoint,
    the check of the next loss, and the exit of the process.

    Estimated from the run's steps and its slowest save; LEAST_SAVE_SECONDS before the first save.
    """
    tokens_per_second = run.progress.get("tokens_per_second")
    step = run.batch_tokens / tokens_per_second if tokens_per_second else 0.0
    slowest = run.progress.get("slowest_save_seconds")
    save = LEAST_SAVE_SECONDS if slowest is None else END_SECONDS + SAVE_MARGIN * slowest
    return save + 3 * step


def of_job(job: Job, devices: Sequence[Device]) -> Workload:
    """Workload of a job: it precedes runs that wait for the same place, and displaces none."""
    place = job_place(job, devices)
    return Workload(
        job.id,
        (place,),
        (0.0, job.created_at),
        holds=(place,) if job.state == ExecutionState.running else (),
        priority=JOB_PRIORITY,
        is_preemptible=False,
        may_displace=False,
    )


def job_place(job: Job, devices: Sequence[Device]) -> str:
    """Place of a job: its device, or else the best one; the slot for work on the CPU; or the slot
    for completions, a separate one because serving may last for hours."""
    if job.kind == "serve":
        return COMPLETIONS
    if job.where != "device":
        return CPU_JOB
    return str(job.params.get("device") or devices[0].device)


def in_words(
    verdict: SchedulingVerdict, names: Mapping[str, str], place: str
) -> tuple[Reason, str]:
    """Reason and message of a verdict, for a run's row. names: of runs and jobs by id."""
    reason = REASON_OF[verdict.cause]
    blockers = [names.get(other, other) for other in verdict.by]
    others = _in_series(blockers)
    is_one = len(blockers) == 1
    match verdict.cause:
        case WaitCause.displaced:
            verbs = ("has", "needs") if is_one else ("have", "need")
            return reason, f"{others} {verbs[0]} a higher priority and {verbs[1]} {place}."
        case WaitCause.hours:
            may = f" It may resume from {units.zoned(verdict.until)}."
            until = may if verdict.until else ""
            return reason, f"Outside its hours or those of {place}.{until}"
        case WaitCause.neighbour:
            verb = "uses" if is_one else "use"
            return reason, f"{others} {verb} {place}. It resumes when that has ended."
        case WaitCause.heat:
            return reason, f"{place} is too hot ({others}). It resumes when it has cooled."
        case WaitCause.queue if verdict.until is not None:
            verb = "yields" if is_one else "yield"
            return reason, f"{others} {verb} {place} to it at {units.zoned(verdict.until)}."
        case WaitCause.queue:
            if not blockers:
                return reason, reason.sentence
            return reason, f"{others} {'comes' if is_one else 'come'} first on {place}."
    return reason, reason.sentence


def makes_way_for(verdict: SchedulingVerdict, names: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the runs, jobs or programs that need the place; empty for hours and heat."""
    if verdict.cause not in (WaitCause.displaced, WaitCause.neighbour):
        return ()
    return tuple(names.get(other, other) for other in verdict.by)


def _in_series(names: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    *most, last = names or [""]
    return f"{', '.join(most)} and {last}" if most else last
