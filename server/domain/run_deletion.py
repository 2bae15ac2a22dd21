"""Directories of deleted runs: marked before the rows go, removed after, swept at the next start.

Only a marked directory without a row is ever removed. One without a mark is never touched: a
database restored from an older backup knows fewer runs than the disk holds, and loses none of them.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from sqlalchemy import select

from server.database import tables
from server.database.db import Database
from trainer.contract.rundir import DataDir, write_durably

MARK = "deleted"


def mark(directory: Path) -> None:
    """Say that this run is about to be deleted; nothing while its row is there."""
    if directory.is_dir():
        write_durably(directory / MARK, b"deleted on request\n")


def bury(directory: Path) -> None:
    """Remove the files of a run whose rows are gone."""
    shutil.rmtree(directory, ignore_errors=True)


def sweep(db: Database, paths: DataDir) -> list[str]:
    """Finish deletions that a kill interrupted; the ids of what was removed."""
    with db.read() as session:
        known = set(session.scalars(select(tables.Run.id)))
    marked = [path.parent for path in (paths.root / "runs").glob(f"*/{MARK}")]
    gone = [directory for directory in marked if directory.name not in known]
    for directory in gone:
        bury(directory)
    return [directory.name for directory in gone]
