"""When to read a journal: as soon as its file moved, and to its end once its writer is dead."""

from __future__ import annotations

import logging
from collections.abc import Callable

from server.ingestion import ingest
from server.ingestion.ingest import IngestResult
from server.supervision.trainers import Shop
from server.supervision.watch import Watch

log = logging.getLogger("traind.intake")

RECORDS_PER_READ = 2000
READS_PER_TICK = 5  # of one journal: others have their turn, and a tick stays short


class Intake:
    """Feeds what trainers and jobs report into the rows."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop

    def read(self, attempts: dict[int, Watch], jobs: dict[str, Watch]) -> None:
        """Read every journal that has moved since it was last read to its end."""
        db, paths = self._shop.db, self._shop.settings.paths
        for attempt_id, watch in attempts.items():
            _drain(
                watch,
                lambda key=attempt_id: ingest.ingest_attempt(
                    db, key, paths, max_records=RECORDS_PER_READ
                ),
            )
        for job_id, watch in jobs.items():
            _drain(
                watch,
                lambda key=job_id: ingest.ingest_job(db, key, paths, max_records=RECORDS_PER_READ),
            )


def _drain(watch: Watch, read: Callable[[], IngestResult]) -> None:
    for _ in range(READS_PER_TICK):
        if watch.exhausted:
            return
        try:
            watch.exhausted = not read().more
        except OSError as error:  # the disk will not give the file: what was read stays read
            log.error("the report in %s cannot be read: %s", watch.directory, error)
            watch.exhausted = True
