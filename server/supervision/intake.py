"""When to read a journal: as soon as its file moved, and to its end once its writer is dead."""

from __future__ import annotations

import logging
from collections.abc import Callable

from server.ingestion import ingest
from server.ingestion.ingest import MAX_RECORDS, IngestResult
from server.ingestion.worker import WorkerGone
from server.supervision import setbacks
from server.supervision.trainers import Shop
from server.supervision.watch import Watch

log = logging.getLogger("traind.intake")

READS_PER_TICK = 20  # of one journal: others have their turn, and a tick stays short


class Intake:
    """Feeds what trainers and jobs report into the rows."""

    def __init__(self, shop: Shop) -> None:
        self._shop, self._worker = shop, shop.worker

    def read(self, attempts: dict[int, Watch], jobs: dict[str, Watch]) -> None:
        """Read every journal that has moved since it was last read to its end."""
        for attempt_id, watch in attempts.items():
            _drain(watch, lambda key=attempt_id: self._ingest("attempt", key))
        for job_id, watch in jobs.items():
            _drain(watch, lambda key=job_id: self._ingest("job", key))

    def _ingest(self, what: str, key: int | str) -> IngestResult:
        """By the process that ingests while there is one; here when it died."""
        db, paths = self._shop.db, self._shop.settings.paths
        if self._worker is not None:
            try:
                with db.lend():
                    return self._worker.read(what, key, MAX_RECORDS)
            except WorkerGone as error:
                log.error("%s; its work goes on in the daemon itself", error)
                self._worker = None
        return ingest.READERS[what](db, key, paths)


def _drain(watch: Watch, read: Callable[[], IngestResult]) -> None:
    """Read until nothing is left for now. One report that cannot be read holds up no other."""
    for _ in range(READS_PER_TICK):
        if watch.exhausted:
            return
        try:
            watch.exhausted = not read().more
        except Exception as error:  # what was read stays read
            if setbacks.concerns_all(error):
                raise
            words = setbacks.in_words(error)
            log.error("the report in %s cannot be read: %s", watch.directory, words)
            watch.exhausted = True
