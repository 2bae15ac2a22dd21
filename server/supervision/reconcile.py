"""Reconciles each run and job at one tick: observe, decide, apply."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

from server.database.tables import Attempt, CommandRow, Execution, Job, Run
from server.domain import budget, events
from server.domain.executions import ExecutionState
from server.domain.states import YIELDS, Desired, State, explain, move, sentence
from server.errors import Conflict
from server.launch import registry
from server.scheduling import rows as scheduling_rows
from server.supervision import (
    decide,
    failure_guard,
    job_processes,
    lifecycle,
    stall_timeout,
    trainers,
)
from server.supervision.context import SupervisorContext
from server.supervision.disk_room import DiskRoom
from server.supervision.failure_guard import FailureGuard
from server.supervision.watch import Presence, Watch
from server.supervision.worklist import Entry, Worklist, may_use
from trainer.contract import commands
from trainer.contract.journal import JournalError, JournalFull
from trainer.contract.reasons import Reason
from trainer.contract.rundir import ProcessIdentity

log = logging.getLogger("traind.supervisor")

SHARED_DISK_SECONDS = 90.0  # delay until a write on a node is visible here


class Reconciler:
    """State of the supervisor beyond the rows: watched directories and waiting times.

    watches: by the id of the execution.
    """

    def __init__(
        self, context: SupervisorContext, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._context, self._clock = context, clock
        self.watches: dict[int, Watch] = {}
        self._backoff: dict[str, float] = {}
        self._failures = FailureGuard(clock)
        self._disk = DiskRoom(clock)
        self.is_shutting_down = self.stops_trainers = False
        self.has_nothing_left = False

    def observe(self) -> None:
        """Count the time since the last tick for every watched directory."""
        now = self._clock()
        for watch in self.watches.values():
            watch.update(now)

    def living(self) -> Iterator[ProcessIdentity]:
        """Processes whose end should be detected immediately."""
        for watch in self.watches.values():
            if watch.lives and (found := watch.process) is not None:
                yield found

    def leave(self) -> None:
        """Release all processes; they keep running."""
        for watch in self.watches.values():
            self._release(watch)
        self.watches.clear()
        for launcher in self._context.launchers.values():
            launcher.leave()

    def _release(self, watch: Watch) -> None:
        """Release a finished execution; a child that has not exited yet is reaped later."""
        watch.close()
        watch.launcher.release(watch.workspace)

    def reconcile(self, seen: Worklist) -> bool:
        """Take at most one action for each run and job. Returns True if there is something
        to watch."""
        self._drop_finished(seen)
        acted = [self._guarded_run(seen, entry) for entry in seen.entries]
        acted += [self._guarded_job(seen, job) for job in seen.jobs]
        for job, command, state in seen.inline:
            self._guarded_inline(job, command, state)
        self.has_nothing_left = not self.watches
        return bool(self.watches or self._backoff or any(acted))

    def _drop_finished(self, seen: Worklist) -> None:
        """Drop the watches of finished executions, and expired delays."""
        running = {e.attempt.execution_id for e in seen.entries if e.attempt is not None}
        running |= {job.execution_id for job in seen.jobs if job.state == ExecutionState.running}
        for execution_id in self.watches.keys() - running:
            self._release(self.watches.pop(execution_id))
        recovering = {e.run.id for e in seen.entries if e.run.state == State.recovering}
        for run_id in self._backoff.keys() - recovering:
            del self._backoff[run_id]
        for launcher in self._context.launchers.values():
            launcher.reap()
        names = {f"run {e.run.name}" for e in seen.entries}
        ids = {f"job {job.id}" for job in (*seen.jobs, *(one for one, *_ in seen.inline))}
        self._failures.keep_only(names | ids)
        self._disk.keep_only({e.run.id for e in seen.entries})

    # --- isolation: a failing run or job is ended, others continue -------------------------------

    def _guarded_run(self, seen: Worklist, entry: Entry) -> bool:
        run_id, db = entry.run.id, self._context.db
        return self._failures.guard(
            f"run {entry.run.name}",
            lambda: self._reconcile_run(seen, entry),
            lambda error: failure_guard.end_run(db, run_id, error, self._lives(entry.attempt)),
        )

    def _guarded_job(self, seen: Worklist, job: Job) -> bool:
        return self._failures.guard(
            f"job {job.id}",
            lambda: self._reconcile_job(seen, job),
            lambda error: failure_guard.end_job(self._context.db, job.id, error, self._lives(job)),
        )

    def _guarded_inline(self, job: Job, command: CommandRow | None, state: str) -> None:
        def act() -> bool:
            if job_processes.needs_attention(job, command, state):
                job_processes.follow_inline(self._context, job, command, state)
            return True

        self._failures.guard(
            f"job {job.id}",
            act,
            lambda error: failure_guard.end_job(self._context.db, job.id, error, is_alive=False),
        )

    def _lives(self, row: Attempt | Job | None) -> bool:
        watch = self.watches.get(row.execution_id) if row is not None else None
        return watch is not None and watch.lives

    # --- executions, of either kind --------------------------------------------------------------

    def _see(self, row: Attempt | Job, *, has_begun: bool, has_commands: bool) -> decide.Seen:
        watch = self._watch(row.execution)
        presence = watch.presence(row.execution.handle)
        if presence is not Presence.alive:
            wait = watch.engine_wait if presence in _ENGINE_HAS_IT else None
            return decide.Seen(
                presence=presence,
                drained=watch.exhausted,
                step=row.execution.escalation,
                since_step=watch.since_step,
                engine_waits=(wait.reason, wait.message) if wait is not None else None,
            )
        sent = watch.sent()
        has_to_end = not _ENDS.isdisjoint(sent)
        return decide.Seen(
            presence=presence,
            has_begun=has_begun,
            sent=sent,
            has_commands=has_commands and not watch.inbox_failed,
            step=row.execution.escalation,
            since_step=watch.since_step,
            silence=watch.silence,
            timeout=self._stall_timeout(row, watch),
            stall_step=watch.stall_step,
            is_stopped=watch.is_stopped or (has_to_end and bool(watch.stopped_ranks)),
            waits_for_space=watch.silence >= decide.DISK_SILENCE_SECONDS and watch.waits_for_space,
        )

    def _watch(self, execution: Execution) -> Watch:
        watch = self.watches.get(execution.id)
        return watch or self._keep(execution, self._context.watch(execution))

    def _keep(self, execution: Execution, watch: Watch) -> Watch:
        watch.update(self._clock())
        self.watches[execution.id] = watch
        return watch

    def _stall_timeout(self, row: Attempt | Job, watch: Watch) -> float:
        least = self._context.settings.stall_seconds
        if row.execution.launcher not in registry.ON_THIS_MACHINE:
            least += SHARED_DISK_SECONDS
        if watch.silence < least:
            return least
        with self._context.db.read() as session:
            return stall_timeout.of(session, row, least)

    def _do(self, row: Attempt | Job, action: decide.Action) -> None:
        """Apply an action to the execution itself."""
        watch = self.watches[row.execution_id]
        match action:
            case decide.Adopt():
                lifecycle.adopt(self._context, row, watch)
            case decide.SendCommand():
                self._send_command(row, watch, action.kind)
            case decide.Signal():
                lifecycle.send(self._context, row, watch, action)
            case decide.ClearStall():
                lifecycle.clear_stall(self._context, row, watch)
            case decide.Sweep():
                lifecycle.sweep(watch)

    def _send_command(self, row: Attempt | Job, watch: Watch, kind: str) -> None:
        """Send a pause or a cancel, as the state of the run or job requires."""
        command_type = commands.Pause if kind == "pause" else commands.Cancel
        watch.since_step = 0.0
        try:
            watch.send(command_type(id=f"{kind}-{row.execution_id}"))
        except (OSError, JournalError) as error:
            log.warning("cannot write to the inbox in %s: %s", watch.directory, error)
            watch.note_sent(kind)  # the ladder then uses signals
        lifecycle.restart_ladder(self._context, row)

    # --- runs ------------------------------------------------------------------------------------

    def _reconcile_run(self, seen: Worklist, entry: Entry) -> bool:
        """Decide and apply the action of one run. Returns True if there was one."""
        if entry.missing is not None and entry.run.state in _NEED_A_DEVICE:
            action = decide.Move(State.failed, Reason.device_missing, entry.missing)
        else:
            action = decide.for_run(self._see_run(seen, entry))
        if action == decide.WAIT:
            return False
        log.debug("run %s: %s", entry.run.name, action)
        self._do_for_run(entry, action)
        return True

    def _see_run(self, seen: Worklist, entry: Entry) -> decide.RunSeen:
        run, preparation, waits = entry.run, entry.preparation, seen.waits(entry)
        return decide.RunSeen(
            state=State(run.state),
            wants_to_run=run.desired_state == Desired.running,
            process=self._see_attempt(entry),
            reason=Reason(run.reason),
            has_data=entry.has_data,
            preparation=_state_of(preparation, entry.preparations),
            preparation_message=preparation.message if preparation else "",
            preparation_reason=Reason(preparation.reason)
            if preparation and preparation.reason
            else None,
            may_use_device=may_use(seen.turn, entry),
            yields=self._yield(seen, entry),
            waits=waits and scheduling_rows.in_words(waits, seen.names, entry.device),
            lacks_disk=self._lacks_disk(entry),
            budget_spent=budget.spent(run),
            message=run.reason_message,
            is_backing_off=run.state == State.recovering and self._is_backing_off(run),
            is_shutting_down=self.is_shutting_down,
            stops_trainers=self.stops_trainers,
            pause_seconds=self._context.settings.pause_deadline_seconds,
        )

    def _lacks_disk(self, entry: Entry) -> bool:
        """True if the disk lacks space for a process of this run, now or at the last start."""
        if entry.attempt is not None:
            return False
        run, paths, last = entry.run, self._context.settings.paths, entry.preparation
        failed_at = run.state_since if _ended_for_space(run) else None
        if not entry.has_data and last is not None and last.reason == Reason.disk_full:
            failed_at = last.ended_at
        return self._disk.is_missing(
            run.id, paths.root, paths.run(run.id).root, failed_at=failed_at
        )

    def _yield(self, seen: Worklist, entry: Entry) -> decide.Move | None:
        verdict = seen.yields(entry)
        if verdict is None:
            return None
        reason, words = scheduling_rows.in_words(verdict, seen.names, entry.device)
        by = scheduling_rows.makes_way_for(verdict, seen.names)
        return decide.Move(State.pausing, reason, words, by)

    def _see_attempt(self, entry: Entry) -> decide.Seen:
        attempt = entry.attempt
        if attempt is None:
            return decide.Seen()
        watch = self.watches.get(attempt.execution_id)
        # what has to stop is not held up by commands that find no room
        is_held_up = watch is not None and watch.inbox_is_full and entry.run.state in _STOPPING
        return self._see(
            attempt,
            has_begun=attempt.start_step is not None,
            has_commands=bool(entry.commands) and not is_held_up,
        )

    def _is_backing_off(self, run: Run) -> bool:
        """True during back-off, measured on the monotonic clock: the wall clock may be set back."""
        if run.id not in self._backoff:
            left = (run.not_before or 0.0) - time.time()
            self._backoff[run.id] = self._clock() + min(max(left, 0.0), max(self._context.backoff))
        return self._clock() < self._backoff[run.id]

    def _do_for_run(self, entry: Entry, action: decide.Action) -> None:
        run, attempt, context = entry.run, entry.attempt, self._context
        match action:
            case decide.Move():
                self._move(run, action)
            case decide.Explain():
                words = action.message or sentence(State(run.state), action.reason)
                self._explain(run, action.reason, words)
            case decide.Prepare():
                job_processes.prepare(context, run.id)
            case decide.DropPreparation():
                assert entry.preparation is not None
                job_processes.drop(context, entry.preparation.id)
            case decide.Launch():
                self._launch(entry)
            case decide.Deliver() if attempt is not None:
                self._deliver(entry, attempt, self.watches[attempt.execution_id])
            case decide.Close() if attempt is not None:
                watch = self.watches[attempt.execution_id]
                lifecycle.close(context, trainers.KIND, attempt.id, watch)
            case _ if attempt is not None:
                self._do(attempt, action)

    def _launch(self, entry: Entry) -> None:
        try:
            launched = trainers.launch(self._context, entry.run.id, entry.device)
        except Conflict as error:  # nothing is left to train
            self._move(entry.run, decide.Move(State.failed, Reason.finished, error.detail))
            return
        if launched is not None:
            self._keep(*launched)

    def _move(self, run: Run, action: decide.Move) -> None:
        with self._context.db.write() as session:
            row = session.get_one(Run, run.id)
            if row.state == run.state:  # otherwise it has moved: decide at the next tick
                if action.reason is Reason.budget_spent:
                    row.desired_state = Desired.paused  # it does not resume by itself
                comes_back = action.state is State.queued and action.reason in YIELDS
                data: dict[str, Any] = {"by": list(action.by)} if action.by else {}
                message = action.message
                move(session, row, action.state, action.reason, message, front=comes_back, **data)

    def _explain(self, run: Run, reason: Reason, message: str) -> None:
        with self._context.db.write() as session:
            row = session.get_one(Run, run.id)
            if row.state == run.state:
                explain(row, reason, message)
                level = "warning" if reason is Reason.disk_full else "info"
                events.record(session, "reason", message, run_id=run.id, level=level)

    def _deliver(self, entry: Entry, attempt: Attempt, watch: Watch) -> None:
        """Deliver commands: into the inbox first, then into the row; repeating it changes
        nothing."""
        delivered = []
        try:
            for row in entry.commands:
                watch.send(commands.ADAPTER.validate_python(row.body))
                delivered.append(row.id)
            watch.inbox_is_full = False
        except JournalFull:
            watch.inbox_is_full = True  # nothing was written: delivered once there is room
        except (OSError, JournalError) as error:
            log.warning("cannot write to the inbox of run %s: %s", entry.run.name, error)
            self._report_lost_inbox(attempt, watch, error)
        if delivered:
            watch.since_step = 0.0
            trainers.mark_delivered(self._context, delivered)

    def _report_lost_inbox(self, attempt: Attempt, watch: Watch, error: Exception) -> None:
        """Report a lost inbox once. Commands wait for the next attempt; signals still arrive."""
        watch.inbox_failed = True
        words = f"commands cannot reach the trainer ({error}); pause and resume the run"
        about = events.about(attempt)
        with self._context.db.write() as session:
            events.record(session, "trouble", words, **about, level="error")

    # --- jobs ------------------------------------------------------------------------------------

    def _reconcile_job(self, seen: Worklist, job: Job) -> bool:
        """Decide and apply the action of one job. Returns True if there was one."""
        action = decide.for_job(self._see_job(seen, job))
        if action == decide.WAIT:
            return False
        log.debug("job %s: %s", job.id, action)
        self._do_for_job(job, action)
        return True

    def _see_job(self, seen: Worklist, job: Job) -> decide.JobSeen:
        place = scheduling_rows.job_place(job, self._context.devices)
        runs = job.state == ExecutionState.running
        return decide.JobSeen(
            state=job.state,
            process=self._see(job, has_begun=True, has_commands=False) if runs else decide.Seen(),
            is_cancelled=job.cancel_requested,
            may_start=seen.turn.get(place) == job.id,
            reason=Reason(job.reason) if job.reason else None,
            lacks_disk=job.state == ExecutionState.queued and self._job_lacks_disk(job),
            is_shutting_down=self.is_shutting_down,
            stops_trainers=self.stops_trainers,
        )

    def _job_lacks_disk(self, job: Job) -> bool:
        paths = self._context.settings.paths
        return self._disk.is_missing(job.id, paths.root, paths.job(job.id))

    def _do_for_job(self, job: Job, action: decide.Action) -> None:
        match action:
            case decide.Explain():
                job_processes.explain(self._context, job.id, action.reason)
            case decide.Launch():
                launched = job_processes.launch(self._context, job.id)
                if launched is not None:
                    self._keep(*launched)
            case decide.Close():
                watch = self.watches.get(job.execution_id)
                lifecycle.close(self._context, job_processes.KIND, job.id, watch)
            case _:
                self._do(job, action)


_ENGINE_HAS_IT = frozenset({Presence.waiting, Presence.unreachable})
_ENDS = frozenset({"pause", "cancel"})
_STOPPING = frozenset({State.pausing, State.cancelling})
_NEED_A_DEVICE = frozenset({State.queued, State.preparing, State.starting, State.recovering})

# Outcomes after which a job is retried; once if the job itself may be the cause.
_NOT_ITS_FAULT = frozenset({Reason.host_restarted, Reason.terminated, Reason.disk_full})
_WORTH_ONE_MORE = frozenset({Reason.crashed, Reason.stalled, Reason.host_out_of_memory})


def _ended_for_space(run: Run) -> bool:
    return run.state == State.recovering and run.reason == Reason.disk_full


def _state_of(preparation: Job | None, num_made: int) -> str | None:
    """State of the newest job that prepares the data; None if a new one is needed."""
    if preparation is None or preparation.state != "failed":
        return preparation.state if preparation else None
    again = preparation.reason in _NOT_ITS_FAULT
    again |= preparation.reason in _WORTH_ONE_MORE and num_made < 2
    return None if again else "failed"
