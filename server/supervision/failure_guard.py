"""Isolates errors: a failure in handling one run or job ends that one; the tick continues.

A first error may be transient (a busy disk, a file that is being replaced), so the action is
retried with increasing delay. After TRIES errors the run or job is ended with the path and the
remedy in its message. An error of the daemon never ends a live trainer: the action is retried as
long as the trainer runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from sqlalchemy.orm import Session

from server.database.db import Database
from server.database.tables import Job, Run
from server.domain import attempts, events, executions
from server.domain.states import ENDED, State, can_move, move
from server.errors import Busy, DiskFull, StorageBroken, TraindError
from server.launch import process
from trainer.contract.reasons import Reason

TRIES = 3
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 60.0

# Errors that concern every run: the whole tick waits for them.
OF_ALL = (Busy, DiskFull, StorageBroken)

log = logging.getLogger("traind.supervisor")


class FailureGuard:
    """Consecutive errors by run or job, and the time of each retry."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._errors: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def guard(
        self, key: str, act: Callable[[], bool], give_up: Callable[[Exception], bool]
    ) -> bool:
        """Run `act` with back-off after a failure; `give_up(error)` after repeated failures.

        Returns True if there is something to watch. Raises only errors that concern every run.
        """
        if self._clock() < self._until.get(key, 0.0):
            return True
        try:
            done = act()
        except Exception as error:
            if concerns_all(error):
                raise
            self._count(key, error)
            if self._errors[key] >= TRIES:
                self._try_to_give_up(key, error, give_up)
            return True
        self._errors.pop(key, None)
        self._until.pop(key, None)
        return done

    def keep_only(self, keys: set[str]) -> None:
        """Drop the errors of settled runs and jobs."""
        for key in self._errors.keys() - keys:
            del self._errors[key]
            self._until.pop(key, None)

    def _count(self, key: str, error: Exception) -> None:
        number = self._errors[key] = self._errors.get(key, 0) + 1
        wait = min(FIRST_WAIT_SECONDS * 2 ** (number - 1), LONGEST_WAIT_SECONDS)
        self._until[key] = self._clock() + wait
        log.error("%s: %s (error %d in a row)", key, in_words(error), number, exc_info=error)

    def _try_to_give_up(
        self, key: str, error: Exception, give_up: Callable[[Exception], bool]
    ) -> None:
        try:
            if give_up(error):
                self._errors.pop(key, None)
        except Exception as second:
            if concerns_all(second):
                raise
            log.critical("%s cannot be ended either: %s", key, in_words(second), exc_info=second)


def concerns_all(error: Exception) -> bool:
    """True if no run or job is the cause: a database error, or no free file descriptor."""
    out_of_files = isinstance(error, OSError) and error.errno in process.OUT_OF_FILES
    return isinstance(error, OF_ALL) or out_of_files


def in_words(error: BaseException) -> str:
    """Format an error on one line: what failed, where, and what to do."""
    if isinstance(error, OSError) and error.strerror:
        where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name)
        place = f"{where}: " if where else ""
        return f"{place}{error.strerror}. {_remedy(error)}"
    text = " ".join(str(error).split())
    if isinstance(error, (OSError, TraindError)) and text:
        return text[:2000]
    return f"{type(error).__name__}: {text}. The daemon's log has the details"[:2000]


def _remedy(error: OSError) -> str:
    import errno as numbers

    match error.errno:
        case numbers.EACCES | numbers.EPERM:
            return "Give the daemon's user the right to write there, then try again"
        case numbers.ENOSPC | numbers.EDQUOT:
            return "Free some space there, then try again"
        case numbers.EROFS:
            return "Mount that file system writable, then try again"
        case numbers.EEXIST | numbers.ENOTDIR | numbers.ENOENT | numbers.ELOOP | numbers.EISDIR:
            return "Repair or remove that path (possibly a dangling link), then try again"
        case numbers.EIO:
            return "Check the disk (dmesg, SMART), then try again"
    return "Repair that path, then try again"


def reason_of(error: BaseException) -> Reason:
    return Reason.io_error if isinstance(error, OSError) else Reason.internal_error


# --- ending one ----------------------------------------------------------------------------------


def end_run(db: Database, run_id: str, error: Exception, is_alive: bool) -> bool:
    """Fail the run and close its attempts. If a trainer is alive, only report: it continues."""
    words = in_words(error)
    with db.write() as session:
        run = session.get(Run, run_id)
        if run is None:
            return True
        if is_alive:
            message = f"the daemon cannot manage this run; its trainer continues: {words}"
            events.record(session, "trouble", message, run_id=run_id, level="error")
            return False
        for attempt in attempts.open_ones(session, run_id):
            outcome, reason = attempt.outcome or "failed", attempt.reason or reason_of(error)
            message = attempt.message or words
            executions.end(session, attempt, outcome, Reason(reason), message)
        _fail(session, run, error, words)
    return True


def _fail(session: Session, run: Run, error: Exception, words: str) -> None:
    state = State(run.state)
    after = State.cancelled if state is State.cancelling else State.failed
    if state not in ENDED and can_move(state, after):
        move(session, run, after, reason_of(error), words)


def end_job(db: Database, job_id: str, error: Exception, is_alive: bool) -> bool:
    """Fail the job. If its process is alive, only report."""
    words = in_words(error)
    with db.write() as session:
        job = session.get(Job, job_id)
        if job is None or job.is_over:
            return True
        if is_alive:
            message = f"the daemon cannot manage job {job_id}, its process continues: {words}"
            events.record(session, "trouble", message, **events.about(job), level="error")
            return False
        executions.end(session, job, "failed", reason_of(error), words)
    return True
