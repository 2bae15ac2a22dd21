"""Slurm launcher: liveness from the poller's latest results and the attempt's directory.

handle: {"engine", "job": id}; before sbatch returns, only `engine`. The outbox is more recent than
any poll: while it grows, the attempt is alive whatever Slurm reports, so a pause works while the
controller is down.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from server.launch import process
from server.launch.launcher import (
    EngineEnding,
    EngineWait,
    Handle,
    LaunchRequest,
    Liveness,
    Workspace,
)
from server.launch.slurm import script
from server.launch.slurm.answers import JobRow, ending, pending_words
from server.launch.slurm.poller import (
    COMPLETING_SECONDS,
    MISSING_SECONDS,
    SETTLE_SECONDS,
    SlurmPoller,
    Submission,
    SubmissionStage,
    TrackedJob,
)
from trainer.contract import exits, failpoint
from trainer.contract.durable import write_durably
from trainer.contract.reasons import Reason
from trainer.contract.rundir import OUTBOX, ProcessIdentity
from trainer.contract.spec import PlaceSpec

NAME = "slurm"
FRESH_SECONDS = 30.0  # an outbox that changed within this time counts as alive

# Names of the signals to tasks; SIGKILL cancels the job instead.
_TO_TASKS = {signal.SIGTERM: "TERM", signal.SIGCONT: "CONT", signal.SIGSTOP: "STOP"}


@dataclass
class _OutboxAge:
    """Time of the last observed change of the outbox, by the daemon's clock, not the node's."""

    seen: tuple[int, int] | None = None
    changed_at: float | None = None


class SlurmLauncher:
    """Launcher for a Slurm cluster. prologue: shell file that every job sources. cache_bytes,
    compiled: as of `process.environment`."""

    name = NAME

    def __init__(
        self,
        python: str,
        cache_bytes: int | None = None,
        compiled: Path | None = None,
        prologue: Path | None = None,
        poller: SlurmPoller | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._python, self._cache_bytes, self._compiled = python, cache_bytes, compiled
        self._prologue, self._clock = prologue, clock
        self._poller = poller or SlurmPoller(clock=clock)
        self._outboxes: dict[str, _OutboxAge] = {}

    # --- starting --------------------------------------------------------------------------------

    def reserve(self) -> Handle:
        return {"engine": NAME}

    def spawn(self, work: LaunchRequest) -> Handle | None:
        """Queue the submission; `find` returns the job id once sbatch has returned."""
        place = work.place or PlaceSpec(engine="slurm")
        directory = work.workspace.directory
        text = script.render(work, place, self._python, self._prologue)
        write_durably(directory / script.SCRIPT, text.encode())
        failpoint.hit("supervisor.spawn")
        environment = process.environment(work.workspace.token, self._cache_bytes, self._compiled)
        submission = Submission(script.arguments(work, place), environment, directory)
        self._poller.submit(script.job_name(work.workspace.token), submission)
        return None

    def find(self, workspace: Workspace) -> Handle | None:
        tracked = self._track(workspace)
        if tracked.job is None:
            return None
        failpoint.hit("supervisor.record")
        return {"engine": NAME, "job": tracked.job}

    def starting(self, workspace: Workspace) -> Liveness | None:
        tracked = self._track(workspace)
        if tracked.job is not None:
            return Liveness.alive
        if tracked.submission is not None:
            state = tracked.submission.stage
            is_over = state in (SubmissionStage.refused, SubmissionStage.withdrawn)
            return None if is_over else Liveness.waiting
        if not self._poller.has_answered_since(tracked.since + SETTLE_SECONDS):
            return Liveness.waiting
        script.withdraw(workspace)  # in case an earlier daemon's sbatch still succeeds
        return None

    # --- liveness --------------------------------------------------------------------------------

    def is_known(self, handle: Handle) -> bool:
        return handle.get("job") is not None

    def is_alive(self, workspace: Workspace, handle: Handle) -> Liveness:
        tracked = self._track(workspace, handle)
        row = tracked.row
        if row is not None and (row.has_ended or row.is_requeued):
            return Liveness.gone
        has_ended = exits.read_exit(workspace.directory) is not None
        if has_ended:
            self._poller.poke()
            since = tracked.completing_since
            if since is not None and self._clock() - since >= COMPLETING_SECONDS:
                return Liveness.gone
        is_silent = self._poller.silence is not None
        is_missing = tracked.missing_since is not None and not is_silent
        if is_missing and has_ended:
            return Liveness.gone
        if self._moves(workspace):
            return Liveness.alive
        if is_missing:
            is_gone = self._clock() - (tracked.missing_since or 0.0) >= MISSING_SECONDS
            return Liveness.gone if is_gone else Liveness.unreachable
        if is_silent:
            return Liveness.unreachable
        if row is None or row.is_waiting or row.is_suspended:
            return Liveness.waiting
        return Liveness.alive

    def _moves(self, workspace: Workspace) -> bool:
        """True if the outbox changed within FRESH_SECONDS."""
        age = self._outboxes.setdefault(workspace.token, _OutboxAge())
        try:
            found = (workspace.directory / OUTBOX).stat()
        except OSError:
            return False
        seen = (found.st_size, found.st_mtime_ns)
        if seen != age.seen:
            age.seen, age.changed_at = seen, self._clock()
        return age.changed_at is not None and self._clock() - age.changed_at < FRESH_SECONDS

    def is_stopped(self, handle: Handle) -> bool:
        return False

    def is_of_another_boot(self, handle: Handle) -> bool:
        return False

    def process(self, handle: Handle) -> ProcessIdentity | None:
        return None

    def exit_code(self, workspace: Workspace) -> int | None:
        row = self._track(workspace).row
        return row.exit_code if row is not None else None

    def waits(self, workspace: Workspace, handle: Handle) -> EngineWait | None:
        tracked = self._track(workspace, handle)
        submission, row, silence = tracked.submission, tracked.row, self._poller.silence
        if silence is not None:
            return EngineWait(Reason.engine_unreachable, f"Slurm does not answer: {silence}.")
        if tracked.job is None:
            if submission is not None and submission.stage is SubmissionStage.retrying:
                words = f"Slurm accepts no jobs now; the submission is retried: {submission.error}."
                return EngineWait(Reason.waiting_for_engine, words)
            return EngineWait(Reason.waiting_for_engine, "The job is being submitted to Slurm.")
        if tracked.missing_since is not None:
            words = f"Slurm no longer lists job {tracked.job}."
            return EngineWait(Reason.engine_unreachable, words)
        if row is None:
            words = f"Slurm job {tracked.job} was submitted."
            return EngineWait(Reason.waiting_for_engine, words)
        is_waiting = row.is_waiting or row.is_suspended
        return EngineWait(Reason.waiting_for_engine, pending_words(row)) if is_waiting else None

    def ending(self, workspace: Workspace, save_seconds: float) -> EngineEnding | None:
        tracked = self._track(workspace)
        submission = tracked.submission
        if submission is not None and tracked.job is None:
            if submission.stage is SubmissionStage.refused:
                return EngineEnding(Reason.engine_refused, f"sbatch: {submission.error}")
            return EngineEnding(
                Reason.engine_cancelled, "the job was withdrawn before Slurm accepted it"
            )
        has_begun = (workspace.directory / OUTBOX).exists()
        row: JobRow | None = tracked.row
        if row is not None and (row.has_ended or row.is_requeued):
            return ending(row, save_seconds, has_begun=has_begun)
        return None

    # --- signalling ------------------------------------------------------------------------------

    def signal(self, workspace: Workspace, handle: Handle, *signals: signal.Signals) -> bool:
        """Signal every task; SIGKILL, or any signal to a pending job, ends the job."""
        tracked = self._track(workspace, handle)
        if tracked.job is None:
            return self._withdraw(workspace, tracked)
        job, name = tracked.job, f"--name={tracked.name}"
        row = tracked.row
        if row is None or row.state == "PENDING":
            self._poller.scancel(name, "--state=PENDING", job)
            return True
        if row.is_waiting:
            self._poller.scancel(name, job)
            return True
        if signal.SIGKILL in signals or row.is_suspended:
            self._poller.scancel(name, "--full", "--signal=KILL", job)
            self._poller.scancel(name, job)
            return True
        for number in signals:
            self._poller.scancel(name, f"--signal={_TO_TASKS.get(number, int(number))}", job)
        return True

    def _withdraw(self, workspace: Workspace, tracked: TrackedJob) -> bool:
        """Withdraw a pending submission; if its job exists, it exits immediately."""
        if tracked.submission is None:
            return False
        with suppress(OSError):
            script.withdraw(workspace)
        self._poller.scancel(f"--name={tracked.name}", "--state=PENDING")
        tracked.submission.stage = SubmissionStage.withdrawn
        return True

    # --- cleanup ---------------------------------------------------------------------------------

    def has_leftovers(self, workspace: Workspace) -> bool:
        return False  # those on an unreachable node are fenced, not waited for

    def sweep(self, workspace: Workspace) -> None:
        pass

    def release(self, workspace: Workspace) -> None:
        tracked = self._poller.forget(script.job_name(workspace.token))
        if tracked is not None and tracked.row is not None and tracked.row.is_requeued:
            # if it starts again, its script exits immediately
            self._poller.scancel(f"--name={tracked.name}", tracked.row.job)
        self._outboxes.pop(workspace.token, None)

    def reap(self) -> None:
        pass

    def leave(self) -> None:
        self._poller.close()

    def _track(self, workspace: Workspace, handle: Handle | None = None) -> TrackedJob:
        job = handle.get("job") if handle else None
        return self._poller.track(script.job_name(workspace.token), str(job) if job else None)
