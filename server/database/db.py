"""The database: checks at opening, one writer, many readers, WAL checkpoints, backups.

Each write transaction is BEGIN IMMEDIATE behind one lock in the daemon, so that it waits instead
of failing midway; readers never block it (WAL). The ingestion process writes while the daemon
lends it the lock; no other process opens the file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from server import errors, lock
from server.database import backups, migrate, sqlite
from server.database.companions import Companions
from server.database.sqlite import Library
from server.settings import Settings
from trainer.contract import failpoint, units
from trainer.contract.rundir import DataDir

WAL_CHECKPOINT_BYTES = 32_000_000
WAL_MAX_BYTES = 1_000_000_000


_File = tuple[int, int, int]


class Database:
    """The database of one data directory. warnings: sentences for the user."""

    def __init__(self, paths: DataDir, library: Library, warnings: list[str]) -> None:
        self.paths, self.library, self.warnings = paths, library, warnings
        self._reader = sqlite.make_engine(library, paths.database, role="reader")
        self._writer = sqlite.make_engine(library, paths.database, role="writer")
        self._info: dict[str, Any] = {"paths": paths}
        self.backup_problem: str | None = None  # why the last backup failed
        self._companions = Companions(library, paths.database)
        self._cut: Path | None = None
        self._file = _look(paths.database)
        self._turn = threading.Lock()
        self._after_commit: list[Callable[[], None]] = []

    @classmethod
    def open(cls, settings: Settings) -> Database:
        """Check, back up, migrate and open the database. Raises migrate.Refused."""
        paths = settings.paths
        library = sqlite.choose_library()
        migrate.check_place(paths)
        migrate.check_file(library, paths)
        migrate.upgrade(library, paths)
        made = cls(paths, library, [library.warning] if library.warning else [])
        made._info["price_per_kwh"] = settings.energy_price_per_kwh
        return made

    @classmethod
    def opened(cls, paths: DataDir) -> Database:
        """Open the database that another process of this daemon has already checked."""
        return cls(paths, sqlite.choose_library(), [])

    def lend_paths(self, paths: DataDir) -> None:
        """Read runs from a data directory other than the one that contains the database."""
        self._info = {**self._info, "paths": paths}

    def lend_prices(self, prices: Sequence[Any]) -> None:
        """Give sessions the prices of electricity, for expected end times and costs."""
        self._info = {**self._info, "prices": prices}

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A read-only session on one snapshot. Do not hold it while streaming."""
        self._refuse_another_file()
        with (
            sqlite.explained_errors(),
            Session(self._reader, expire_on_commit=False, info=self._info) as session,
        ):
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A write session (BEGIN IMMEDIATE): commits at exit, rolls back on an exception.

        Raises errors.Busy if the lock is not free within five seconds, errors.DiskFull.
        """
        with self._in_turn():
            self._file = self._refuse_another_file()
            self._bound_wal()
            with (
                sqlite.explained_errors(),
                Session(self._writer, expire_on_commit=False, info=self._info) as session,
            ):
                session.connection()  # takes the write lock now, before anything is read
                yield session
                session.flush()
                failpoint.hit("db.commit")
                session.commit()
        self._notify_listeners()

    @contextmanager
    def lend(self) -> Iterator[None]:
        """Wait for write access while another process of this daemon writes. Raises errors.Busy."""
        with self._in_turn():
            self._file = self._refuse_another_file()
            yield
        self._notify_listeners()

    def on_commit(self, tell: Callable[[], None]) -> None:
        """Call `tell` after each commit, in the committing thread; it must return quickly."""
        self._after_commit.append(tell)

    def _notify_listeners(self) -> None:
        for tell in self._after_commit:
            tell()

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        if not self._turn.acquire(timeout=sqlite.BUSY_SECONDS):
            raise sqlite.busy("other changes are still being written")
        try:
            yield
        finally:
            self._turn.release()

    # --- maintenance ------------------------------------------------------------------------------

    @property
    def wal_bytes(self) -> int:
        with suppress(OSError):
            return Path(f"{self.paths.database}-wal").stat().st_size
        return 0

    @property
    def size_bytes(self) -> int:
        with suppress(OSError):
            return self.paths.database.stat().st_size
        return 0

    def checkpoint(self) -> bool:
        """Checkpoint and truncate the WAL. Returns False while a reader blocks it."""
        with self._turn:
            return self._checkpoint()

    def backup(self) -> Path:
        """Make a verified backup under backups/ without blocking writers. Raises OSError."""
        return backups.make(self.library, self.paths)

    def backups(self) -> list[Path]:
        return backups.newest_first(self.paths)

    def integrity_check(self) -> list[str]:
        """Problems of the database file; empty if intact. Reads the whole file."""
        return backups.problems(self.library, self.paths.database, thorough=True)

    def close(self) -> None:
        if self._companions.cut() is not None:
            self._companions.close()  # first, so that it is not the last to close
        self._reader.dispose()
        with suppress(Exception):
            self._refuse_cut_wal()
            self.checkpoint()
        self._writer.dispose()
        self._companions.close()

    def _refuse_another_file(self) -> _File:
        """Stat the database file. Raises StorageBroken if it was deleted, replaced or truncated.

        SQLite would keep writing to a deleted file, and lose it all. An intact file never shrinks.
        While writing is refused, the journals keep new records."""
        was, now = self._file, _look(self.paths.database)
        if now[:2] != was[:2] or now[2] < was[2]:
            raise errors.StorageBroken(
                f"{self.paths.database} was deleted, replaced or truncated while it was open; "
                "the daemon no longer writes to it.",
                hint="Move the file back, or restore a backup, and restart the daemon; "
                "`traind rebuild` recreates the database from the run directories.",
                headers={"Retry-After": "30"},
            )
        lock.require(self.paths.root)
        self._refuse_without_companions()
        return now

    def _refuse_without_companions(self) -> None:
        self._refuse_cut_wal()
        missing = self._companions.missing()
        if missing is None:
            return
        saved = self._companions.rescue()
        raise errors.StorageBroken(
            f"{missing} was deleted or replaced while the database was open; the daemon no "
            "longer writes to it. "
            + (
                "All acknowledged changes are in the database."
                if saved
                else "It could not be "
                "saved: changes acknowledged since the last backup may be missing."
            ),
            hint="Restart the daemon, and leave the database's -wal and -shm files in place.",
            headers={"Retry-After": "30"},
        )

    def _refuse_cut_wal(self) -> None:
        """Raises StorageBroken if the WAL was truncated; its pages must not be checkpointed."""
        self._cut = self._cut or self._companions.cut()
        if self._cut is not None:
            raise errors.StorageBroken(
                f"{self._cut} was truncated or overwritten while the database was open; "
                "the daemon no longer writes to it.",
                hint="Restart the daemon; if it does not start, run `traind restore`, which "
                "restores a backup and then reads newer records from the run directories.",
                headers={"Retry-After": "30"},
            )

    def _checkpoint(self) -> bool:
        raw = self._writer.raw_connection()
        try:
            cursor = raw.cursor()
            cursor.execute("PRAGMA busy_timeout=100")
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            blocked = (cursor.fetchone() or (1,))[0]
            cursor.execute(f"PRAGMA busy_timeout={int(sqlite.BUSY_SECONDS * 1000)}")
            cursor.close()
            return not blocked
        finally:
            raw.close()

    def _bound_wal(self) -> None:
        """Checkpoint a large WAL. Raises Busy if a long read blocks that and the WAL is too big."""
        size = self.wal_bytes
        if size < WAL_CHECKPOINT_BYTES:
            return
        with sqlite.explained_errors():
            moved = self._checkpoint()
        if not moved and size > WAL_MAX_BYTES:
            raise sqlite.busy(
                f"another program keeps a read transaction open, and the WAL has grown to "
                f"{units.num_bytes(size)}; close that program"
            )


def _look(path: Path) -> _File:
    """Device, inode and size of the file at `path`; zeros if there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_dev, found.st_ino, found.st_size
