"""Applies the records of an attempt to the rows, beyond those of every execution."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from server.database import tables
from server.domain import checkpoint_lookup, commands, executions, extend, lineage, states
from server.domain.states import State
from server.ingestion import applied, steps
from server.machine import throughput
from server.metrics import counters
from server.metrics.counters import Tally
from trainer.contract import events, peaks
from trainer.contract.evaluations import BY_KIND
from trainer.contract.reasons import Reason


class AppliedAttempt(applied.Applied):
    """Applies one batch of an attempt; consecutive steps are stored together."""

    row: tables.Attempt

    def __init__(self, session: Session, attempt: tables.Attempt) -> None:
        super().__init__(session, attempt)
        self.attempt, self.handlers = attempt, _HANDLERS
        self.run = run = session.get_one(tables.Run, attempt.run_id)
        self.tally = Tally()
        self.is_newest = attempt.number == session.scalar(
            select(func.max(tables.Attempt.number)).where(tables.Attempt.run_id == run.id)
        )
        self._steps: list[steps.Reported] = []

    def take(self, event: events.AnyEvent, seconds: float) -> None:
        if isinstance(event, events.Step):
            self._steps.append((seconds, event))
            return
        self._store_steps()
        super().take(event, seconds)

    def finish(self) -> None:
        self._store_steps()
        self.tally.write(self.session)

    @property
    def name(self) -> str:
        return f"attempt {self.attempt.number}"

    @property
    def last_known(self) -> float:
        return self.run.last_step_at or self.execution.created_at

    def is_beyond(self, step: int) -> bool:
        """True if a checkpoint or evaluation at `step` was set aside before it was reported."""
        limit = self.attempt.lineage_limit
        return limit is not None and step > limit

    def _store_steps(self) -> None:
        if not self._steps:
            return
        gathered, self._steps = self._steps, []
        if self.is_newest and self.run.state == State.starting:
            states.move(self.session, self.run, State.running, Reason.requested, now=gathered[0][0])
        repeated = steps.add(
            self.session, self.run, self.attempt, gathered, self.tally, is_newest=self.is_newest
        )
        if repeated:
            self.gap(f"{repeated} duplicate steps were ignored", {})


def of(session: Session, execution_id: int) -> AppliedAttempt:
    found = session.query(tables.Attempt).filter_by(execution_id=execution_id).one()
    return AppliedAttempt(session, found)


# --- one function per kind -----------------------------------------------------------------------


def _started(target: AppliedAttempt, event: events.Started, seconds: float) -> None:
    run, attempt = target.run, target.attempt
    applied.started(target, event, seconds)
    attempt.device, attempt.device_name = event.device, event.device_name
    attempt.versions, attempt.fingerprint = dict(event.versions), event.fingerprint
    known = peaks.known_peak(event.device_name)
    attempt.peak_flops = event.peak_flops or (known.value if known else None)
    attempt.peak_source = event.peak_source or (known.source if known else None)
    if run.fingerprint is None:
        run.fingerprint = event.fingerprint
    if target.is_newest:
        run.device = event.device
    name, number = event.device_name, attempt.number
    target.record("started", f"attempt {number} started on {event.device} ({name})", seconds)


def _ranks(applied: AppliedAttempt, event: events.Ranks, seconds: float) -> None:
    """Store the latest report of each rank of the newest attempt."""
    if applied.is_newest:
        rows = [row.model_dump(mode="json") for row in event.ranks]
        applied.run.progress = {**applied.run.progress, "ranks": rows, "ranks_at": seconds}


def _reached_before(applied: AppliedAttempt) -> int | None:
    """Step reached by the previous attempt if it crashed or failed; else None."""
    table = tables.Attempt
    last = applied.session.scalar(
        select(table)
        .where(table.run_id == applied.run.id, table.number < applied.attempt.number)
        .order_by(table.number.desc())
        .limit(1)
    )
    if last is None or last.last_step is None or last.outcome not in ("crashed", "failed"):
        return None
    return last.last_step + 1


def _resumed(applied: AppliedAttempt, event: events.Resumed, seconds: float) -> None:
    run, attempt = applied.run, applied.attempt
    attempt.start_step = event.step
    if event.approximate:
        attempt.exact_resume = lineage.worse(attempt.exact_resume, "approximate")
    lost = lineage.supersede(applied.session, run, event.step, attempt.number)
    if applied.is_newest and attempt.lineage_limit is None:
        run.step, run.tokens_seen = event.step, event.tokens_seen
    before = _reached_before(applied)
    message = f"attempt {attempt.number} begins at step {event.step:,}"
    if before is not None and lost:
        message = f"crashed at step {before:,}, resumed from {event.step:,}"
    if event.checkpoint:
        message += f" ({event.checkpoint})"
    if lost:
        message += f", {lost:,} {'step' if lost == 1 else 'steps'} repeated"
    for name in event.skipped:
        message += f"; {name} was skipped as unusable"
    applied.record(
        "resumed", message, seconds, step=event.step,
        level="warning" if event.skipped else "info",
        data={"checkpoint": event.checkpoint, "lost_steps": lost, "skipped": event.skipped,
              "approximate": event.approximate},
    )  # fmt: skip


def _frozen(applied: AppliedAttempt, event: events.Frozen, seconds: float) -> None:
    run = applied.run
    for tried in event.probed:
        throughput.record_probe(applied.session, run, applied.attempt, tried)
    if run.frozen != event.choices:
        words = (
            "Kernel and batch choices changed by overrides"
            if run.frozen
            else "Kernel and batch choices locked for this run"
        )
        run.frozen = event.choices
        applied.record("frozen", words, seconds, data=event.choices)


def _evaluation(applied: AppliedAttempt, event: events.EvaluationResult, seconds: float) -> None:
    run, beyond = applied.run, applied.is_beyond(event.step)
    table = tables.Evaluation
    _set_aside_repeated(applied, table, event.step, table.kind == event.evaluation)
    applied.evaluation(event, seconds, attempt_id=applied.attempt.id, superseded=beyond)
    of = BY_KIND[event.evaluation]
    key = of.metric
    if applied.is_newest and not beyond:
        run.progress = {**run.progress, key: event.value}
    if event.evaluation == "bpb":
        checkpoint = _checkpoint(applied, event.checkpoint, event.step) or _resumed_from(
            applied, event.step
        )
        if checkpoint is not None:
            checkpoint.val_bpb = event.value
    shown = f"{key} {of.text(event.value)} at step {event.step:,}"
    applied.record("evaluation", shown, seconds, step=event.step, data={key: event.value})


def _checkpoint(applied: AppliedAttempt, name: str | None, step: int) -> tables.Checkpoint | None:
    """The checkpoint of that name or, without a name, the one this attempt saved at the step."""
    session, run_id = applied.session, applied.run.id
    if name is not None:
        return checkpoint_lookup.by_name(session, run_id, name)
    return checkpoint_lookup.at_step(session, run_id, step, attempt_id=applied.attempt.id)


def _resumed_from(applied: AppliedAttempt, step: int) -> tables.Checkpoint | None:
    """The checkpoint from which the attempt started, if it is at this step."""
    if applied.attempt.start_step != step:
        return None
    return checkpoint_lookup.at_step(applied.session, applied.run.id, step)


def _set_aside_repeated(
    applied: AppliedAttempt, table: Any, step: int, condition: ColumnElement[bool] | None = None
) -> None:
    """Supersede the results that an earlier attempt of this phase measured at this step, after the
    checkpoint that this one started from: they are measured again."""
    earlier = select(tables.Attempt.id).where(
        tables.Attempt.run_id == applied.run.id,
        tables.Attempt.number < applied.attempt.number,
        tables.Attempt.phase_index == applied.attempt.phase_index,
    )
    query = update(table).where(
        table.run_id == applied.run.id, table.step == step, table.job_id.is_(None)
    )
    if condition is not None:
        query = query.where(condition)
    applied.session.execute(
        query.where(table.attempt_id.in_(earlier), table.superseded.is_(False))
        .values(superseded=True)
        .execution_options(synchronize_session="fetch")
    )


def _sample(applied: AppliedAttempt, event: events.SampleResult, seconds: float) -> None:
    _set_aside_repeated(applied, tables.Sample, event.step)
    applied.sample(
        event, seconds, attempt_id=applied.attempt.id, superseded=applied.is_beyond(event.step)
    )


def _checkpoint_saved(
    applied: AppliedAttempt, event: events.CheckpointSaved, seconds: float
) -> None:
    run, session = applied.run, applied.session
    row = _checkpoint(applied, event.name, event.step)
    if row is None:
        row = tables.Checkpoint(run_id=run.id, name=event.name)
        session.add(row)
        applied.tally.add(counters.CHECKPOINT_BYTES, run.name, event.bytes)
        applied.tally.observe(counters.SAVE_SECONDS, applied.run.name, event.seconds)
    row.attempt_id, row.step, row.bytes = applied.attempt.id, event.step, event.bytes
    row.manifest_sha256, row.why = event.manifest_sha256, event.why
    row.pinned = bool(row.pinned) or event.pinned
    row.val_bpb = row.val_bpb if event.val_bpb is None else event.val_bpb
    row.next_loss = event.next_loss
    row.save_seconds, row.stall_seconds = event.seconds, event.stall_seconds
    slowest = max(event.seconds, run.progress.get("slowest_save_seconds", 0.0))
    run.progress = {**run.progress, "slowest_save_seconds": slowest}
    row.created_at, row.bad, row.deleted_at = seconds, None, None
    row.superseded = applied.is_beyond(event.step)
    throughput.record(session, run, applied.attempt)
    applied.record(
        "checkpoint", f"Checkpoint saved at step {event.step:,}", seconds,
        step=event.step, data={"name": event.name, "why": event.why, "bytes": event.bytes},
    )  # fmt: skip


def _checkpoint_failed(
    applied: AppliedAttempt, event: events.CheckpointFailed, seconds: float
) -> None:
    message = f"the checkpoint at step {event.step:,} could not be written: {event.message}"
    applied.record(
        "checkpoint_failed", message, seconds, level="error", step=event.step,
        data={"errno": event.errno},
    )  # fmt: skip


def _checkpoint_removed(
    applied: AppliedAttempt, event: events.CheckpointRemoved, seconds: float
) -> None:
    row = _checkpoint(applied, event.name, -1)
    if row is not None:
        row.deleted_at = seconds


def _checkpoint_bad(applied: AppliedAttempt, event: events.CheckpointBad, seconds: float) -> None:
    row = _checkpoint(applied, event.name, -1)
    if row is not None:
        row.bad = event.why
    message = f"{event.name} failed verification and was skipped: {event.why}"
    applied.record("checkpoint_bad", message, seconds, level="warning")


def _resume_checked(applied: AppliedAttempt, event: events.ResumeChecked, seconds: float) -> None:
    attempt = applied.attempt
    attempt.exact_resume = lineage.worse(attempt.exact_resume, event.verdict)
    applied.session.flush()
    applied.run.exact_resume = lineage.exactness(applied.session, applied.run.id)
    message = f"{event.what} at step {event.step:,}: {event.verdict}"
    applied.record(
        "resume_checked", f"{message} ({event.why})" if event.why else message, seconds,
        level="info" if event.verdict == "verified" else "warning", step=event.step,
        data={"what": event.what, "verdict": event.verdict, "expected": event.expected,
              "found": event.found},
    )  # fmt: skip


def _notice(target: AppliedAttempt, event: events.Notice, seconds: float) -> None:
    applied.notice(target, event, seconds)
    run = target.run
    if event.code == Reason.disk_full and target.is_newest and run.state == State.running:
        states.explain(run, Reason.disk_full, event.message)


def _command_done(applied: AppliedAttempt, event: events.CommandDone, seconds: float) -> None:
    command = applied.session.get(tables.CommandRow, event.command_id)
    if command is None or command.done_at is not None:
        return
    commands.answer(command, event.outcome, seconds)
    job = applied.session.get(tables.Job, command.job_id) if command.job_id else None
    if job is not None and not job.is_over:
        done = event.outcome == "done"
        outcome, reason = ("completed", Reason.finished) if done else ("failed", Reason.job_failed)
        executions.end(applied.session, job, outcome, reason, event.message, now=seconds)


def _ended(target: AppliedAttempt, event: events.Ended, seconds: float) -> None:
    """Record the attempt's outcome; the supervisor moves the run once the process is gone."""
    applied.ended(target, event, seconds)
    attempt = target.attempt
    throughput.record(target.session, target.run, attempt)
    message = f"attempt {attempt.number} ended: {event.outcome}"
    level = "error" if event.outcome == "failed" else "info"
    if event.message:
        message += f" ({event.message})"
    target.record("ended", message, seconds, level=level, step=event.step)
    if target.is_newest and attempt.lineage_limit is None:
        _end_phase(target, event, seconds)


def _end_phase(applied: AppliedAttempt, event: events.Ended, seconds: float) -> None:
    phase = applied.session.scalar(
        select(tables.Phase).where(
            tables.Phase.run_id == applied.run.id,
            tables.Phase.index == applied.attempt.phase_index,
        )
    )
    if event.outcome == "completed" and phase is not None and phase.ended_at_step is None:
        phase.ended_at_step = phase.end_step if event.step is None else event.step
        phase.ended_at = max(seconds, phase.started_at or seconds)
    if event.outcome in ("completed", "phase_ended", "paused") and event.step is not None:
        applied.session.flush()
        extend.apply_pending(applied.session, applied.run, event.step, seconds)


_HANDLERS: dict[type[events.TrainerEvent], Any] = {
    events.Started: _started,
    events.Ranks: _ranks,
    events.Resumed: _resumed,
    events.Frozen: _frozen,
    events.EvaluationResult: _evaluation,
    events.SampleResult: _sample,
    events.CheckpointSaved: _checkpoint_saved,
    events.CheckpointFailed: _checkpoint_failed,
    events.CheckpointRemoved: _checkpoint_removed,
    events.CheckpointBad: _checkpoint_bad,
    events.ResumeChecked: _resume_checked,
    events.Notice: _notice,
    events.CommandDone: _command_done,
    events.Ended: _ended,
}
