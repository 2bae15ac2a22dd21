"""A thread that runs a pass after each commit, and at intervals without one."""

from __future__ import annotations

import threading
import time

from server.database.db import Database

QUIET_SECONDS = 1.0  # at least between two passes, however much is committed
MOST_QUIET_SECONDS = 60.0


class CommitThread:
    """Base of threads that react to commits; subclasses define the pass. One instance, one
    thread."""

    rest = 0.0  # seconds of quiet for each second that a pass took
    stop_seconds = 1.0  # how long a stop waits for the pass under way

    def __init__(self, db: Database, name: str) -> None:
        self._db = db
        self._woken, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def one_pass(self) -> float:
        """Run one pass. Returns the seconds until the next one without a commit. Never raises."""
        raise NotImplementedError

    def last_pass(self) -> None:
        """The work that is left when the thread stops."""

    def start(self) -> None:
        self._db.on_commit(self._woken.set)
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current pass and the last one."""
        self._ended.set()
        self._woken.set()
        self._thread.join(timeout=self.stop_seconds)

    def _run(self) -> None:
        while not self._ended.is_set():
            self._woken.clear()
            began = time.monotonic()
            due = self.one_pass()
            quiet = max(QUIET_SECONDS, self.rest * (time.monotonic() - began))
            self._ended.wait(min(quiet, MOST_QUIET_SECONDS))
            self._woken.wait(due)
        self.last_pass()
