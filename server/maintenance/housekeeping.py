"""Periodic housekeeping in its own thread: run.json, policies.json, daily backup, cleanup.

It runs in its own thread, so that neither requests nor ticks wait for it.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from sqlalchemy import select

from server.database import provenance
from server.database.db import Database
from server.database.tables import Run
from server.domain import job_retention, policies, run_files
from server.events.commit_thread import CommitThread
from server.schemas.policies import PlacePolicyView
from trainer.contract.rundir import DataDir

BACKUP_EVERY_SECONDS = 86_400.0
SWEEP_EVERY_SECONDS = 86_400.0
RETRY_SECONDS = 3_600.0  # after a backup failed
IDLE_SECONDS = 300.0

_VERSIONS = select(Run.id, Run.version)

log = logging.getLogger("traind.housekeeping")


class HousekeepingThread(CommitThread):
    """The housekeeping thread; when stopped, it still writes the pending run files."""

    rest = 20.0
    stop_seconds = 30.0

    def __init__(self, db: Database, paths: DataDir, keep_jobs_days: float = 30.0) -> None:
        super().__init__(db, "housekeeping")
        self._paths, self._keep_jobs_days = paths, keep_jobs_days
        self._written: dict[str, int] = {}
        self._policies: dict[str, PlacePolicyView] | None = None  # as last written
        self._unwritten: dict[str, str] = {}  # last error by run id
        self._next_backup = self._next_sweep = 0.0  # on the monotonic clock

    def one_pass(self) -> float:
        self._try_run_files()
        if time.monotonic() >= self._next_backup and not self._ended.is_set():
            self._next_backup = time.monotonic() + self.back_up_if_due(time.time())
            self._sweep_if_due()
        return IDLE_SECONDS

    def last_pass(self) -> None:
        self._try_run_files()

    def _try_run_files(self) -> None:
        try:
            self.write_run_files()
            self.write_policies()
        except Exception as error:  # a busy database, a full disk: the next pass retries
            log.warning("run.json of some runs or policies.json could not be updated: %s", error)

    def _sweep_if_due(self) -> None:
        """Delete leftovers of finished jobs, once a day."""
        if time.monotonic() < self._next_sweep:
            return
        self._next_sweep = time.monotonic() + SWEEP_EVERY_SECONDS
        try:
            job_retention.sweep(self._db, self._paths, self._keep_jobs_days, time.time())
            job_retention.sweep_corpora(self._db, self._paths, self._keep_jobs_days, time.time())
        except Exception as error:  # a busy database: retried a day later
            log.warning("leftovers of finished jobs could not be deleted: %s", error)

    # --- run.json --------------------------------------------------------------------------------

    def write_run_files(self) -> int:
        """Write run.json of each run whose rows changed. Returns the number of these runs."""
        with self._db.read() as session:
            versions = {row.id: row.version for row in session.execute(_VERSIONS)}
        for gone in self._written.keys() - versions.keys():
            del self._written[gone]
            self._unwritten.pop(gone, None)
        changed = [one for one, version in versions.items() if self._written.get(one) != version]
        for run_id in changed:
            self._write(run_id)
        return len(changed)

    def _write(self, run_id: str) -> None:
        with self._db.read() as session:
            run = session.get(Run, run_id)
            if run is None:
                return
            document, version = run_files.describe(session, run), run.version
        try:
            known = run_files.read(self._paths.run(run_id))
            if known != document:
                run_files.write(self._paths, document)
        except OSError as error:
            if self._unwritten.get(run_id) != str(error):  # retried about every second
                log.warning("%s cannot be written: %s", run_files.FILE, error)
            self._unwritten[run_id] = str(error)
            return
        self._written[run_id] = version
        self._unwritten.pop(run_id, None)
        self._take_back_if_deleted(run_id)

    def _take_back_if_deleted(self, run_id: str) -> None:
        """Remove the directory again if the run was deleted in the meantime."""
        with self._db.read() as session:
            if session.get(Run, run_id) is not None:
                return
        directory = self._paths.run(run_id).root
        (directory / run_files.FILE).unlink(missing_ok=True)
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()

    def write_policies(self) -> bool:
        """Write the policies of devices if they changed. Raises OSError."""
        with self._db.read() as session:
            known = policies.all_of_them(session)
        if known == self._policies or not (known or self._policies):
            return False
        policies.write_file(self._paths, known)
        self._policies = known
        return True

    # --- backups ---------------------------------------------------------------------------------

    def back_up_if_due(self, now: float) -> float:
        """Make the daily backup if it is due. Returns seconds until the next check.

        Due by the age of the newest file: a daemon restarted every hour still makes one a day.
        """
        age = now - _made_at(next(iter(self._db.backups()), None))
        if 0 <= age < BACKUP_EVERY_SECONDS:
            return min(BACKUP_EVERY_SECONDS - age, RETRY_SECONDS)
        try:
            made = self._db.backup()
            provenance.record(self._db, self._paths)
        except Exception as error:
            self._db.backup_problem = f"the daily backup of the database failed: {error}"
            log.error(self._db.backup_problem)
            return RETRY_SECONDS
        self._db.backup_problem = None
        log.info("backup %s made and verified", made)
        return RETRY_SECONDS


def _made_at(backup: Path | None) -> float:
    try:
        return backup.stat().st_mtime if backup is not None else 0.0
    except OSError:
        return 0.0
