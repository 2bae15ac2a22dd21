"""Rebuilds the database from the run directories: run.json, orders, journals, manifests.

For a data directory without a usable database or backup. The journals are the source of truth, so
curves, evaluations, checkpoints and lineage are restored exactly; what no file records is listed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydantic import BaseModel

from server import lock
from server.database import provenance
from server.database.db import Database
from server.database.migrate import Refused
from server.domain import policies
from server.events import webhooks
from server.ingestion import rebuilt_run
from server.ingestion.disk import Found
from server.settings import Settings
from trainer.contract import durable, units
from trainer.contract.rundir import DataDir, Held

SCRATCH = ".rebuilding"
NOT_ON_DISK = (
    "jobs: requests for samples, evaluations, exports and audits, and the results of those "
    "done by jobs beside the training (exports/ is unchanged)",
    "answers stored by Idempotency-Key, and Prometheus counters from before this rebuild",
)


class RebuildResult(BaseModel):
    """Result of a rebuild. runs: names. problems: unreadable files, as sentences. set_aside: path
    of the old database. not_on_disk: what a rebuild cannot restore.
    """

    runs: list[str] = []
    records: int = 0
    problems: list[str] = []
    not_on_disk: list[str] = []
    set_aside: str | None = None


def rebuild(settings: Settings) -> RebuildResult:
    """Rebuild the database from the run directories; the old one is renamed and kept.

    Raises migrate.Refused while a daemon or a trainer runs on this data directory.
    """
    paths, found = settings.paths, Found()
    with holding(paths, "rebuild"):
        _require_runs(paths)
        scratch = settings.model_copy(update={"data_dir": paths.database_directory / SCRATCH})
        _remove(scratch.paths)
        _read_all(scratch, paths, found)
        aside = put_in_place(paths, scratch.paths.database, "rebuild")
        _remove(scratch.paths)
        begin_anew(settings)
    return RebuildResult(
        runs=found.runs,
        records=found.records,
        problems=found.problems,
        not_on_disk=[*NOT_ON_DISK, *_deleted_journals(paths)],
        set_aside=aside,
    )


@contextmanager
def holding(paths: DataDir, verb: str) -> Iterator[None]:
    """Lock the data directory for an offline tool. Raises Refused while a daemon serves it, or if
    it is unusable."""
    with ExitStack() as stack:
        try:
            stack.enter_context(lock.holding(paths.root, f"pid {os.getpid()} (traind {verb})"))
        except Held as error:
            raise Refused(f"Stop the daemon first: {error}.") from error
        except OSError as error:
            raise Refused(
                f"The data directory {paths.root} cannot be used: {error.filename}: "
                f"{error.strerror}. Choose another one with --data-dir or TRAIND_DATA_DIR."
            ) from error
        yield


def _require_runs(paths: DataDir) -> None:
    """Raises Refused for a database but no run directories: a disk may not be mounted."""
    if paths.database.exists() and not any((paths.root / "runs").glob("run_*")):
        raise Refused(
            f"There is no run in {paths.root / 'runs'} : check that its disk is mounted "
            "and that --data-dir is correct."
        )


def _read_all(scratch: Settings, paths: DataDir, found: Found) -> None:
    db = Database.open(scratch)
    db.lend_paths(paths)
    try:
        for directory in sorted((paths.root / "runs").glob("run_*")):
            rebuilt_run.try_to_add(db, paths, directory, found, _refuse_alive)
        _add_policies(db, paths, found)
    finally:
        db.close()


def _add_policies(db: Database, paths: DataDir, found: Found) -> None:
    try:
        known = policies.read_file(paths)
    except (OSError, ValueError) as error:
        found.problems.append(f"the policies of the devices cannot be read: {error}")
        return
    with db.write() as session:
        for place, policy in known.items():
            policies.put(session, place, policy)


def _refuse_alive(name: str) -> None:
    raise Refused(f"Run {name} is still training: pause or stop it first.")


def _deleted_journals(paths: DataDir) -> list[str]:
    """Problems: one sentence per attempt with an order but without a journal."""
    gone = [
        str(order.parent)
        for order in sorted((paths.root / "runs").glob("run_*/attempts/*/order.json"))
        if not (order.parent / "outbox.jsonl").exists()
    ]
    return [f"no records of {one}: its journal is missing" for one in gone]


# --- files ---------------------------------------------------------------------------------------


def put_in_place(paths: DataDir, made: Path, why: str) -> str | None:
    """Replace the database by the file `made`. Returns the path where the old one is kept.

    The old one is renamed first: a power loss in between leaves both.
    """
    aside = None
    stamp = units.stamp()
    for suffix in ("-wal", "-shm", ""):
        old = Path(f"{paths.database}{suffix}")
        if old.exists():
            aside = paths.database_directory / f"traind-before-{why}-{stamp}.db{suffix}"
            os.replace(old, aside)
    durable.put_in_place(made, paths.database)
    return str(aside) if aside else None


def begin_anew(settings: Settings) -> None:
    """Start a new timeline: event ids continue beyond any that a client may hold, and webhooks skip
    the events that were read again."""
    db = Database.open(settings)
    try:
        last = provenance.new_timeline(db, settings.paths)
        webhooks.begin_after(settings.paths.root, last)
        provenance.record(db, settings.paths)
    finally:
        db.close()


def _remove(scratch: DataDir) -> None:
    shutil.rmtree(scratch.root, ignore_errors=True)
