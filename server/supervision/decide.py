"""Decides the next action for a run or a job from rows, observations and a clock. Pure.

One action per tick: the next one is decided from new observations, so a daemon that is killed
between two actions needs no special path.
"""

from __future__ import annotations

import math
import signal
from dataclasses import dataclass, field

from server.domain.states import SETTLED, YIELDS, State
from server.supervision.watch import Presence
from trainer.contract import units
from trainer.contract.reasons import Reason
from trainer.contract.rundir import DUMP_SIGNAL

DUMP_SECONDS = 2.0  # for the stack dump to reach the log
TERM_SECONDS = 10.0  # for a stalled or unresponsive process to exit by itself
SAVE_SECONDS = 60.0  # for a checkpoint after SIGTERM, past the deadline of a pause
CANCEL_SECONDS = 30.0
DISK_SILENCE_SECONDS = 5.0
ENGINE_SECONDS = 30.0  # before the cancel of a waiting cluster job is repeated


# --- actions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Action:
    """An action of the supervisor; the base class itself means no action."""


@dataclass(frozen=True)
class Move(Action):
    """Move the run to another state; nothing else is needed. by: names for which it yields."""

    state: State
    reason: Reason
    message: str | None = None
    by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explain(Action):
    """Change the reason of the state. message: None is the reason's own sentence."""

    reason: Reason
    message: str | None = None


@dataclass(frozen=True)
class Prepare(Action):
    """Start a job that prepares the data."""


@dataclass(frozen=True)
class DropPreparation(Action):
    """Cancel the job that prepares the data."""


@dataclass(frozen=True)
class Launch(Action):
    """Start the process: a new attempt, or the job."""


@dataclass(frozen=True)
class Adopt(Action):
    """Find the process that an earlier daemon started and did not record."""


@dataclass(frozen=True)
class Deliver(Action):
    """Write the waiting commands into the inbox."""


@dataclass(frozen=True)
class SendCommand(Action):
    """Send the command 'pause' or 'cancel'."""

    kind: str


@dataclass(frozen=True)
class Signal(Action):
    """Send signals. step: the step of the ladder reached with it. why: for the event."""

    signals: tuple[signal.Signals, ...]
    step: int
    why: str
    stall: bool = False


@dataclass(frozen=True)
class ClearStall(Action):
    """Clear a stall: the process reports again."""


@dataclass(frozen=True)
class Sweep(Action):
    """Kill the remaining processes of a dead execution."""


@dataclass(frozen=True)
class Close(Action):
    """Record how the process ended and what follows; it is gone and its journal fully read."""


WAIT = Action()


# --- observations --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """Observation of one process directory at this tick. Times in watched seconds.

    sent: kinds of commands in its inbox. step: the step of the ladder reached (0 none, 1 sent,
    2 SIGTERM, 3 SIGKILL). timeout: the stall timeout. engine_waits: why its engine has not started
    it or does not answer.
    """

    presence: Presence = Presence.none
    drained: bool = False
    has_begun: bool = False
    sent: frozenset[str] = frozenset()
    has_commands: bool = False
    step: int = 0
    since_step: float = 0.0
    silence: float = 0.0
    timeout: float = 600.0
    stall_step: int = 0
    is_stopped: bool = False
    waits_for_space: bool = False
    engine_waits: tuple[Reason, str] | None = None


@dataclass(frozen=True)
class RunSeen:
    """Observation of a run at this tick. preparation: state of its newest relevant prepare job.

    wants_to_run: its desired state; a resume while it is pausing takes effect after the pause.
    yields: the move by which it yields. waits: reason and message of its wait.
    lacks_disk: True if a lack of disk space prevents a start.
    budget_spent: which part of its budget is spent, as a sentence; None within the budget.
    """

    state: State
    wants_to_run: bool = False
    process: Seen = field(default_factory=Seen)
    reason: Reason = Reason.requested
    has_data: bool = True
    preparation: str | None = None
    preparation_message: str = ""
    preparation_reason: Reason | None = None
    may_use_device: bool = False
    yields: Move | None = None
    waits: tuple[Reason, str] | None = None
    lacks_disk: bool = False
    budget_spent: str | None = None
    message: str = ""
    is_backing_off: bool = False
    is_shutting_down: bool = False
    stops_trainers: bool = False
    pause_seconds: float = 600.0


@dataclass(frozen=True)
class JobSeen:
    """Observation of a job at this tick."""

    state: str
    process: Seen = field(default_factory=Seen)
    is_cancelled: bool = False
    may_start: bool = False
    reason: Reason | None = None
    lacks_disk: bool = False
    is_shutting_down: bool = False
    stops_trainers: bool = False


# --- runs ----------------------------------------------------------------------------------------


def for_run(seen: RunSeen) -> Action:
    """The next action for this run."""
    match seen.process.presence:
        case Presence.unknown:
            return Adopt()
        case Presence.unreachable:
            return _explain_the_engine(seen)  # a controller that does not answer proves no end
        case Presence.waiting:
            return _while_waiting(seen)
        case Presence.lingering:
            return Sweep()
        case Presence.gone:
            return Close() if seen.process.drained else WAIT
        case Presence.alive:
            return _while_alive(seen)
    return _without_process(seen)


def _while_alive(seen: RunSeen) -> Action:
    process = seen.process
    if seen.state is State.pausing:
        return _ladder(process, "pause", seen.pause_seconds, SAVE_SECONDS)
    if seen.state is State.cancelling or seen.state in SETTLED:
        return _ladder(process, "cancel", min(CANCEL_SECONDS, seen.pause_seconds), TERM_SECONDS)
    if seen.is_shutting_down and seen.stops_trainers:
        return _end_in_order(process, seen.pause_seconds)
    if (stall := _stall(process)) is not None:
        return stall
    if seen.budget_spent is not None:
        return Move(State.pausing, Reason.budget_spent, seen.budget_spent)
    if seen.yields is not None:
        return seen.yields
    if seen.state is State.starting and process.has_begun:
        return Move(State.running, Reason.requested)
    if process.has_commands:
        return Deliver()
    return _disk_words(seen)


def _while_waiting(seen: RunSeen) -> Action:
    """A process that its engine has not started: if it should stop, remove it from the queue."""
    leaves = seen.state in (State.pausing, State.cancelling) or seen.state in SETTLED
    if leaves or (seen.is_shutting_down and seen.stops_trainers):
        if seen.process.step and seen.process.since_step < ENGINE_SECONDS:
            return WAIT
        return Signal((signal.SIGTERM,), 1, "its job is removed from the cluster's queue")
    return _explain_the_engine(seen)


def _explain_the_engine(seen: RunSeen) -> Action:
    words = seen.process.engine_waits
    shown = seen.state in (State.starting, State.running)
    if words is None or not shown or words == (seen.reason, seen.message):
        return WAIT
    return Explain(*words)


def _ladder(process: Seen, kind: str, timeout: float, grace: float) -> Action:
    """Escalate: command, then SIGTERM, then SIGKILL; one step per tick, each after its timeout."""
    if kind not in process.sent:
        return Deliver() if process.has_commands else SendCommand(kind)
    if process.is_stopped and process.step == 0:
        why = f"it was stopped by a signal; it is continued so that it can {kind}"
        return Signal((signal.SIGCONT,), 1, why)
    if process.step <= 1 and process.since_step >= timeout:
        is_told = process.since_step < math.inf
        where = f"after {units.duration(timeout)}" if is_told else "can be written to its inbox"
        why = f"no {kind} {where}"
        return Signal(_asking_to_end(process), 2, why)
    if process.step == 2 and process.since_step >= min(grace, timeout):
        return Signal((signal.SIGKILL,), 3, f"no exit after SIGTERM, requested: {kind}")
    return WAIT


def _asking_to_end(process: Seen) -> tuple[signal.Signals, ...]:
    """SIGTERM, and SIGCONT for a stopped process, which handles SIGTERM only when continued."""
    return (signal.SIGTERM, signal.SIGCONT) if process.is_stopped else (signal.SIGTERM,)


def _end_in_order(process: Seen, timeout: float) -> Action:
    """Stop a trainer with the daemon: SIGTERM to checkpoint and exit, SIGKILL after a timeout."""
    if process.step < 2:
        return Signal((signal.SIGTERM, signal.SIGCONT), 2, "the daemon stops with its trainers")
    if process.step == 2 and process.since_step >= timeout:
        return Signal((signal.SIGKILL,), 3, f"no exit {units.duration(timeout)} after SIGTERM")
    return WAIT


def _stall(process: Seen) -> Action | None:
    """Escalation of a stall: dump the stacks, terminate, kill. None without a stall."""
    if process.stall_step == 0:
        if process.silence < process.timeout or process.waits_for_space:
            return None
        what = "stopped by a signal" if process.is_stopped else "no report"
        silence, timeout = units.duration(process.silence), units.duration(process.timeout)
        why = f"{what} for {silence} (stall timeout: {timeout})"
        first = (DUMP_SIGNAL, signal.SIGCONT) if process.is_stopped else (DUMP_SIGNAL,)
        return Signal(first, 2 if process.is_stopped else 1, why, stall=True)
    if process.stall_step == 1 and process.silence < process.since_step:
        return ClearStall()
    if process.stall_step <= 2 and process.since_step >= DUMP_SECONDS:
        why = "the stack dump is in its log"
        return Signal(_asking_to_end(process), 3, why, stall=True)
    # a process that reports again is saving
    grace = SAVE_SECONDS if process.silence < process.since_step else TERM_SECONDS
    if process.stall_step == 3 and process.since_step >= grace:
        return Signal((signal.SIGKILL,), 4, "it did not exit after SIGTERM", stall=True)
    return WAIT


_OF_AN_ENGINE = frozenset({Reason.waiting_for_engine, Reason.engine_unreachable})


def _disk_words(seen: RunSeen) -> Action:
    if seen.reason in _OF_AN_ENGINE and seen.state in (State.starting, State.running):
        return Explain(Reason.requested)
    if seen.state is not State.running:
        return WAIT
    waits = seen.process.waits_for_space and seen.process.silence >= DISK_SILENCE_SECONDS
    if waits and seen.reason is not Reason.disk_full:
        return Explain(Reason.disk_full)
    if not waits and seen.reason is Reason.disk_full and seen.process.silence == 0:
        return Explain(Reason.requested)
    return WAIT


def _without_process(seen: RunSeen) -> Action:
    match seen.state:
        case State.pausing | State.cancelling:
            if seen.preparation in ("queued", "running"):
                return DropPreparation()
            return _stop(seen)
        case State.running:
            return Move(State.recovering, Reason.crashed, "its process no longer exists")
        case State.queued | State.preparing | State.starting | State.recovering:
            return WAIT if seen.is_shutting_down else _on_the_way(seen)
    return WAIT


def _stop(seen: RunSeen) -> Move:
    """Move a run without a process that should pause or be cancelled."""
    if seen.state is State.cancelling:
        return Move(State.cancelled, Reason.requested)
    if seen.reason is Reason.budget_spent and not seen.wants_to_run:
        return Move(State.paused, seen.reason, seen.message)
    if seen.reason in YIELDS and seen.wants_to_run:
        return Move(State.queued, seen.reason, seen.message)
    after = State.queued if seen.wants_to_run else State.paused
    return Move(after, Reason.copied if seen.reason is Reason.copied else Reason.requested)


def _on_the_way(seen: RunSeen) -> Action:
    if seen.budget_spent is not None:
        return Move(State.pausing, Reason.budget_spent, seen.budget_spent)
    if seen.yields is not None:
        return seen.yields
    if seen.is_backing_off:
        return WAIT
    if not seen.has_data:
        return _prepare(seen)
    if seen.may_use_device:
        return _wait_for_disk(seen.reason) if seen.lacks_disk else Launch()
    if seen.state is State.preparing:
        return Move(State.queued, *(seen.waits or (Reason.waiting_for_device, None)))
    return _explain_the_wait(seen)


def _explain_the_wait(seen: RunSeen) -> Action:
    """Keep the reason current while hours, another program or a preempting run cause the wait."""
    if seen.waits is None or seen.waits == (seen.reason, seen.message):
        return WAIT
    is_queue = seen.waits[0] is Reason.waiting_for_device
    if is_queue and seen.reason not in (
        Reason.outside_hours,
        Reason.device_wanted,
        Reason.device_hot,
        Reason.disk_full,
    ):
        return WAIT
    return Explain(*seen.waits)


def _wait_for_disk(reason: Reason | None, message: str | None = None) -> Action:
    return WAIT if reason is Reason.disk_full else Explain(Reason.disk_full, message or None)


# Failures of a preparation that are not caused by the data and need other advice.
_OF_THE_MACHINE = frozenset({
    Reason.host_out_of_memory, Reason.too_many_open_files, Reason.io_error,
    Reason.not_permitted, Reason.network_failed, Reason.software_missing,
})  # fmt: skip


def _prepare(seen: RunSeen) -> Action:
    if seen.preparation == "running" or (seen.preparation == "queued" and not seen.lacks_disk):
        is_over = seen.reason is Reason.disk_full
        return Explain(Reason.waiting_for_data) if is_over else WAIT
    if seen.preparation == "failed" and seen.state is State.preparing:
        of_machine = seen.preparation_reason in _OF_THE_MACHINE
        reason = seen.preparation_reason if of_machine else None
        return Move(State.failed, reason or Reason.data_unusable, seen.preparation_message)
    if seen.lacks_disk:
        ended_for_it = seen.preparation_reason is Reason.disk_full
        return _wait_for_disk(seen.reason, seen.preparation_message if ended_for_it else None)
    return Prepare()


# --- jobs ----------------------------------------------------------------------------------------


def for_job(seen: JobSeen) -> Action:
    """The next action for this job."""
    if seen.state == "queued":
        if seen.is_cancelled:
            return Close()
        if seen.is_shutting_down or not seen.may_start:
            return WAIT
        return _wait_for_disk(seen.reason) if seen.lacks_disk else Launch()
    match seen.process.presence:
        case Presence.unknown:
            return Adopt()
        case Presence.unreachable | Presence.waiting:
            return WAIT  # a controller that does not answer proves no end
        case Presence.lingering:
            return Sweep()
        case Presence.gone:
            return Close() if seen.process.drained else WAIT
    if seen.is_cancelled:
        return _ladder(seen.process, "cancel", DUMP_SECONDS, TERM_SECONDS)
    if seen.is_shutting_down and seen.stops_trainers:
        return _end_in_order(seen.process, TERM_SECONDS)
    return _stall(seen.process) or WAIT
