"""WAL and shared-memory files: detects when they are deleted, replaced or cut under the open
database.

SQLite continues to write into deleted files, and what it acknowledges then is lost at the next
start. A connection of this module keeps both files in being for as long as the database is open;
without it SQLite itself would remove them whenever the last pooled connection closed.
"""

from __future__ import annotations

import ctypes
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from server.database.sqlite import Library

SUFFIXES = ("-wal", "-shm")
RESCUE_SECONDS = 2.0

WAL_HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24
_MAGIC = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")  # https://sqlite.org/walformat.html
_NOOP_SINCE = (3, 51, 0)  # before, wal_checkpoint(NOOP) was taken for a checkpoint

_Identity = tuple[int, int]


class Companions:
    """The files beside one open database."""

    def __init__(self, library: Library, database: Path) -> None:
        self._database = database
        self._lock = threading.Lock()
        self._rescued = False
        self._connection = _open(library, database)
        self._wal, self._page_bytes = self._read_wal_index(library)
        self._known = {
            suffix: found
            for suffix in SUFFIXES
            if self._connection is not None and (found := _identity(database, suffix))
        }

    def missing(self) -> Path | None:
        """The first file that is not the one that was opened; None while all are there."""
        for suffix, known in self._known.items():
            if _identity(self._database, suffix) != known:
                return Path(f"{self._database}{suffix}")
        return None

    def cut(self) -> Path | None:
        """The WAL, when it is shorter than what was committed to it or no longer begins as one."""
        if self._wal is None or self._connection is None:
            return None
        with self._lock, suppress(Exception):
            _, frames, _ = self._connection.execute("PRAGMA wal_checkpoint(NOOP)").fetchone()
            if frames <= 0:
                return None
            least = WAL_HEADER_BYTES + frames * (FRAME_HEADER_BYTES + self._page_bytes)
            is_whole = os.fstat(self._wal).st_size >= least
            if not is_whole or os.pread(self._wal, 4, 0) not in _MAGIC:
                return Path(f"{self._database}-wal")
        return None

    def rescue(self) -> bool:
        """Move what the deleted WAL holds into the database, once: its pages are still open here.

        False when that is not safe (another WAL with contents lies there) or did not succeed.
        """
        with self._lock:
            if self._rescued or self._connection is None:
                return self._rescued
            if _size(Path(f"{self._database}-wal")) and "-wal" in self._changed():
                return False
            with suppress(Exception):
                row = self._connection.execute("PRAGMA wal_checkpoint(FULL)").fetchone()
                self._rescued = row is not None and row[0] == 0
            return self._rescued

    def _read_wal_index(self, library: Library) -> tuple[int | None, int]:
        """An open descriptor of the WAL (SQLite holds no locks on it) and the size of a page."""
        version = tuple(int(part) for part in library.version.split(".") if part.isdigit())
        if self._connection is None or version < _NOOP_SINCE:
            return None, 0
        with suppress(OSError, library.module.Error):
            (size,) = self._connection.execute("PRAGMA page_size").fetchone()
            wal = os.open(f"{self._database}-wal", os.O_RDONLY | os.O_CLOEXEC)
            return wal, int(size)
        return None, 0

    def close(self) -> None:
        if self.cut() is not None:
            # The last connection that closes would move the damaged WAL into the database; this
            # one never closes, and the next start reads what the WAL still holds.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._connection))
            return
        if self._wal is not None:
            os.close(self._wal)
            self._wal = None
        with suppress(Exception):
            if self._connection is not None:
                self._connection.close()

    def _changed(self) -> list[str]:
        return [s for s, known in self._known.items() if _identity(self._database, s) != known]


def _open(library: Library, database: Path) -> Any:
    """A connection that has read once, so that both files are there; None where there is no WAL."""
    if library.journal_mode != "WAL":
        return None
    try:
        connection = library.module.connect(
            str(database), check_same_thread=False, isolation_level=None
        )
        connection.execute(f"PRAGMA busy_timeout={int(RESCUE_SECONDS * 1000)}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
    except library.module.Error:
        return None
    return connection


def _identity(database: Path, suffix: str) -> _Identity | None:
    try:
        found = Path(f"{database}{suffix}").stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
