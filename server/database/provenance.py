"""Detects a moved or copied data directory and a restored backup.

`data-directory.json` in the data directory and the table `meta` both record the directory's id and
how often it was opened. A lower count in the database than in the file means a restored copy; a
file that names another existing directory means a copied directory.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import socket
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from sqlalchemy import text
from sqlalchemy.orm import Session

from server.database.db import Database
from server.database.migrate import Refused
from server.database.sqlite import Library
from server.database.tables import Meta
from trainer.contract.durable import write_durably
from trainer.contract.rundir import DataDir

FILE = "data-directory.json"
OPENED, IDENTITY = "opened", "data_dir_id"  # keys of the table `meta`
IDS_PER_TIMELINE = 10**9


class Marker(BaseModel):
    """Contents of `data-directory.json`. path, inode: of the directory that wrote it.

    timeline: number of restarts of the event ids. machine, host: where it was last opened; "" for
    a machine without an id (a container).
    """

    model_config = ConfigDict(extra="ignore")

    id: str
    path: str
    inode: int
    opened: int = 0
    timeline: int = 0
    machine: str = ""
    host: str = ""


@dataclass(frozen=True)
class Provenance:
    """Origin of a data directory. copied_from: the original, which still exists. is_restored: the
    database is older than the directory. moved_from: its previous path. from_host: the other
    machine that last opened it, whose original cannot be checked."""

    copied_from: str | None = None
    moved_from: str | None = None
    is_restored: bool = False
    from_host: str | None = None


def inspect(db: Database, paths: DataDir) -> Provenance:
    """Provenance of the directory since it was last opened; call `record` afterwards."""
    marker = read(paths)
    if marker is None:
        return Provenance()
    with db.read() as session:
        opened, identity = _number(session, OPENED), _value(session, IDENTITY)
    is_restored = opened < marker.opened or identity not in (None, marker.id)
    elsewhere = marker.path != str(paths.root)
    original = _original(marker, paths) if elsewhere else None
    moved = marker.path if elsewhere and original is None else None
    here = machine_id()
    is_elsewhere = bool(marker.machine and here) and marker.machine != here
    return Provenance(original, moved, is_restored, marker.host if is_elsewhere else None)


def record(db: Database, paths: DataDir) -> None:
    """Record one more opening of the directory: first in the database, then in the file."""
    marker = read(paths)
    with db.write() as session:
        opened = 1 + max(_number(session, OPENED), marker.opened if marker else 0)
        identity = marker.id if marker else _value(session, IDENTITY) or secrets.token_hex(8)
        _set(session, OPENED, str(opened))
        _set(session, IDENTITY, identity)
    timeline = marker.timeline if marker else 0
    _write(paths, Marker(id=identity, path=str(paths.root), inode=_inode(paths.root),
                         opened=opened, timeline=timeline, machine=machine_id(),
                         host=socket.gethostname()))  # fmt: skip


def count(connection: Any, paths: DataDir) -> None:
    """Increment the count over a separate connection, after a backup beside the daemon."""
    marker = read(paths)
    if marker is None:
        return
    with connection:
        connection.execute(
            "INSERT INTO meta (key, value) VALUES (?, '1') "
            "ON CONFLICT (key) DO UPDATE SET value = CAST(value AS INTEGER) + 1",
            (OPENED,),
        )
        row = connection.execute("SELECT value FROM meta WHERE key = ?", (OPENED,)).fetchone()
    _write(paths, marker.model_copy(update={"opened": int(row[0])}))


def new_timeline(db: Database, paths: DataDir) -> int:
    """Start a new timeline: event ids continue beyond any issued. Returns the last id before it.

    A client with an event id from after the copy then neither misses an event nor confuses two.
    """
    marker = read(paths)
    with db.write() as session:
        last = session.scalar(text("SELECT max(id) FROM events")) or 0
        seq = session.scalar(text("SELECT seq FROM sqlite_sequence WHERE name = 'events'")) or 0
        begun = max(last, seq) // IDS_PER_TIMELINE
        timeline = 1 + max(begun, marker.timeline if marker else 0)
        session.execute(text("DELETE FROM sqlite_sequence WHERE name = 'events'"))
        session.execute(
            text("INSERT INTO sqlite_sequence (name, seq) VALUES ('events', :seq)"),
            {"seq": timeline * IDS_PER_TIMELINE},
        )
        identity = marker.id if marker else _value(session, IDENTITY) or secrets.token_hex(8)
    opened = marker.opened if marker else 0
    _write(paths, Marker(id=identity, path=str(paths.root), inode=_inode(paths.root),
                         opened=opened, timeline=timeline, machine=machine_id(),
                         host=socket.gethostname()))  # fmt: skip
    return timeline * IDS_PER_TIMELINE


def read(paths: DataDir) -> Marker | None:
    """Read the marker; None if missing or unreadable."""
    with suppress(OSError, ValueError):
        return Marker.model_validate(json.loads((paths.root / FILE).read_bytes()))
    return None


def require_ours(library: Library, paths: DataDir, backup: Path) -> None:
    """Check that a backup belongs to this data directory. Raises Refused if not."""
    marker = read(paths)
    uri = f"{backup.absolute().as_uri()}?mode=ro&immutable=1"
    with closing(library.module.connect(uri, uri=True)) as connection:
        query = "SELECT value FROM meta WHERE key = ?"
        row = connection.execute(query, (IDENTITY,)).fetchone()
    if marker is not None and row is not None and row[0] != marker.id:
        raise Refused(
            f"The backup {backup} is of another data directory (id {row[0]}; {paths.root} has "
            f"{marker.id}). Choose another backup."
        )


def _original(marker: Marker, paths: DataDir) -> str | None:
    """Path of the directory this one was copied from, if it still exists; else None."""
    try:
        there = os.stat(marker.path)
    except OSError:
        return None
    same = os.path.samefile(marker.path, paths.root)
    return None if same or there.st_ino != marker.inode else marker.path


def machine_id() -> str:
    """A hash of the machine's id, which reveals nothing else; "" without an id."""
    with suppress(OSError):
        found = Path("/etc/machine-id").read_text().strip()
        if found and found != "uninitialized":
            return hashlib.sha256(f"traind {found}".encode()).hexdigest()[:16]
    return ""


def _inode(root: Path) -> int:
    return os.stat(root).st_ino


def _write(paths: DataDir, marker: Marker) -> None:
    write_durably(paths.root / FILE, marker.model_dump_json().encode())


def _value(session: Session, key: str) -> str | None:
    row = session.get(Meta, key)
    return row.value if row else None


def _number(session: Session, key: str) -> int:
    value = _value(session, key)
    return int(value) if value and value.isdigit() else 0


def _set(session: Session, key: str, value: str) -> None:
    session.merge(Meta(key=key, value=value))
