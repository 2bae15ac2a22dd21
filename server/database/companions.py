"""Detects that the WAL or shared-memory file is deleted, replaced or truncated under an open
database.

SQLite keeps writing to deleted files, and those commits are lost at the next start. A connection
held here keeps both files in place while the database is open; otherwise SQLite would remove them
whenever the last pooled connection closes.
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
_NOOP_SINCE = (3, 51, 0)  # earlier versions checkpoint on wal_checkpoint(NOOP)

_Identity = tuple[int, int]


class Companions:
    """The WAL and shared-memory files of one open database."""

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
        """Path of a file that was deleted or replaced after opening; None if there is none."""
        for suffix, known in self._known.items():
            if _identity(self._database, suffix) != known:
                return Path(f"{self._database}{suffix}")
        return None

    def cut(self) -> Path | None:
        """Path of the WAL if it lacks committed frames or a valid header; None if it is intact."""
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
        """Checkpoint the deleted WAL into the database, once: its pages are still open here.

        Returns False if that is unsafe (a new WAL with contents exists) or fails.
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
        """Open descriptor of the WAL, on which SQLite holds no locks, and page size in bytes."""
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
            # The last connection to close would checkpoint the damaged WAL into the database. This
            # one stays open, and the next start reads what remains of the WAL.
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
    """Open a connection and read once, so that both files exist. None without WAL mode."""
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
