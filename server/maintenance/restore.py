"""Restores a backup, then catches up from the run directories."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel

from server.database import backups, migrate, provenance, sqlite
from server.database.db import Database
from server.database.migrate import Refused
from server.ingestion.catch_up import catch_up
from server.ingestion.disk import Found
from server.maintenance.rebuild import begin_anew, holding, put_in_place
from server.settings import Settings
from trainer.contract.durable import copy_durably

SCRATCH = ".restoring.db"


class RestoreResult(BaseModel):
    """Result of a restore. backup: the restored file. runs, attempts: newer ones from the disk."""

    backup: str
    runs: list[str] = []
    attempts: int = 0
    records: int = 0
    problems: list[str] = []
    set_aside: str | None = None


def restore(settings: Settings, backup: Path | None = None) -> RestoreResult:
    """Replace the database by `backup` (None: the newest verified one) and catch up from the disk.

    Raises migrate.Refused while a daemon runs, or without a verified backup.
    """
    paths, library = settings.paths, sqlite.choose_library()
    with holding(paths, "restore"):
        chosen = _chosen(library, settings, backup)
        scratch = paths.database_directory / SCRATCH
        copy_durably(chosen, scratch)
        aside = put_in_place(paths, scratch, "restore")
        found = _catch_up(settings)
        begin_anew(settings)
    return RestoreResult(
        backup=str(chosen),
        runs=found.runs,
        attempts=found.attempts,
        records=found.records,
        problems=found.problems,
        set_aside=aside,
    )


def _chosen(library: sqlite.Library, settings: Settings, backup: Path | None) -> Path:
    chosen = backup or backups.newest_good(library, settings.paths)
    if chosen is None:
        raise Refused(
            f"There is no verified backup in {settings.paths.backups}. `traind rebuild` recreates "
            "the database from the run directories."
        )
    if not chosen.is_file():
        raise Refused(f"The backup {chosen} does not exist. Choose another one.")
    wrong = backups.problems(library, chosen, thorough=True, is_backup=True)
    if wrong:
        raise Refused(f"The backup {chosen} fails its integrity check: {wrong[0]}. Choose another.")
    migrate.check_backup(library, chosen)
    provenance.require_ours(library, settings.paths, chosen)
    return chosen


def _catch_up(settings: Settings) -> Found:
    db = Database.open(settings)
    try:
        return catch_up(db, settings.paths)
    finally:
        db.close()
