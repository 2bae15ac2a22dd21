"""Verified online backups of the database: made by SQLite's own backup call, never by copying."""

from __future__ import annotations

import time
from contextlib import closing, suppress
from pathlib import Path

from server.database.sqlite import Library
from trainer.contract import units
from trainer.contract.durable import put_in_place
from trainer.contract.rundir import DataDir

KEPT = 7
LEFT_SECONDS = 3_600.0  # an older temporary file no longer has a writer
_PAGES_AT_A_TIME = 2_000
_CACHE = "PRAGMA cache_size=-256"  # KiB; each page is read once, so a larger cache saves nothing


def make(library: Library, paths: DataDir) -> Path:
    """Make a verified backup and delete the oldest. Raises OSError, or the library's Error."""
    paths.backups.mkdir(parents=True, exist_ok=True)
    sweep(paths)
    final = _free_name(paths.backups)
    temp = final.with_suffix(".tmp")
    try:
        with (
            closing(library.module.connect(_uri(paths.database, "ro"), uri=True)) as source,
            closing(library.module.connect(str(temp))) as target,
        ):
            for connection in (source, target):
                connection.execute(_CACHE)
            source.backup(target, pages=_PAGES_AT_A_TIME)
        found = problems(library, temp, thorough=True, is_backup=True)
        if found:
            raise OSError(f"the backup fails its integrity check: {found[0]}")
        put_in_place(temp, final)
    finally:
        for left in (temp, Path(f"{temp}-wal"), Path(f"{temp}-shm"), Path(f"{temp}-journal")):
            left.unlink(missing_ok=True)
    for old in newest_first(paths)[KEPT:]:
        old.unlink(missing_ok=True)
    return final


def sweep(paths: DataDir) -> None:
    """Delete temporary files of killed backups; a recent one may belong to a running backup."""
    for left in paths.backups.glob("*.tmp*"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT_SECONDS:
                left.unlink()


def newest_first(paths: DataDir) -> list[Path]:
    return sorted(paths.backups.glob("traind-*.db"), reverse=True)


def newest_good(library: Library, paths: DataDir) -> Path | None:
    """The newest backup that passes the integrity check."""
    return next(
        (b for b in newest_first(paths) if not problems(library, b, thorough=True, is_backup=True)),
        None,
    )


def problems(library: Library, path: Path, *, thorough: bool, is_backup: bool = False) -> list[str]:
    """Problems that SQLite's integrity check finds in a database file; empty if intact.

    is_backup: the file has no writer, so it is opened as immutable, without WAL and index files.
    """
    uri = _uri(path, "ro") + ("&immutable=1" if is_backup else "")
    check = "integrity_check" if thorough else "quick_check"
    try:
        with closing(library.module.connect(uri, uri=True)) as connection:
            connection.execute("PRAGMA busy_timeout=5000")
            connection.execute(_CACHE)
            rows = connection.execute(f"PRAGMA {check}(10)").fetchall()
    except library.module.DatabaseError as error:
        return [str(error)]
    return [row[0] for row in rows if row[0] != "ok"]


def _uri(path: Path, mode: str) -> str:
    return f"{path.absolute().as_uri()}?mode={mode}"


def _free_name(directory: Path) -> Path:
    """File name that sorts after all earlier backups, also within one second."""
    stamp = units.stamp()
    same = sorted(directory.glob(f"traind-{stamp}-*.db"))
    number = int(same[-1].stem.rpartition("-")[2]) + 1 if same else 0
    return directory / f"traind-{stamp}-{number:03d}.db"
