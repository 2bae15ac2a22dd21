"""The lifecycle of an execution, of an attempt or a job: start, adopt, signal, close.

Each function is one action of `decide`, applied. The row is committed before anything is started
and the handle after it: after a kill in between, the next daemon finds the process by its token.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from sqlalchemy.orm import Session

from server.database.tables import Attempt, Execution, Job
from server.domain import events, executions
from server.launch import registry
from server.launch.launcher import Handle, LaunchRequest
from server.supervision import decide, post_mortem, recovery
from server.supervision.context import SupervisorContext
from server.supervision.decide import Signal
from server.supervision.failure_guard import in_words
from server.supervision.post_mortem import PostMortem
from server.supervision.recovery import Ending
from server.supervision.watch import Watch
from trainer.contract import commands, exits, journal, orders, os_errors
from trainer.contract.journal import JournalError
from trainer.contract.orders import AttemptOrder, JobOrder
from trainer.contract.reasons import Reason
from trainer.contract.rundir import INBOX
from trainer.contract.spec import PlaceSpec

log = logging.getLogger("traind.supervisor")

ExecutionRow = Attempt | Job
OfKind = TypeVar("OfKind", Attempt, Job)


# --- start ---------------------------------------------------------------------------------------


def start(
    context: SupervisorContext,
    execution: Execution,
    module: str,
    order: AttemptOrder | JobOrder,
    *,
    niceness: int = 0,
    ranks: int = 1,
    place: PlaceSpec | None = None,
    uses_gpus: bool = False,
    prepare: Callable[[], None] = lambda: None,
) -> Watch:
    """Write the directory of a committed order and start `python -m module` in it.

    prepare: writes anything else that the process requires on the disk. If the start fails, the row
    records why, and the next tick closes it.
    """
    watch = context.watch(execution)
    try:
        prepare()
        _write_directory(watch.directory, order)
        work = LaunchRequest(watch.workspace, module, niceness, ranks, place, uses_gpus)
        handle = watch.launcher.spawn(work)
        if handle is not None:
            record(context, execution.id, watch, handle)
    except OSError as error:
        _cannot_start(context, execution.id, error)
    return watch


def _write_directory(directory: Path, order: AttemptOrder | JobOrder) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    orders.write(directory, order)
    owner = (order.run_id, order.attempt) if isinstance(order, AttemptOrder) else (order.job_id, 0)
    journal.Writer.create(directory / INBOX, journal.JournalHeader(*owner, order.token)).close()


def record(context: SupervisorContext, execution_id: int, watch: Watch, handle: Handle) -> None:
    """Record the handle of the started process."""
    watch.handle = handle
    with context.db.write() as session:
        session.get_one(Execution, execution_id).handle = dict(handle)


def _cannot_start(context: SupervisorContext, execution_id: int, error: OSError) -> None:
    with context.db.write() as session:
        row = session.get_one(Execution, execution_id)
        reason = _why_not_started(error, context.settings.trainer_python)
        what = "trainer" if row.kind == "attempt" else "job"
        words = f"the {what} could not be started: {in_words(error)}"
        executions.report(row, "failed", reason, words)


def _why_not_started(error: OSError, trainer_python: str) -> Reason:
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


def apply(
    context: SupervisorContext, row: ExecutionRow, watch: Watch, action: decide.Action
) -> None:
    """Apply an action to the execution itself."""
    match action:
        case decide.Adopt():
            adopt(context, row, watch)
        case decide.SendCommand():
            _send_command(context, row, watch, action.kind)
        case decide.Signal():
            send(context, row, watch, action)
        case decide.ClearStall():
            clear_stall(context, row, watch)
        case decide.Sweep():
            sweep(watch)


def _send_command(context: SupervisorContext, row: ExecutionRow, watch: Watch, kind: str) -> None:
    """Send a pause or a cancel, as the state of the run or job requires."""
    command_type = commands.Pause if kind == "pause" else commands.Cancel
    watch.since_step = 0.0
    try:
        watch.send(command_type(id=f"{kind}-{row.execution_id}"))
    except (OSError, JournalError) as error:
        log.warning("cannot write to the inbox in %s: %s", watch.directory, error)
        watch.note_sent(kind)  # the ladder then uses signals
    restart_ladder(context, row)


def adopt(context: SupervisorContext, row: ExecutionRow, watch: Watch) -> None:
    """Find a process that was started but not recorded, by its token."""
    handle = watch.launcher.find(watch.workspace)
    if handle is not None:
        record(context, row.execution_id, watch, handle)


# --- signal --------------------------------------------------------------------------------------


def send(context: SupervisorContext, row: ExecutionRow, watch: Watch, action: Signal) -> None:
    """Send a signal and record the step; a stall is recorded before the signal is sent."""
    why = _with_stopped_ranks(watch, action)
    with context.db.write() as session:
        execution = session.get_one(Execution, row.execution_id)
        if not action.stall:
            execution.escalation = action.step
        elif execution.reason != Reason.stalled:
            executions.conclude(execution, execution.outcome, Reason.stalled, why)
    sent = watch.launcher.signal(watch.workspace, watch.handle, *action.signals)
    watch.since_step = 0.0
    if action.stall:
        watch.stall_step, watch.stalled = action.step, watch.stalled or why
    names = " and ".join(s.name for s in action.signals)
    words = f"sent {names} to the {_what(row)}: {why}"
    if not sent:
        words = f"did not send {names}: the process could not be identified"
    with context.db.write() as session:
        events.record(session, "signal", words, **events.about(row), level="warning")


def _with_stopped_ranks(watch: Watch, action: Signal) -> str:
    """Cause of the signal; for a stall of several ranks with the ranks that a signal stopped."""
    stopped = watch.stopped_ranks if action.stall else []
    named = ", ".join(f"rank {rank}" for rank in stopped)
    return f"{action.why}; {named} was stopped by a signal" if stopped else action.why


def clear_stall(context: SupervisorContext, row: ExecutionRow, watch: Watch) -> None:
    """Clear the stall of a process that reports again after its stack dump; it keeps running."""
    watch.stall_step, watch.since_step, watch.stalled = 0, 0.0, None
    with context.db.write() as session:
        execution = session.get_one(Execution, row.execution_id)
        executions.conclude(execution, execution.outcome, None, "")
        words = "it reports again and continues; the stack dump is in its log"
        events.record(session, "signal", words, **events.about(row))


def restart_ladder(context: SupervisorContext, row: ExecutionRow) -> None:
    """Restart the signals at the first step, because the request has changed."""
    if row.execution.escalation:
        with context.db.write() as session:
            session.get_one(Execution, row.execution_id).escalation = 0


def sweep(watch: Watch) -> None:
    """Kill the remaining processes of a dead execution."""
    watch.launcher.sweep(watch.workspace)


def _what(row: ExecutionRow) -> str:
    return "trainer" if isinstance(row, Attempt) else "job"


# --- close ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ExecutionKind(Generic[OfKind]):
    """What attempts and jobs add to the close of an execution.

    settle: writes what an ending means for the rows of its kind, returns the ending to record.
    follow: applies what comes next, once the ending and its event are recorded.
    """

    table: type[OfKind]
    settle: Callable[[SupervisorContext, Session, OfKind, Ending, PostMortem], Ending]
    follow: Callable[[SupervisorContext, Session, OfKind, Ending, Watch], None] = lambda *_: None


def close(
    context: SupervisorContext, kind: ExecutionKind[OfKind], row_id: Any, watch: Watch | None
) -> None:
    """Record an execution's ending, in one transaction with its consequences.

    Without a watch it was cancelled before its start.
    """
    if watch is None:
        with context.db.write() as session:
            row = session.get_one(kind.table, row_id)
            executions.end(session, row, "cancelled", Reason.requested, "")
        return
    with context.db.read() as session:
        findings = _examine(context, session.get_one(kind.table, row_id), watch)
    with context.db.write() as session:
        row = session.get_one(kind.table, row_id)
        ending = kind.settle(context, session, row, _ending(row, watch, findings), findings)
        executions.end(
            session, row, ending.outcome, ending.reason, ending.message,
            log_tail=findings.log_tail, exit_code=findings.exit_code,
        )  # fmt: skip
        kind.follow(context, session, row, ending, watch)


def _examine(context: SupervisorContext, row: ExecutionRow, watch: Watch) -> PostMortem:
    """Collect the evidence of a dead process."""
    used = row.execution.place.split(",")
    cards = {d.pci: d.device for d in context.devices if d.device in used and d.pci}
    return post_mortem.examine(watch, cards, context.xids)


def _ending(row: ExecutionRow, watch: Watch, findings: PostMortem) -> Ending:
    """The ending by the exit record, or else by outside evidence."""
    return recovery.classify(_reported(row, watch), _circumstances(row, watch, findings))


def _reported(row: ExecutionRow, watch: Watch) -> recovery.ExitReport | None:
    """The process's own report: its exit record, or the last record of its outbox."""
    record = exits.read_exit(watch.directory)
    if record is not None:
        return recovery.ExitReport(record.outcome, record.reason, record.message, record.step)
    execution = row.execution
    if execution.outcome is None or execution.reason is None:
        return _reported_by_rank(execution, watch)
    step = row.last_step if isinstance(row, Attempt) else None
    reason = Reason(execution.reason)
    return recovery.ExitReport(execution.outcome, reason, execution.message, step)


def _reported_by_rank(execution: Execution, watch: Watch) -> recovery.ExitReport | None:
    """The report of the rank that failed first, if rank 0 has none."""
    failed = exits.first_failure(watch.directory)
    if failed is None:
        return None
    rank, record = failed
    devices = execution.place.split(",")
    device = devices[rank] if rank < len(devices) else "its device"
    message = f"rank {rank} ({device}): {record.message}"
    return recovery.ExitReport(record.outcome, record.reason, message, record.step)


def _circumstances(row: ExecutionRow, watch: Watch, findings: PostMortem) -> recovery.Circumstances:
    execution = row.execution
    stalled = execution.message if execution.reason == Reason.stalled else watch.stalled
    is_here = execution.launcher in registry.ON_THIS_MACHINE
    return recovery.Circumstances(
        exit_code=findings.exit_code,
        last_words=findings.last_words,
        other_boot=watch.launcher.is_of_another_boot(execution.handle),
        stalled=stalled or None,
        oom=findings.oom,
        xid=findings.xid if execution.place.startswith("cuda") and is_here else None,
        engine=watch.launcher.ending(watch.workspace, _save_seconds(watch)),
    )


def _save_seconds(watch: Watch) -> float:
    """Seconds before its place's time limit at which the process saves, from its order."""
    try:
        place = orders.read(watch.directory, AttemptOrder).spec.place
    except (OSError, ValueError):
        return 0.0
    return place.save_seconds if place is not None else 0.0
