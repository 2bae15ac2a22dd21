"""The database: checks at opening, one writer, many readers, checkpoints of the WAL, backups.

Each writing transaction is BEGIN IMMEDIATE behind one lock in the daemon, so that it waits for its
turn instead of failing half-way; readers never block it (WAL). The process that ingests writes
while it is lent the turn; nothing else opens the file.
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
    """One data directory's database. warnings: sentences for the user."""

    def __init__(self, paths: DataDir, library: Library, warnings: list[str]) -> None:
        self.paths, self.library, self.warnings = paths, library, warnings
        self._reader = sqlite.make_engine(library, paths.database, role="reader")
        self._writer = sqlite.make_engine(library, paths.database, role="writer")
        self._info: dict[str, Any] = {"paths": paths}
        self.backup_problem: str | None = None  # why the newest backup could not be made
        self._companions = Companions(library, paths.database)
        self._cut: Path | None = None
        self._file = _look(paths.database)
        self._turn = threading.Lock()
        self._after_commit: list[Callable[[], None]] = []

    @classmethod
    def open(cls, settings: Settings) -> Database:
        """Check, back up, migrate, open. Raises migrate.Refused with a sentence for a person."""
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
        """Let sessions see what a kWh costs and when, for expected ends and costs."""
        self._info = {**self._info, "prices": prices}

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A session that sees one moment and cannot write. Never hold it across a stream."""
        self._refuse_another_file()
        with (
            sqlite.explained_errors(),
            Session(self._reader, expire_on_commit=False, info=self._info) as session,
        ):
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A session under BEGIN IMMEDIATE: commits at exit, rolls back on an exception.

        Raises errors.Busy when its turn does not come within five seconds, errors.DiskFull.
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
        """Call `tell` after each commit, in the committing thread; it must be quick."""
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

    # --- care -------------------------------------------------------------------------------------

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
        """Move the WAL into the database and empty it; False while a reader is in the way."""
        with self._turn:
            return self._checkpoint()

    def backup(self) -> Path:
        """A verified copy under backups/, made while others continue. Raises OSError."""
        return backups.make(self.library, self.paths)

    def backups(self) -> list[Path]:
        return backups.newest_first(self.paths)

    def integrity_check(self) -> list[str]:
        """Problems of the database file; empty when it is whole. Reads all of it."""
        return backups.problems(self.library, self.paths.database, thorough=True)

    def close(self) -> None:
        if self._companions.cut() is not None:
            self._companions.close()  # before the others: this one then stays
        self._reader.dispose()
        with suppress(Exception):
            self._refuse_cut_wal()
            self.checkpoint()
        self._writer.dispose()
        self._companions.close()

    def _refuse_another_file(self) -> _File:
        """The file as it is now. One that was deleted or replaced while it was open still takes
        what is written, and loses all of it; it grows and never shrinks, so a cut one is noticed
        too. Nothing is written into it then: the journals keep what comes."""
        was, now = self._file, _look(self.paths.database)
        if now[:2] != was[:2] or now[2] < was[2]:
            raise errors.StorageBroken(
                f"{self.paths.database} was deleted, replaced or truncated while it was open; "
                "the daemon no longer writes to it.",
                hint="Move the file back, or restore a backup, and restart the daemon; "
                "`traind rebuild` recreates the reports from the journals of the trainers.",
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
            f"{missing} was deleted or replaced while the database was open; nothing is written "
            "any more. "
            + (
                "Everything acknowledged is in the database."
                if saved
                else "It could not be "
                "saved: what was acknowledged since the last backup may be missing."
            ),
            hint="Restart the daemon, and leave the files beside the database alone.",
            headers={"Retry-After": "30"},
        )

    def _refuse_cut_wal(self) -> None:
        """Nothing may be moved from it into the database either: those pages would be garbage."""
        self._cut = self._cut or self._companions.cut()
        if self._cut is not None:
            raise errors.StorageBroken(
                f"{self._cut} was truncated or overwritten while the database was open; "
                "the daemon no longer writes to it.",
                hint="Restart the daemon; where it refuses, put a backup back with `traind "
                "restore`, which reads what came after it from the runs' directories.",
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
        """A reader that never ends keeps the WAL from being reset: say so before the disk does."""
        size = self.wal_bytes
        if size < WAL_CHECKPOINT_BYTES:
            return
        with sqlite.explained_errors():
            moved = self._checkpoint()
        if not moved and size > WAL_MAX_BYTES:
            raise sqlite.busy(
                f"another program has been reading the database for so long that its log grew to "
                f"{units.num_bytes(size)}; close that program"
            )


def _look(path: Path) -> _File:
    """Device, inode and size of the file at `path`; zeros when there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0, 0
    return found.st_dev, found.st_ino, found.st_size
