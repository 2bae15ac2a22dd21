"""Reconciles each run and job at one tick: observe, decide, apply.

What is specific to a run stands in `reconcile_run.py`, to a job in `reconcile_job.py`; an error in
one of them ends that one, and the tick continues.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from server.database.tables import CommandRow, Job
from server.domain.executions import ExecutionState
from server.supervision import failure_guard, job_processes
from server.supervision.context import SupervisorContext
from server.supervision.disk_room import DiskRoom
from server.supervision.failure_guard import FailureGuard
from server.supervision.observer import Observer
from server.supervision.reconcile_job import JobReconciler
from server.supervision.reconcile_run import RunReconciler
from server.supervision.worklist import Entry, Worklist


class Reconciler:
    """One tick over the worklist."""

    def __init__(
        self, context: SupervisorContext, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._context, self.observer = context, Observer(context, clock)
        self._disk, self._failures = DiskRoom(clock), FailureGuard(clock)
        self._runs = RunReconciler(context, self.observer, self._disk, clock)
        self._jobs = JobReconciler(context, self.observer, self._disk)
        self.has_nothing_left = False

    def shut_down(self, *, stops_trainers: bool) -> None:
        """From now on start nothing; with `stops_trainers`, end what runs with a checkpoint."""
        for part in (self._runs, self._jobs):
            part.stops_trainers = stops_trainers
            part.is_shutting_down = True

    def reconcile(self, seen: Worklist) -> bool:
        """Take at most one action for each run and job. Returns True if there is something
        to watch."""
        self._drop_finished(seen)
        acted = [self._guarded_run(seen, entry) for entry in seen.entries]
        acted += [self._guarded_job(seen, job) for job in seen.jobs]
        for job, command, state in seen.inline:
            self._guarded_inline(job, command, state)
        self.has_nothing_left = not self.observer.watches
        return bool(self.observer.watches or self._runs.has_waits or any(acted))

    def _drop_finished(self, seen: Worklist) -> None:
        """Drop the watches of finished executions, and expired delays."""
        running = {e.attempt.execution_id for e in seen.entries if e.attempt is not None}
        running |= {job.execution_id for job in seen.jobs if job.state == ExecutionState.running}
        self.observer.keep_only(running)
        self._runs.keep_only(seen.entries)
        names = {f"run {e.run.name}" for e in seen.entries}
        ids = {f"job {job.id}" for job in (*seen.jobs, *(one for one, *_ in seen.inline))}
        self._failures.keep_only(names | ids)
        self._disk.keep_only({e.run.id for e in seen.entries})

    # --- isolation: a failing run or job is ended, others continue -------------------------------

    def _guarded_run(self, seen: Worklist, entry: Entry) -> bool:
        run_id, db = entry.run.id, self._context.db
        return self._failures.guard(
            f"run {entry.run.name}",
            lambda: self._runs.reconcile(seen, entry),
            lambda error: failure_guard.end_run(
                db, run_id, error, self.observer.is_alive(entry.attempt)
            ),
        )

    def _guarded_job(self, seen: Worklist, job: Job) -> bool:
        return self._failures.guard(
            f"job {job.id}",
            lambda: self._jobs.reconcile(seen, job),
            lambda error: failure_guard.end_job(
                self._context.db, job.id, error, self.observer.is_alive(job)
            ),
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
