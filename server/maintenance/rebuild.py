"""Rebuilds the database from the run directories: run.json, orders, journals, manifests.

For when the database is lost and so are its backups. The journals are the source of truth, so
curves, evaluations, checkpoints and lineage come back exactly; what no file holds is listed.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

from pydantic import BaseModel

from server import lock
from server.database import provenance
from server.database.db import Database
from server.database.migrate import Refused
from server.events import webhooks
from server.ingestion import from_disk
from server.settings import Settings
from trainer.contract.rundir import DataDir, Held, fsync_directory

SCRATCH = ".rebuilding"
NOT_ON_DISK = (
    "jobs: what samples, evaluations, exports and audits were asked for, and the results of those "
    "done by jobs beside the training (exports/ is untouched)",
    "requests kept under an Idempotency-Key, and counters of Prometheus before this rebuild",
)


class RebuildResult(BaseModel):
    """runs: names. problems: what could not be read, in words. set_aside: the old database.

    not_on_disk: what a rebuild never gives back.
    """

    runs: list[str] = []
    records: int = 0
    problems: list[str] = []
    not_on_disk: list[str] = []
    set_aside: str | None = None


def rebuild(settings: Settings) -> RebuildResult:
    """Read every run again into a new database and put it in place; the old one is kept beside it.

    Raises migrate.Refused while a daemon or a trainer runs on this data directory.
    """
    paths, found = settings.paths, from_disk.Found()
    try:
        with lock.holding(paths.root, f"pid {os.getpid()} (traind rebuild)"):
            scratch = settings.model_copy(update={"data_dir": paths.root / SCRATCH})
            _remove(scratch.paths)
            _read_all(scratch, paths, found)
            aside = put_in_place(paths, scratch.paths.database, "rebuild")
            _remove(scratch.paths)
            begin_anew(settings)
    except Held as error:
        raise Refused(f"Stop the daemon first: {error}.") from error
    return RebuildResult(
        runs=found.runs,
        records=found.records,
        problems=found.problems,
        not_on_disk=[*NOT_ON_DISK, *_deleted_journals(paths)],
        set_aside=aside,
    )


def _read_all(scratch: Settings, paths: DataDir, found: from_disk.Found) -> None:
    db = Database.open(scratch)
    db.lend_paths(paths)
    try:
        for directory in sorted((paths.root / "runs").glob("run_*")):
            from_disk.add_run(db, paths, directory, found, _refuse_alive)
    finally:
        db.close()


def _refuse_alive(name: str) -> None:
    raise Refused(f"Run {name} is still training: pause or stop it first.")


def _deleted_journals(paths: DataDir) -> list[str]:
    """Attempts whose order is there and whose journal is not."""
    gone = [
        str(order.parent)
        for order in sorted((paths.root / "runs").glob("run_*/attempts/*/order.json"))
        if not (order.parent / "outbox.jsonl").exists()
    ]
    return [f"the report of {one}: its journal is missing" for one in gone]


# --- files ---------------------------------------------------------------------------------------


def put_in_place(paths: DataDir, made: Path, why: str) -> str | None:
    """Make `made` the database; where the old one is kept.

    The old one is renamed first: a power cut between leaves both.
    """
    aside = None
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    for suffix in ("-wal", "-shm", ""):
        old = Path(f"{paths.database}{suffix}")
        if old.exists():
            aside = paths.root / f"traind-before-{why}-{stamp}.db{suffix}"
            os.replace(old, aside)
    os.replace(made, paths.database)
    fsync_directory(paths.root)
    return str(aside) if aside else None


def begin_anew(settings: Settings) -> None:
    """A new timeline: ids of events continue beyond every one that a client may hold, and what was
    read again is no news for webhooks."""
    db = Database.open(settings)
    try:
        last = provenance.new_timeline(db, settings.paths)
        webhooks.begin_after(settings.paths.root, last)
        provenance.record(db, settings.paths)
    finally:
        db.close()


def _remove(scratch: DataDir) -> None:
    shutil.rmtree(scratch.root, ignore_errors=True)
