"""Reconciles one run: observes its attempt, decides, applies one action."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from server.database.tables import Attempt, Job, Run
from server.domain import budget, events
from server.domain.states import YIELDS, Desired, State, explain, move, sentence
from server.errors import Conflict
from server.scheduling import rows as scheduling_rows
from server.supervision import decide, job_processes, lifecycle, trainers
from server.supervision.context import SupervisorContext
from server.supervision.disk_room import DiskRoom
from server.supervision.observer import Observer
from server.supervision.watch import Watch
from server.supervision.worklist import Entry, Worklist, may_use
from trainer.contract import commands
from trainer.contract.journal import JournalError, JournalFull
from trainer.contract.reasons import Reason

log = logging.getLogger("traind.supervisor")


class RunReconciler:
    """Reconciles runs; remembers what their rows do not hold: waiting times."""

    def __init__(
        self,
        context: SupervisorContext,
        observer: Observer,
        disk: DiskRoom,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context, self._observer, self._disk, self._clock = context, observer, disk, clock
        self._backoff: dict[str, float] = {}
        self.is_shutting_down = self.stops_trainers = False

    @property
    def has_waits(self) -> bool:
        """True while a run backs off before its next attempt."""
        return bool(self._backoff)

    def keep_only(self, entries: Iterable[Entry]) -> None:
        """Forget the waiting times of runs that no longer recover."""
        recovering = {e.run.id for e in entries if e.run.state == State.recovering}
        for run_id in self._backoff.keys() - recovering:
            del self._backoff[run_id]

    def reconcile(self, seen: Worklist, entry: Entry) -> bool:
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
        watch = self._observer.watches.get(attempt.execution_id)
        # what has to stop is not held up by commands that find no room
        is_held_up = watch is not None and watch.inbox_is_full and entry.run.state in _STOPPING
        return self._observer.see(
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
                self._deliver(entry, attempt, self._observer.watches[attempt.execution_id])
            case decide.Close() if attempt is not None:
                watch = self._observer.watches[attempt.execution_id]
                lifecycle.close(context, trainers.KIND, attempt.id, watch)
            case _ if attempt is not None:
                lifecycle.apply(
                    context, attempt, self._observer.watches[attempt.execution_id], action
                )

    def _launch(self, entry: Entry) -> None:
        try:
            launched = trainers.launch(self._context, entry.run.id, entry.device)
        except Conflict as error:  # nothing is left to train
            self._move(entry.run, decide.Move(State.failed, Reason.finished, error.detail))
            return
        if launched is not None:
            self._observer.keep(*launched)

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
