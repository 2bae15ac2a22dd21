"""Trainer processes: launch, adopt, signal, close.

Each function is one action of `decide`, applied. The row is committed before the process exists
and the pid after it, so that a daemon killed anywhere between finds the process by its token.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database.db import Database
from server.database.tables import Attempt, CommandRow, Event, Job, Phase, Run
from server.domain import attempts, checkpoints
from server.domain.states import Desired, State, can_move, move
from server.ingestion.worker import Worker
from server.launch import kinds
from server.launch.launcher import Handle, Launcher, Spot, Work
from server.machine.devices import Device
from server.machine.xid_events import XidListener
from server.settings import Settings
from server.supervision import post_mortem, recovery
from server.supervision.decide import Signal
from server.supervision.failure_guard import in_words
from server.supervision.post_mortem import PostMortem
from server.supervision.recovery import Ending, Verdict
from server.supervision.watch import Watch
from trainer.contract import exits, journal, orders, os_errors
from trainer.contract.exits import Reason
from trainer.contract.rundir import INBOX, boot_id, write_durably
from trainer.contract.spec import RecoverySpec

MODULE = "trainer"

# States of a run that wait for what its attempt comes to.
_WAITING = frozenset(
    {State.starting, State.running, State.recovering, State.pausing, State.cancelling}
)


@dataclass(frozen=True)
class SupervisorContext:
    """What every action needs. backoff: seconds before the first, second, … attempt anew.

    worker: the process that ingests; None where the supervisor's own thread does. xids: errors of
    GPUs as NVIDIA's library reports them. launchers: by name; left out, those of this traind.
    """

    db: Database
    settings: Settings
    devices: Sequence[Device]
    backoff: tuple[float, ...] = field(default=recovery.BACKOFF_SECONDS)
    worker: Worker | None = None
    xids: XidListener | None = None
    launchers: Mapping[str, Launcher] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.launchers:
            object.__setattr__(self, "launchers", kinds.make(self.settings))

    def watch(self, directory: Path, token: str, ranks: int | None = None) -> Watch:
        """ranks: of what is about to be ordered there; None reads the order."""
        ranks = kinds.ranks_ordered(directory) if ranks is None else ranks
        return Watch(Spot(directory, token), self.launchers[kinds.name_for(ranks)])


# --- launch --------------------------------------------------------------------------------------


def launch(context: SupervisorContext, run_id: str, device: str) -> tuple[int, Watch] | None:
    """Start the next attempt of a run. None when the run changed its mind in the meantime."""
    with context.db.write() as session:
        run = session.get_one(Run, run_id)
        if run.state != State.starting and not can_move(State(run.state), State.starting):
            return None
        attempt = attempts.next_attempt(session, run, device=device, now=time.time())
        attempt.boot_id = boot_id()
        order = attempts.build_order(session, run, attempt, context.settings)
        run.not_before, run.deadline, run.escalation = None, None, 0
        if run.state != State.starting:
            move(session, run, State.starting, Reason.requested, attempt=attempt.number)
        attempt_id = attempt.id
    directory = context.settings.paths.run(run_id).attempt(order.attempt)
    watch = context.watch(directory, order.token, order.num_ranks)
    try:
        _write_directory(context, order, watch)
        _spawn(context, watch, attempt_id, order.num_ranks)
    except OSError as error:
        _cannot_start(context, attempt_id, error)
    return attempt_id, watch


def _write_directory(context: SupervisorContext, order: orders.AttemptOrder, watch: Watch) -> None:
    run_dir = context.settings.paths.run(order.run_id)
    watch.directory.mkdir(parents=True, exist_ok=True)
    write_durably(run_dir.spec, order.spec.model_dump_json(indent=1).encode())
    write_durably(run_dir.plan, order.plan.model_dump_json(indent=1).encode())
    orders.write(watch.directory, order)
    header = journal.JournalHeader(order.run_id, order.attempt, order.token)
    journal.Writer.create(watch.directory / INBOX, header).close()


def _spawn(context: SupervisorContext, watch: Watch, attempt_id: int, ranks: int) -> None:
    handle = watch.launcher.spawn(Work(watch.spot, MODULE, ranks=ranks))
    if handle is not None:
        record(context, attempt_id, watch, handle)


def record(context: SupervisorContext, attempt_id: int, watch: Watch, handle: Handle) -> None:
    """Write down who the process of an attempt is."""
    watch.handle = handle
    with context.db.write() as session:
        attempt = session.get_one(Attempt, attempt_id)
        attempt.pid, attempt.boot_id = handle["pid"], handle["boot_id"]
        attempt.start_ticks = handle["start_ticks"]


def _cannot_start(context: SupervisorContext, attempt_id: int, error: OSError) -> None:
    """Nothing was started: the row says why, and the next look closes it."""
    with context.db.write() as session:
        attempt = session.get_one(Attempt, attempt_id)
        attempt.outcome, attempt.reason = (
            "failed",
            why_not_started(error, context.settings.trainer_python),
        )
        attempt.message = f"the trainer could not be started: {in_words(error)}"


def why_not_started(error: OSError, trainer_python: str) -> Reason:
    if error.errno in os_errors.TOO_MANY_FILES:
        return Reason.too_many_open_files
    if error.errno in os_errors.NO_MEMORY:
        return Reason.host_out_of_memory
    if error.errno in os_errors.DISK_FULL:
        return Reason.disk_full
    if error.filename not in (None, trainer_python):  # a file or directory of the run
        return Reason.not_permitted if error.errno in os_errors.NOT_PERMITTED else Reason.io_error
    is_program = error.errno in os_errors.MISSING | os_errors.NOT_PERMITTED
    return Reason.software_missing if is_program else Reason.crashed


def adopt(context: SupervisorContext, attempt: Attempt, watch: Watch) -> None:
    """Look for a process that was started and never recorded; found by the token it carries."""
    handle = watch.launcher.find(watch.spot)
    if handle is not None:
        record(context, attempt.id, watch, handle)


def recorded(row: Attempt | Job) -> Handle:
    """The handle in the row."""
    return {"boot_id": row.boot_id, "pid": row.pid, "start_ticks": row.start_ticks}


# --- signal --------------------------------------------------------------------------------------


def send(context: SupervisorContext, attempt: Attempt, watch: Watch, action: Signal) -> None:
    """Signal the trainer and remember the rung; a stall is written down before the signal goes."""
    with context.db.write() as session:
        if action.stall:
            row = session.get_one(Attempt, attempt.id)
            row.reason, row.message = Reason.stalled, row.message or action.why
        else:
            session.get_one(Run, attempt.run_id).escalation = action.step
    handle = watch.handle if watch.is_known else recorded(attempt)
    sent = watch.launcher.signal(watch.spot, handle, *action.signals)
    watch.since_step = 0.0
    if action.stall:
        watch.stall_step, watch.stalled = action.step, watch.stalled or action.why
    names = " and ".join(s.name for s in action.signals)
    words = f"sent {names} to the trainer: {action.why}"
    if not sent:
        words = f"did not send {names}: it is not certain whose process that is"
    with context.db.write() as session:
        note(session, attempt.run_id, attempt.number, "signal", words, "warning")


def clear_stall(context: SupervisorContext, attempt: Attempt, watch: Watch) -> None:
    """A trainer that moved again after its stack dump is left alone."""
    watch.stall_step, watch.since_step, watch.stalled = 0, 0.0, None
    with context.db.write() as session:
        row = session.get_one(Attempt, attempt.id)
        row.reason, row.message = None, ""
        words = "it goes on by itself; the stack dump is in its log"
        note(session, attempt.run_id, attempt.number, "signal", words)


# --- close ---------------------------------------------------------------------------------------


def close(context: SupervisorContext, attempt_id: int, watch: Watch) -> Verdict | None:
    """Write how the attempt ended and move its run on, in one transaction.

    None when the run's state does not wait for this attempt (it was moved on already).
    """
    with context.db.read() as session:
        device = session.get_one(Attempt, attempt_id).device
    pci = next((d.pci for d in context.devices if d.device == device), None)
    findings = post_mortem.examine(watch, pci, context.xids)
    with context.db.write() as session:
        attempt = session.get_one(Attempt, attempt_id)
        run = session.get_one(Run, attempt.run_id)
        said = _said(attempt, watch)
        checkpoints.record_found(session, run)
        ending = recovery.classify(said, _circumstances(attempt, watch, findings))
        if ending.outcome == "completed":
            _end_phase(session, run, attempt, ending)
        verdict = None
        if State(run.state) in _WAITING:
            verdict = recovery.follow(ending, _history(session, run, attempt), context.backoff)
        _close_attempt(session, attempt, ending, findings)
        if verdict is not None:
            apply(session, run, verdict)
    return verdict


def _said(attempt: Attempt, watch: Watch) -> recovery.ExitReport | None:
    """The process's own last word: its exit record, or what its outbox said in the end."""
    record = exits.read_exit(watch.directory)
    if record is not None:
        return recovery.ExitReport(record.outcome, record.reason, record.message, record.step)
    if attempt.outcome is None or attempt.reason is None:
        return None
    reason = Reason(attempt.reason)
    return recovery.ExitReport(attempt.outcome, reason, attempt.message, attempt.last_step)


def _circumstances(attempt: Attempt, watch: Watch, findings: PostMortem) -> recovery.Circumstances:
    stalled = attempt.message if attempt.reason == Reason.stalled else watch.stalled
    return recovery.Circumstances(
        exit_code=findings.exit_code,
        last_words=findings.last_words,
        other_boot=_is_of_another_boot(attempt),
        stalled=stalled or None,
        oom=findings.oom,
        xid=findings.xid if attempt.device.startswith("cuda") else None,
    )


def _is_of_another_boot(attempt: Attempt) -> bool:
    return attempt.boot_id is not None and attempt.boot_id != boot_id()


def _history(session: Session, run: Run, attempt: Attempt) -> recovery.History:
    durable = post_mortem.durable_step(session, run)
    before = session.scalar(
        select(Attempt.reason).where(Attempt.run_id == run.id, Attempt.number == attempt.number - 1)
    )
    repeated = before == Reason.host_out_of_memory and durable <= run.best_failed_step
    return recovery.History(
        state=State(run.state),
        wants_to_run=run.desired_state == Desired.running,
        recovery=RecoverySpec.model_validate(run.spec.get("recovery", {})),
        durable_step=durable,
        failures=run.failures_without_progress,
        best_failed_step=run.best_failed_step,
        rewinds=run.rewinds,
        same_before=int(repeated),
        has_further_phase=attempts.current_phase(session, run) is not None,
        other_boot=_is_of_another_boot(attempt),
        advice=post_mortem.memory_advice(run),
        reason=Reason(run.reason),
    )


def _end_phase(session: Session, run: Run, attempt: Attempt, ending: Ending) -> None:
    """The phase has its end, also where only the exit record is left to say so."""
    phase = session.scalar(
        select(Phase).where(Phase.run_id == run.id, Phase.index == attempt.phase_index)
    )
    if phase is not None and phase.ended_at_step is None:
        phase.ended_at = phase.ended_at or max(time.time(), phase.started_at or 0.0)
        phase.ended_at_step = ending.step if ending.step is not None else run.step
    session.flush()


def _close_attempt(
    session: Session, attempt: Attempt, ending: Ending, findings: PostMortem
) -> None:
    began = attempt.started_at or attempt.created_at  # a clock may be set back meanwhile
    attempt.ended_at = max(attempt.ended_at or time.time(), began)
    attempt.outcome, attempt.reason = ending.outcome, ending.reason
    attempt.message, attempt.log_tail = ending.message, findings.log_tail
    attempt.drained = attempt.settled = True
    if ending.outcome in ("crashed", "failed"):
        where = f" after step {attempt.last_step:,}" if attempt.last_step is not None else ""
        words = f"attempt {attempt.number} {ending.outcome}{where}: {ending.message}"
        data = {"reason": ending.reason, "log_tail": findings.log_tail}
        note(session, attempt.run_id, attempt.number, "attempt", words, "error", data)


def apply(session: Session, run: Run, verdict: Verdict) -> None:
    """Move the run as the verdict says, through `running` where the table asks for it."""
    if not can_move(State(run.state), verdict.state) and run.state == State.starting:
        move(session, run, State.running, Reason.requested)
    front = {"front": True} if verdict.keeps_device else {}
    move(session, run, verdict.state, verdict.reason, verdict.message, **front)
    run.failures_without_progress = verdict.failures
    run.best_failed_step = verdict.best_failed_step
    run.not_before = time.time() + verdict.delay_seconds if verdict.delay_seconds else None
    run.deadline, run.escalation = None, 0
    if verdict.state is State.paused:
        run.desired_state = Desired.paused
    if verdict.skip_step is not None:
        run.skip_steps = [*run.skip_steps, [verdict.skip_step, verdict.skip_step]]
        run.rewinds += 1


def note(
    session: Session,
    run_id: str | None,
    attempt: int | None,
    kind: str,
    message: str,
    level: str = "info",
    data: dict[str, Any] | None = None,
    job_id: str | None = None,
) -> None:
    """One event row."""
    session.add(
        Event(
            run_id=run_id,
            job_id=job_id,
            attempt_number=attempt,
            kind=kind,
            level=level,
            message=message,
            data=data or {},
            unix_seconds=time.time(),
        )
    )


def sweep(watch: Watch) -> None:
    """SIGKILL the helpers that a dead process left behind."""
    watch.launcher.sweep(watch.spot)


# --- commands ------------------------------------------------------------------------------------


def mark_delivered(context: SupervisorContext, attempt: Attempt, command_ids: list[str]) -> None:
    """These commands are in the inbox of this attempt."""
    with context.db.write() as session:
        for row in session.scalars(select(CommandRow).where(CommandRow.id.in_(command_ids))):
            row.delivered_at, row.attempt_number = time.time(), attempt.number
