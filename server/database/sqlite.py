"""SQLite: choice of the library, engines, pragmas, and its errors in the API's terms.

SQLite 3.7.0 to 3.51.2 can corrupt a database when a WAL is reset while another connection
commits (fixed in 3.51.3, and in 3.50.7 and 3.44.6). A library with the bug is used without WAL.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy import exc as sqlalchemy_errors

from server import errors
from trainer.contract import failpoint

BUSY_SECONDS = 5.0
READERS = 8
# SQLite takes a negative cache_size in KiB
_WRITER_CACHE_KIB = 1_024  # an ingestion transaction changes a fraction of it
_READER_CACHE_KIB = 512
_KEPT_WAL_BYTES = 16_000_000


@dataclass(frozen=True)
class Library:
    """The SQLite library in use. warning: a sentence for the user."""

    module: ModuleType
    name: str
    version: str
    journal_mode: Literal["WAL", "DELETE"]
    warning: str | None = None


def choose_library() -> Library:
    """pysqlite3 where it is installed and fixed, else a fixed standard library, else no WAL."""
    with suppress(ImportError):
        module = importlib.import_module("pysqlite3.dbapi2")
        if has_wal_reset_fix(module.sqlite_version_info):
            return Library(module, "pysqlite3", module.sqlite_version, "WAL")
    module = importlib.import_module("sqlite3")  # only now: each one takes 1 MB of memory
    if has_wal_reset_fix(module.sqlite_version_info):
        return Library(module, "sqlite3", module.sqlite_version, "WAL")
    return Library(
        module, "sqlite3", module.sqlite_version, "DELETE",
        f"SQLite {module.sqlite_version} has the WAL-reset bug: the database runs in the slower "
        "DELETE journal mode. Install pysqlite3 or a Python with SQLite 3.51.3 or newer.",
    )  # fmt: skip


def has_wal_reset_fix(version: tuple[int, ...]) -> bool:
    fixed_in_branch = {(3, 50): 7, (3, 44): 6}
    if version >= (3, 51, 3):
        return True
    patch = fixed_in_branch.get((version[0], version[1]))
    return patch is not None and version[2] >= patch


def make_engine(
    library: Library, path: Path, *, role: Literal["reader", "writer", "migration"]
) -> Engine:
    """An engine whose transactions are explicit: BEGIN for readers, BEGIN IMMEDIATE for others.

    Readers cannot write at all (query_only). The migration engine does not enforce foreign keys,
    because SQLite alters a table by copying it; `migrate` checks them before the commit.
    """
    reading = role == "reader"
    engine = create_engine(
        # built from parts: a URL as text would interpret `%2F`, `?` or `#` in the path
        URL.create("sqlite+pysqlite", database=str(path)),
        module=library.module,
        connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        pool_size=READERS if reading else 1,
        max_overflow=READERS if reading else 0,
        pool_timeout=BUSY_SECONDS,
        pool_use_lifo=True,  # reuses the connection with the warm cache; others stay small
        json_serializer=dump_json,
    )
    begin = "BEGIN" if reading else "BEGIN IMMEDIATE"
    pragmas = _pragmas(library, role)

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # no implicit BEGIN or COMMIT: DDL is transactional
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    if role == "migration":

        @event.listens_for(engine, "before_cursor_execute")
        def _statement(*_: Any) -> None:
            failpoint.hit("migrate.statement")

    return engine


def _pragmas(library: Library, role: str) -> list[str]:
    pragmas = [
        f"busy_timeout={int(BUSY_SECONDS * 1000)}",
        f"foreign_keys={'OFF' if role == 'migration' else 'ON'}",
        "temp_store=MEMORY",
    ]
    if role == "reader":
        return [*pragmas, f"cache_size=-{_READER_CACHE_KIB}", "query_only=ON"]
    return [
        *pragmas,
        f"journal_mode={library.journal_mode}",
        "synchronous=FULL",
        f"cache_size=-{_WRITER_CACHE_KIB}",
        f"journal_size_limit={_KEPT_WAL_BYTES}",
    ]


def dump_json(value: Any) -> str:
    """Compact JSON for a column. Raises ValueError for NaN and infinity, which JSON lacks."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


# --- errors --------------------------------------------------------------------------------------


@contextmanager
def explained_errors() -> Iterator[None]:
    """Translate SQLite's errors into errors with a remedy."""
    try:
        yield
    except sqlalchemy_errors.TimeoutError as error:
        raise busy("all read connections of the database are in use") from error
    except sqlalchemy_errors.IntegrityError:
        raise
    except sqlalchemy_errors.DatabaseError as error:
        raise explain(str(error.orig), error) from error


def explain(said: str, error: Exception) -> Exception:
    """The error to raise for SQLite's message `said`; `error` itself if none is more specific."""
    lowered = said.lower()
    if "locked" in lowered or "busy" in lowered:
        return busy("the database is locked by another program")
    if "disk is full" in lowered:
        return errors.DiskFull(
            "The disk that holds the database is full; nothing was changed.",
            hint="Free some space on the disk of the data directory, then try again.",
            headers={"Retry-After": "5"},
        )
    if "malformed" in lowered or "not a database" in lowered or "disk i/o error" in lowered:
        return errors.StorageBroken(
            f"The database cannot be read or written: {said}.",
            hint="Restart the daemon: it checks the database and names the newest verified backup.",
            headers={"Retry-After": "30"},
        )
    return error


def busy(why: str) -> errors.Busy:
    return errors.Busy(
        f"Nothing was changed: {why}.", hint="Try again.", headers={"Retry-After": "1"}
    )
