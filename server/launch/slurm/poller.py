"""Slurm poller thread: submissions and signals in order, one squeue for all jobs.

Slurm's commands block for many seconds while the controller does not respond. The supervisor never
waits for them: it queues requests here and reads the latest results.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from server.launch.slurm import answers, client
from server.launch.slurm.answers import JobRow
from server.launch.slurm.client import SlurmError

log = logging.getLogger("traind.slurm")

POLL_INTERVAL_SECONDS = 5.0
SOONEST_SECONDS = 1.0  # minimum interval between polls
YOUNG_SECONDS = 30.0  # poll faster for this time after a submission or signal
RETRY_SECONDS = 10.0  # delay before a submission is retried
SETTLE_SECONDS = 10.0  # by then a job of an earlier daemon's sbatch is listed
COMPLETING_SECONDS = 60.0  # limit of the COMPLETING state after the trainer has ended
MISSING_SECONDS = 60.0  # after this time a job that Slurm no longer lists counts as ended


class SubmissionStage(StrEnum):
    """Stage of a submission. retrying: sbatch had a transient error; the job may exist."""

    queued = "queued"
    retrying = "retrying"
    accepted = "accepted"
    refused = "refused"
    withdrawn = "withdrawn"


@dataclass
class Submission:
    """One sbatch call. error: its last error. tried_at: end of the last try, monotonic seconds."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    directory: Path
    stage: SubmissionStage = SubmissionStage.queued
    error: str = ""
    tried_at: float = 0.0


@dataclass
class TrackedJob:
    """A job by its name. row: from the latest poll. since: start of tracking, monotonic seconds.

    missing_since: first poll that did not list the job; `row` then keeps its last value.
    completing_since: start of the COMPLETING state, which hides how the job ended.
    """

    name: str
    since: float
    job: str | None = None
    row: JobRow | None = None
    submission: Submission | None = None
    missing_since: float | None = None
    completing_since: float | None = None
    asked_accounting: bool = False


@dataclass
class _Shared:
    jobs: dict[str, TrackedJob] = field(default_factory=dict)
    requests: deque[Callable[[], None]] = field(default_factory=deque)
    answered_at: float | None = None  # start of the latest successful poll
    failing_since: float | None = None
    error: str = ""
    poll_soon_until: float = 0.0
    poll_asked: bool = False


class SlurmPoller:
    """Polls Slurm in a thread, started with the first job. clock: monotonic seconds."""

    def __init__(
        self,
        interval_seconds: float = POLL_INTERVAL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval, self._clock = interval_seconds, clock
        self._shared, self._changed = _Shared(), threading.Condition()
        self._thread: threading.Thread | None = None
        self._ends = False
        self.polls = 0

    # --- from the supervisor's thread ------------------------------------------------------------

    def track(self, name: str, job: str | None = None) -> TrackedJob:
        """Track the job of this name from now on. job: its id, if known."""
        with self._changed:
            found = self._shared.jobs.get(name)
            if found is None:
                found = self._shared.jobs[name] = TrackedJob(name, self._clock())
                self._ask_for_poll()
            found.job = found.job or job
        self._run()
        return found

    def forget(self, name: str) -> TrackedJob | None:
        """Stop tracking a job. Returns its last state."""
        with self._changed:
            return self._shared.jobs.pop(name, None)

    def submit(self, name: str, submission: Submission) -> None:
        tracked = self.track(name)
        with self._changed:
            tracked.submission = submission
            self._shared.requests.append(lambda: self._submit(tracked, submission))
            self._ask_for_poll(young=True)

    def scancel(self, *arguments: str) -> None:
        """Queue an `scancel` with these arguments; an error is logged."""

        def act() -> None:
            try:
                client.scancel(*arguments)
            except SlurmError as error:
                log.warning("scancel %s: %s", " ".join(arguments), error)

        with self._changed:
            self._shared.requests.append(act)
            self._ask_for_poll(young=True)

    def poke(self) -> None:
        """Request a poll soon, as a job is about to change."""
        with self._changed:
            self._ask_for_poll()

    def _ask_for_poll(self, *, young: bool = False) -> None:
        self._shared.poll_asked = True
        if young:
            self._shared.poll_soon_until = self._clock() + YOUNG_SECONDS
        self._changed.notify_all()

    def has_answered_since(self, when: float) -> bool:
        """True if a poll that started after `when` succeeded."""
        return self._shared.answered_at is not None and self._shared.answered_at >= when

    @property
    def silence(self) -> str | None:
        """Error of the failed polls while Slurm does not respond, else None."""
        shared = self._shared
        return shared.error if shared.failing_since is not None else None

    def close(self) -> None:
        """Stop the thread after the current command; does not wait for it."""
        with self._changed:
            self._ends = True
            self._changed.notify_all()

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._loop, name="slurm", daemon=True)
            self._thread.start()

    def _loop(self) -> None:
        last = -self._interval
        while not self._ends:
            with self._changed:
                if not self._shared.requests:
                    self._changed.wait(self._pause(last))
                request = self._shared.requests.popleft() if self._shared.requests else None
                wants_poll = self._pause(last) == 0
            if request is not None:
                request()
            elif wants_poll:
                last = self._clock()
                self._poll()
                self._retry_submissions()

    def _pause(self, last: float) -> float | None:
        """Seconds until the next poll is due; None without tracked jobs."""
        shared, now = self._shared, self._clock()
        if not shared.jobs:
            return None
        soon = shared.poll_asked or now < shared.poll_soon_until
        return max(0.0, last + (SOONEST_SECONDS if soon else self._interval) - now)

    # --- polling ---------------------------------------------------------------------------------

    def _poll(self) -> None:
        began = self._clock()
        with self._changed:
            names = sorted(self._shared.jobs)
            self._shared.poll_asked = False
        try:
            rows = client.squeue(names)
        except SlurmError as error:
            with self._changed:
                self._note_silence(str(error), began)
            return
        self.polls += 1
        with self._changed:
            if self._shared.failing_since is not None:
                log.info("Slurm responds again")
            self._shared.failing_since, self._shared.answered_at = None, began
            for tracked in self._shared.jobs.values():
                if tracked.name in names:
                    self._apply(tracked, rows, began)
        self._ask_accounting()

    def _note_silence(self, error: str, now: float) -> None:
        shared = self._shared
        if shared.failing_since is None:
            log.warning("Slurm does not respond; polling continues: %s", error)
            shared.failing_since = now
        shared.error = error

    def _apply(self, tracked: TrackedJob, rows: list[JobRow], now: float) -> None:
        own = [row for row in rows if row.name == tracked.name]
        if tracked.job is not None:
            own = [row for row in own if row.job == tracked.job]
        row = min(own, key=lambda one: (one.has_ended, int(one.job)), default=None)
        if row is not None:
            tracked.job, tracked.row, tracked.missing_since = row.job, row, None
            is_completing = row.state == "COMPLETING"
            tracked.completing_since = (tracked.completing_since or now) if is_completing else None
            if tracked.submission is not None:
                tracked.submission.stage = SubmissionStage.accepted
        elif tracked.missing_since is None:
            tracked.missing_since = now

    def _ask_accounting(self) -> None:
        """Query sacct once for each job that left the list of squeue before its end was seen."""
        for tracked in list(self._shared.jobs.values()):
            has_ended = tracked.row is not None and tracked.row.has_ended
            if tracked.missing_since is None or tracked.job is None or has_ended:
                continue
            if tracked.asked_accounting:
                continue
            row = client.sacct(str(tracked.job))
            with self._changed:
                tracked.asked_accounting = True
                if row is not None and row.name == tracked.name and row.has_ended:
                    tracked.row = row

    # --- submitting ------------------------------------------------------------------------------

    def _submit(self, tracked: TrackedJob, submission: Submission) -> None:
        if submission.stage is SubmissionStage.withdrawn:
            return
        try:
            said = client.sbatch(submission.arguments, submission.environment, submission.directory)
            job = answers.parse_submitted(said)
            error = "" if job else f"sbatch printed no job id: {said.strip()[:200]!r}"
        except SlurmError as failure:
            job, error = None, str(failure)
        with self._changed:
            submission.tried_at, submission.error = self._clock(), error
            if job is not None:
                tracked.job, submission.stage = job, SubmissionStage.accepted
                tracked.missing_since = None
            elif not error or answers.may_pass(error) or "printed no job id" in error:
                submission.stage = SubmissionStage.retrying
                log.warning("sbatch failed and is retried: %s", error)
            else:
                submission.stage = SubmissionStage.refused
                log.warning("sbatch rejected a job: %s", error)
            self._shared.poll_asked = True

    def _retry_submissions(self) -> None:
        """Retry submissions that certainly failed: a poll started after sbatch ended has no job of
        that name."""
        for tracked in list(self._shared.jobs.values()):
            one = tracked.submission
            if one is None or one.stage is not SubmissionStage.retrying or tracked.job:
                continue
            has_waited = self._clock() - one.tried_at >= RETRY_SECONDS
            if has_waited and self.has_answered_since(one.tried_at + RETRY_SECONDS / 2):
                self._submit(tracked, one)
