"""Reconciles one job: observes its process, decides, applies one action."""

from __future__ import annotations

import logging

from server.database.tables import Job
from server.domain.executions import ExecutionState
from server.scheduling import rows as scheduling_rows
from server.supervision import decide, job_processes, lifecycle
from server.supervision.context import SupervisorContext
from server.supervision.disk_room import DiskRoom
from server.supervision.observer import Observer
from server.supervision.worklist import Worklist
from trainer.contract.reasons import Reason

log = logging.getLogger("traind.supervisor")


class JobReconciler:
    """Reconciles jobs that have a process of their own."""

    def __init__(self, context: SupervisorContext, observer: Observer, disk: DiskRoom) -> None:
        self._context, self._observer, self._disk = context, observer, disk
        self.is_shutting_down = self.stops_trainers = False

    def reconcile(self, seen: Worklist, job: Job) -> bool:
        """Decide and apply the action of one job. Returns True if there was one."""
        action = decide.for_job(self._see(seen, job))
        if action == decide.WAIT:
            return False
        log.debug("job %s: %s", job.id, action)
        self._do(job, action)
        return True

    def _see(self, seen: Worklist, job: Job) -> decide.JobSeen:
        place = scheduling_rows.job_place(job, self._context.devices)
        runs = job.state == ExecutionState.running
        return decide.JobSeen(
            state=job.state,
            process=self._observer.see(job, has_begun=True, has_commands=False)
            if runs
            else decide.Seen(),
            is_cancelled=job.cancel_requested,
            may_start=seen.turn.get(place) == job.id,
            reason=Reason(job.reason) if job.reason else None,
            lacks_disk=job.state == ExecutionState.queued and self._lacks_disk(job),
            is_shutting_down=self.is_shutting_down,
            stops_trainers=self.stops_trainers,
        )

    def _lacks_disk(self, job: Job) -> bool:
        paths = self._context.settings.paths
        return self._disk.is_missing(job.id, paths.root, paths.job(job.id))

    def _do(self, job: Job, action: decide.Action) -> None:
        match action:
            case decide.Explain():
                job_processes.explain(self._context, job.id, action.reason)
            case decide.Launch():
                launched = job_processes.launch(self._context, job.id)
                if launched is not None:
                    self._observer.keep(*launched)
            case decide.Close():
                watch = self._observer.watches.get(job.execution_id)
                lifecycle.close(self._context, job_processes.KIND, job.id, watch)
            case _:
                watch = self._observer.watches[job.execution_id]
                lifecycle.apply(self._context, job, watch, action)
