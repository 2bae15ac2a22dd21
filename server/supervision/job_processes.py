"""Jobs as executions: their order, their result, and inline jobs.

where: `cpu` jobs run one at a time (and one that serves), niced, beside a trainer; `device` jobs
when the device is free; `inline` jobs are commands to the running trainer, which does them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from server.database.tables import CommandRow, Execution, Job, Run
from server.domain import commands, events, executions, imports, jobs
from server.domain.executions import ExecutionState
from server.domain.states import SETTLED, State, can_move, move
from server.errors import TraindError
from server.launch.process import CPU_JOB_NICENESS
from server.scheduling import rows as scheduling_rows
from server.supervision import failure_guard, job_params, lifecycle, worklist
from server.supervision.context import SupervisorContext
from server.supervision.post_mortem import PostMortem
from server.supervision.recovery import Ending
from server.supervision.watch import Watch
from trainer.contract import orders
from trainer.contract.commands import Evaluate
from trainer.contract.jobs import AuditResult
from trainer.contract.reasons import Reason

MODULE = "trainer.jobs"
_INLINE_KINDS = ("evaluate",)
_WAITS_FOR_DISK = "The disk is full: it starts by itself once there is room."


# --- create --------------------------------------------------------------------------------------


def prepare(context: SupervisorContext, run_id: str) -> None:
    """Create the job that prepares the data of a run; the run waits for it."""
    with context.db.write() as session:
        run = session.get_one(Run, run_id)
        waits = run.state in (State.preparing, State.recovering, State.starting)
        if not waits and not can_move(State(run.state), State.preparing):
            return
        now = time.time()
        params = {
            "spec": {**run.spec, "notify": []},
            "tokens_needed": worklist.tokens_needed(run),
        }
        job = jobs.new_job(session, "prepare", run, "cpu", params, now)
        if run.state in (State.queued, State.recovering):
            move(session, run, State.preparing, Reason.waiting_for_data, now=now, job=job.id)


def drop(context: SupervisorContext, job_id: str) -> None:
    """Request the cancellation of a job."""
    with context.db.write() as session:
        session.get_one(Job, job_id).cancel_requested = True


# --- launch --------------------------------------------------------------------------------------


def explain(context: SupervisorContext, job_id: str, reason: Reason) -> None:
    """Record why a queued job waits."""
    with context.db.write() as session:
        job = session.get_one(Job, job_id)
        if job.state != ExecutionState.queued:
            return
        executions.conclude(job.execution, None, reason, _WAITS_FOR_DISK)
        words = f"{job.kind} job: {_WAITS_FOR_DISK}"
        events.record(session, "job", words, **events.about(job), level="warning")


def launch(context: SupervisorContext, job_id: str) -> tuple[Execution, Watch] | None:
    """Start a queued job. None if it was cancelled in the meantime, or cannot be started."""
    with context.db.write() as session:
        job = session.get_one(Job, job_id)
        if job.state != ExecutionState.queued or job.cancel_requested:
            return None
        try:
            _require_device(context, job)
            params = job_params.resolve(session, job, context.settings)
        except job_params.Unresolvable as error:
            executions.end(session, job, "failed", Reason.job_failed, str(error))
            return None
        except OSError as error:
            words = failure_guard.in_words(error)
            executions.end(session, job, "failed", Reason.job_failed, words)
            return None
        order = _order(context, job, params)
        execution = job.execution
        executions.move(execution, ExecutionState.running)
        execution.handle = dict(context.launcher(execution).reserve())
        execution.place = order.device
        if execution.reason is not None:  # set while it waited
            executions.conclude(execution, None, None, "")
        execution.started_at = max(time.time(), execution.created_at)
        events.record(session, "job", f"{job.kind} job started", **events.about(job))
    watch = lifecycle.start(
        context, execution, MODULE, order,
        niceness=CPU_JOB_NICENESS if order.device == "cpu" else 0,
        prepare=lambda: _make_room(context.settings.paths.job(job_id), order),
    )  # fmt: skip
    return execution, watch


def _require_device(context: SupervisorContext, job: Job) -> None:
    """Raises Unresolvable if a job's device is missing: an audit elsewhere would prove nothing."""
    named, there = job.params.get("device"), [device.device for device in context.devices]
    if job.where == "device" and named and named not in there:
        raise job_params.Unresolvable(
            f"it requires {named}, which this machine lacks; available: {', '.join(there)}"
        )


def _order(context: SupervisorContext, job: Job, params: dict[str, Any]) -> orders.JobOrder:
    paths = context.settings.paths
    place = scheduling_rows.job_place(job, context.devices)
    return orders.JobOrder.model_validate(
        {
            "job_id": job.id,
            "job": job.kind,
            "token": job.token,
            "data_dir": str(paths.root),
            "run_id": job.run_id,
            "run_dir": str(paths.run(job.run_id).root) if job.run_id else None,
            "device": place if job.where == "device" else "cpu",
            "params": params,
        }
    )


def _make_room(directory: Path, order: orders.JobOrder) -> None:
    if (directory / orders.ORDER).exists():  # done after the backup that was restored
        os.rename(directory, directory.with_name(f"{directory.name}.before-{time.time_ns()}"))
    if order.run_dir is not None:
        Path(order.run_dir).mkdir(parents=True, exist_ok=True)


# --- close ---------------------------------------------------------------------------------------


def _settle(
    context: SupervisorContext, session: Session, job: Job, ending: Ending, findings: PostMortem
) -> Ending:
    """Adopt the result of a completed job. Any other ending is `failed` or `cancelled`."""
    if ending.outcome == "completed":
        return _complete(context, session, job)
    if job.cancel_requested:
        return Ending("cancelled", Reason.requested, "")
    return Ending("failed", ending.reason, _why(ending, findings))


def _complete(context: SupervisorContext, session: Session, job: Job) -> Ending:
    try:
        if job.kind == "import" and imports.makes_a_run(job):
            imports.adopt(session, job, context.settings.paths)
    except (TraindError, ValueError, OSError) as error:
        session.rollback()
        imports.discard(job, context.settings.paths)
        return Ending("failed", Reason.job_failed, failure_guard.in_words(error))
    message = _report_verdict(session, job) if job.kind == "audit" else job.message
    return Ending("completed", Reason.finished, message)


def _report_verdict(session: Session, job: Job) -> str:
    """Record an audit mismatch as an event of the run, so that it is visible there."""
    found = AuditResult.model_validate(job.result)
    level = "error" if found.verdict == "mismatch" else "info"
    about = events.about(job)
    events.record(session, "audit", found.sentence, **about, level=level, data=found.model_dump())
    return found.sentence


def _why(ending: Ending, findings: PostMortem) -> str:
    """The message of a job without a report: the last lines of its log."""
    tail = findings.log_tail if ending.outcome == "crashed" else ""
    return "\n".join(filter(None, (ending.message, tail)))


KIND = lifecycle.ExecutionKind(Job, _settle)


# --- inline --------------------------------------------------------------------------------------


def follow_inline(
    context: SupervisorContext, job: Job, command: CommandRow | None, run_state: str
) -> None:
    """Follow an inline job of the running trainer to its end, unless the trainer reports it."""
    with context.db.write() as session:
        job = session.get_one(Job, job.id)
        if job.is_over:
            return
        if command is None:
            _command(session, job)
        elif command.done_at is not None:  # expired: the trainer ended before its answer
            done = command.outcome == "done"
            reason = Reason.finished if done else Reason.job_failed
            outcome = "completed" if done else "failed"
            executions.end(session, job, outcome, reason, job.message)
        elif job.cancel_requested and command.delivered_at is None:
            commands.answer(session.get_one(CommandRow, command.id), "failed", time.time())
            executions.end(session, job, "cancelled", Reason.requested, "")
        elif run_state in SETTLED:
            words = f"the run became {run_state} before the job was done"
            executions.end(session, job, "failed", Reason.job_failed, words)
        elif job.state == ExecutionState.queued:
            executions.move(job.execution, ExecutionState.running)
            job.started_at = command.delivered_at


def needs_attention(job: Job, command: CommandRow | None, run_state: str) -> bool:
    """True if `follow_inline` has something to do."""
    return (
        command is None
        or command.done_at is not None
        or (job.cancel_requested and command.delivered_at is None)
        or run_state in SETTLED
        or (command.delivered_at is not None and job.state == ExecutionState.queued)
    )


def _command(session: Session, job: Job) -> None:
    """The command of an inline job, for the trainer of its run."""
    run = session.get(Run, job.run_id) if job.run_id else None
    if job.kind not in _INLINE_KINDS or run is None:
        words = f"{job.kind} cannot be done inline"
        executions.end(session, job, "failed", Reason.job_failed, words)
        return
    given = {k: v for k, v in job.params.items() if k in Evaluate.model_fields}
    command = Evaluate.model_validate({"id": commands.new_id(), **given})
    commands.send(session, run, command, time.time(), job.id)
