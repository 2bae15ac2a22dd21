"""Job processes: launch, adopt, signal, close.

where: `cpu` jobs run one at a time (and one that serves), niced, beside a trainer; `device` jobs
when the device is free; `inline` jobs are done by the running trainer and are a command to it.
"""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from server.database.tables import CommandRow, Job, Run
from server.domain import imports
from server.domain.states import SETTLED, State, can_move, move
from server.errors import TraindError
from server.launch.launcher import Handle, Work
from server.launch.process import CPU_JOB_NICENESS
from server.supervision import failure_guard, job_params, post_mortem, trainers, worklist
from server.supervision.decide import Signal
from server.supervision.trainers import SupervisorContext, note
from server.supervision.watch import Watch
from trainer.contract import exits, holds, journal, orders
from trainer.contract.exits import Reason
from trainer.contract.jobs import AuditResult
from trainer.contract.rundir import INBOX, boot_id

MODULE = "trainer.jobs"
_INLINE_KINDS = ("evaluate",)


# --- making --------------------------------------------------------------------------------------


def prepare(context: SupervisorContext, run_id: str) -> None:
    """A job that makes the data of this run ready, and the run waits for it."""
    with context.db.write() as session:
        run = session.get_one(Run, run_id)
        waits = run.state in (State.preparing, State.recovering, State.starting)
        if not waits and not can_move(State(run.state), State.preparing):
            return
        now = time.time()
        job = Job(
            id=f"job_{uuid.uuid4().hex[:16]}",
            run_id=run.id,
            kind="prepare",
            where="cpu",
            state="queued",
            params={
                "spec": {**run.spec, "notify": []},
                "tokens_needed": worklist.tokens_needed(run),
            },
            token=uuid.uuid4().hex,
            created_at=now,
        )
        session.add(job)
        if run.state in (State.queued, State.recovering):
            move(session, run, State.preparing, Reason.waiting_for_data, now=now, job=job.id)


def drop(context: SupervisorContext, job_id: str) -> None:
    """Ask for the end of a job."""
    with context.db.write() as session:
        session.get_one(Job, job_id).cancel_requested = True


# --- launch --------------------------------------------------------------------------------------


def launch(context: SupervisorContext, job_id: str) -> Watch | None:
    """Start a queued job. None when it was cancelled in the meantime."""
    with context.db.write() as session:
        job = session.get_one(Job, job_id)
        if job.state != "queued" or job.cancel_requested:
            return None
        try:
            _require_device(context, job)
            params = job_params.resolve(session, job, context.settings)
        except job_params.Unresolvable as error:
            _end(session, job, "failed", Reason.job_failed, str(error))
            return None
        except OSError as error:
            _end(session, job, "failed", Reason.job_failed, failure_guard.in_words(error))
            return None
        job.state, job.boot_id = "running", boot_id()
        job.started_at = max(time.time(), job.created_at)
        note(session, job.run_id, None, "job", f"{job.kind} job started", job_id=job.id)
        order = _order(context, job, params)
    watch = context.watch(context.settings.paths.job(job_id), order.token)
    try:
        _write_directory(order, watch)
        _spawn(context, watch, job_id, niceness=CPU_JOB_NICENESS if order.device == "cpu" else 0)
    except OSError as error:
        with context.db.write() as session:
            words = f"it could not be started: {failure_guard.in_words(error)}"
            row = session.get_one(Job, job_id)
            row.message = words
            row.reason = trainers.why_not_started(error, context.settings.trainer_python)
    return watch


def _require_device(context: SupervisorContext, job: Job) -> None:
    """A job that names its device gets no other: an audit there would prove nothing."""
    named, there = job.params.get("device"), [device.device for device in context.devices]
    if job.where == "device" and named and named not in there:
        raise job_params.Unresolvable(
            f"it belongs on {named}, which is not on this machine; there is {', '.join(there)}"
        )


def _order(context: SupervisorContext, job: Job, params: dict[str, Any]) -> orders.JobOrder:
    paths = context.settings.paths
    place = worklist.job_place(job, context.devices)
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


def _write_directory(order: orders.JobOrder, watch: Watch) -> None:
    if (watch.directory / orders.ORDER).exists():  # done after the backup that was restored
        aside = watch.directory.with_name(f"{watch.directory.name}.before-{time.time_ns()}")
        os.rename(watch.directory, aside)
    watch.directory.mkdir(parents=True, exist_ok=True)
    if order.run_dir is not None:
        Path(order.run_dir).mkdir(parents=True, exist_ok=True)
    orders.write(watch.directory, order)
    header = journal.JournalHeader(order.job_id, 0, order.token)
    journal.Writer.create(watch.directory / INBOX, header).close()


def _spawn(context: SupervisorContext, watch: Watch, job_id: str, niceness: int) -> None:
    handle = watch.launcher.spawn(Work(watch.spot, MODULE, niceness))
    if handle is not None:
        record(context, job_id, watch, handle)


def record(context: SupervisorContext, job_id: str, watch: Watch, handle: Handle) -> None:
    """Write down who the process of a job is."""
    watch.handle = handle
    with context.db.write() as session:
        job = session.get_one(Job, job_id)
        job.pid, job.boot_id = handle["pid"], handle["boot_id"]
        job.start_ticks = handle["start_ticks"]


def adopt(context: SupervisorContext, job: Job, watch: Watch) -> None:
    """Look for a process that was started and never recorded; found by the token it carries."""
    handle = watch.launcher.find(watch.spot)
    if handle is not None:
        record(context, job.id, watch, handle)


def send(context: SupervisorContext, job: Job, watch: Watch, action: Signal) -> None:
    """Signal the job and remember the rung."""
    if watch.is_known:
        watch.launcher.signal(watch.spot, watch.handle, *action.signals)
    watch.since_step = 0.0
    if action.stall:
        watch.stall_step, watch.stalled = action.step, watch.stalled or action.why
        return
    with context.db.write() as session:
        session.get_one(Job, job.id).escalation = action.step


# --- close ---------------------------------------------------------------------------------------


def close(context: SupervisorContext, job_id: str, watch: Watch | None) -> None:
    """Write how the job ended. Without a watch it never began."""
    said = exits.read_exit(watch.directory) if watch is not None else None
    findings = post_mortem.examine(watch, xids=context.xids) if watch is not None else None
    with context.db.write() as session:
        job = session.get_one(Job, job_id)
        if _completed(job, said):
            try:
                if job.kind == "import" and imports.makes_a_run(job):
                    imports.adopt(session, job, context.settings.paths)
            except (TraindError, ValueError, OSError) as error:
                session.rollback()
                job = session.get_one(Job, job_id)
                imports.discard(job, context.settings.paths)
                _end(session, job, "failed", Reason.job_failed, failure_guard.in_words(error))
                return
            _end(session, job, "completed", Reason.finished, job.message)
            if job.kind == "audit":
                _tell_verdict(session, job)
        elif job.cancel_requested:
            _end(session, job, "cancelled", Reason.requested, "")
        elif said is not None:
            _end(session, job, "failed", said.reason, said.message or said.reason.sentence)
        else:
            reason, message = _unspoken(job, watch, findings)
            _end(session, job, "failed", reason, message)


def _tell_verdict(session: Session, job: Job) -> None:
    """An event of the run: bits that changed by themselves must be seen by whoever looks."""
    found = AuditResult.model_validate(job.result)
    job.message = found.sentence
    level = "error" if found.verdict == "mismatch" else "info"
    note(session, job.run_id, None, "audit", found.sentence, level, found.model_dump(), job.id)


def _completed(job: Job, said: exits.ExitRecord | None) -> bool:
    """By its exit record or, when it was killed just before writing one, by its last report."""
    return said.outcome == "completed" if said is not None else job.result is not None


def _unspoken(
    job: Job, watch: Watch | None, findings: post_mortem.PostMortem | None
) -> tuple[Reason, str]:
    """Why a job ended that left no exit record."""
    if job.boot_id is not None and job.boot_id != boot_id():
        return Reason.host_restarted, Reason.host_restarted.sentence
    if watch is not None and watch.stalled:
        return Reason.stalled, watch.stalled
    if findings is not None and findings.oom is not None:
        return Reason.host_out_of_memory, f"the kernel killed it for lack of memory {findings.oom}"
    tail = findings.log_tail if findings is not None else ""
    known = Reason(job.reason) if job.reason else Reason.crashed  # it could not be started
    return known, "\n".join(filter(None, (job.message or "it ended without a word", tail)))


def _end(session: Session, job: Job, state: str, reason: Reason, message: str) -> None:
    job.state, job.reason, job.message = state, reason, message
    job.ended_at = max(time.time(), job.started_at or job.created_at)
    if job.run_id is not None:
        holds.release(session.info["paths"].run(job.run_id).checkpoints, job.id)
    level = "error" if state == "failed" else "info"
    words = f"{job.kind} job {state}" + (f": {message}" if message else "")
    note(session, job.run_id, None, "job", words, level, job_id=job.id)


# --- inline --------------------------------------------------------------------------------------


def follow_inline(
    context: SupervisorContext, job: Job, command: CommandRow | None, run_state: str
) -> None:
    """Carry a job that the running trainer does from its command to its end."""
    if command is None:
        _command(context, job)
        return
    with context.db.write() as session:
        job = session.get_one(Job, job.id)
        if command.done_at is not None:
            done = command.outcome == "done"
            reason = Reason.finished if done else Reason.job_failed
            _end(session, job, "completed" if done else "failed", reason, job.message)
        elif job.cancel_requested and command.delivered_at is None:
            row = session.get_one(CommandRow, command.id)
            row.done_at, row.outcome = time.time(), "failed"
            _end(session, job, "cancelled", Reason.requested, "")
        elif run_state in SETTLED:
            words = f"the run became {run_state} before it was done"
            _end(session, job, "failed", Reason.job_failed, words)
        else:
            job.state, job.started_at = "running", job.started_at or command.delivered_at


def needs_attention(job: Job, command: CommandRow | None, run_state: str) -> bool:
    """Whether `follow_inline` has something to do."""
    return (
        command is None
        or command.done_at is not None
        or (job.cancel_requested and command.delivered_at is None)
        or run_state in SETTLED
        or (command.delivered_at is not None and job.state == "queued")
    )


def _command(context: SupervisorContext, job: Job) -> None:
    """The command that the job is, for the trainer of its run."""
    with context.db.write() as session:
        row = session.get_one(Job, job.id)
        if row.kind not in _INLINE_KINDS or row.run_id is None:
            _end(session, row, "failed", Reason.job_failed, f"{row.kind} cannot be done inline")
            return
        identity = f"cmd_{uuid.uuid4().hex[:16]}"
        body: dict[str, Any] = {"id": identity, "kind": "evaluate"}
        body |= {k: row.params[k] for k in ("bpb", "core", "core_max_per_task") if k in row.params}
        session.add(
            CommandRow(
                id=identity, run_id=row.run_id, job_id=row.id, body=body, created_at=time.time()
            )
        )
