"""Backs up the database on request, also while a daemon uses it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from pydantic import BaseModel

from server.database import backups, sqlite
from server.settings import Settings
from trainer.contract.durable import copy_durably


class CannotBackUp(Exception):
    """The backup failed; the message has the cause and the remedy."""


class BackupResult(BaseModel):
    """Result of a backup. path: the verified file in the data directory. copy_path: its copy."""

    path: str
    bytes: int
    copy_path: str | None = None


def backup(settings: Settings, to: Path | None = None) -> BackupResult:
    """Make a verified backup and copy it to `to`, if given. Raises CannotBackUp, OSError."""
    paths, library = settings.paths, sqlite.choose_library()
    if not paths.database.is_file():
        raise CannotBackUp(f"there is no database {paths.database}; choose another --data-dir")
    try:
        made = backups.make(library, paths)
    except library.module.Error as error:
        raise CannotBackUp(f"{paths.database}: {error}") from error
    _count(library, settings)
    copied = _copy(made, to) if to is not None else None
    return BackupResult(
        path=str(made), bytes=made.stat().st_size, copy_path=str(copied) if copied else None
    )


def _count(library: sqlite.Library, settings: Settings) -> None:
    """Count the backup as an opening, so that a restored copy is detected by its lower count."""
    from server.database import provenance

    with closing(library.module.connect(str(settings.paths.database))) as connection:
        connection.execute("PRAGMA busy_timeout=5000")
        provenance.count(connection, settings.paths)


def _copy(made: Path, to: Path) -> Path:
    target = to.expanduser().absolute()
    target = target / made.name if target.is_dir() else target
    if target.exists():
        raise CannotBackUp(f"{target} already exists; choose another name")
    copy_durably(made, target)
    return target
