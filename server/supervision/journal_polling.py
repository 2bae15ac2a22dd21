"""Polls journals: reads each when its file changes, and to its end after the exit of its writer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from server.ingestion import ingest
from server.ingestion.ingest import MAX_RECORDS, IngestResult
from server.ingestion.worker import Worker, WorkerGone
from server.supervision import failure_guard
from server.supervision.context import SupervisorContext
from server.supervision.watch import Watch

log = logging.getLogger("traind.journals")

RESTART_SECONDS = (1.0, 5.0, 30.0, 60.0)  # before the ingestion process is restarted
READS_PER_TICK = 20  # per journal, so that a tick stays short and fair


class JournalPolling:
    """Ingests the journals of trainers and jobs."""

    def __init__(self, context: SupervisorContext) -> None:
        self._context, self._worker = context, context.worker
        self._has_worker = context.worker is not None
        self._deaths, self._again_at = 0, 0.0

    def read(self, watches: dict[int, Watch]) -> None:
        """Read every journal that has changed since its last complete read.

        watches: by the id of the execution.
        """
        self._keep_worker()
        for execution_id, watch in watches.items():
            _drain(watch, lambda key=execution_id: self._ingest(key))

    def close(self) -> None:
        """Stop the ingestion process if it was started here."""
        if self._worker is not None and self._worker is not self._context.worker:
            self._worker.close()

    def _ingest(self, execution_id: int) -> IngestResult:
        """Ingest in the ingestion process, or in this one until that is restarted."""
        db, paths = self._context.db, self._context.settings.paths
        try:
            if self._worker is not None and self._worker.is_ready:
                with db.lend():
                    return self._worker.read(execution_id, MAX_RECORDS)
        except WorkerGone as error:
            self._restart_later(self._worker, error)
        return ingest.ingest(db, execution_id, paths)

    def _restart_later(self, worker: Worker | None, error: WorkerGone) -> None:
        wait = RESTART_SECONDS[min(self._deaths, len(RESTART_SECONDS) - 1)]
        log.error("%s; it restarts in %.0f s, the daemon ingests until then", error, wait)
        self._deaths, self._again_at = self._deaths + 1, time.monotonic() + wait
        self._worker = None
        if worker is not None:
            worker.close()

    def _keep_worker(self) -> None:
        """Restart the process if it has ended, with increasing delay."""
        if not self._has_worker or self._worker is not None or time.monotonic() < self._again_at:
            return
        try:
            self._worker = Worker.spawn(self._context.settings.paths.root)
        except OSError as error:
            self._restart_later(
                None, WorkerGone(f"the ingestion process cannot be started: {error}")
            )


def _drain(watch: Watch, read: Callable[[], IngestResult]) -> None:
    """Read a journal to its present end. An unreadable one does not block the others."""
    for _ in range(READS_PER_TICK):
        if watch.exhausted:
            return
        try:
            watch.exhausted = not read().more
        except Exception as error:  # records read so far are kept
            if failure_guard.concerns_all(error):
                raise
            words = failure_guard.in_words(error)
            log.error("the journal in %s cannot be read: %s", watch.directory, words)
            watch.exhausted = True
