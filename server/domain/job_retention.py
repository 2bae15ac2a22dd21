"""Retention of finished jobs and commands: what is removed, and when.

Runs keep everything until they are deleted: rows, journals, logs and the checkpoints of their
retention; deleting the run deletes them. Jobs (samples, exports, audits, evaluations) and the
commands of trainers keep their rows and directories for `keep_jobs_days`; what they made (samples,
evaluations, exports, events) stays. The preparation and the import of a run stay with the run: its
data, and a rebuild of the database, rest on them. Copies of corpora and tokenizers that no run
names go after the same time.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from server.database import tables
from server.database.db import Database
from server.domain.executions import IS_OPEN
from trainer.contract.orders import ORDER
from trainer.contract.rundir import DataDir

STAY_WITH_THE_RUN = ("prepare", "import")
NOT_CORPORA = frozenset({"known", "hub", "tokens", "tokenizers"})
AT_A_TIME = 500  # rows per transaction, so that others can write in between

log = logging.getLogger("traind.housekeeping")


def sweep(db: Database, paths: DataDir, days: float, now: float) -> int:
    """Remove jobs and commands that ended more than `days` ago. Returns the number of jobs."""
    before, removed = now - days * 86_400, 0
    while True:
        with db.write() as session:
            gone = _old_jobs(session, before)
            command, row = tables.CommandRow, tables.Execution
            session.execute(delete(command).where(command.job_id.in_(gone.values())))
            session.execute(delete(row).where(row.id.in_(gone)))  # and the jobs with them
        for job_id in gone.values():
            _remove(paths.job(job_id))
        removed += len(gone)
        if len(gone) < AT_A_TIME:
            break
    with db.write() as session:
        command = tables.CommandRow
        session.execute(delete(command).where(command.job_id.is_(None), command.done_at < before))
    _remove_unknown(db, paths, before)
    if removed:
        log.info("removed %d jobs that ended more than %g days ago", removed, days)
    return removed


def _old_jobs(session: Session, before: float) -> dict[int, str]:
    """{id of the execution: id of the job}."""
    job, row = tables.Job, tables.Execution
    stays = job.kind.in_(STAY_WITH_THE_RUN) & job.run_id.is_not(None)
    query = select(row.id, job.id).join(job, job.execution_id == row.id)
    query = query.where(~IS_OPEN, row.ended_at < before, ~stays).limit(AT_A_TIME)
    return {row[0]: row[1] for row in session.execute(query)}


def _remove_unknown(db: Database, paths: DataDir, before: float) -> None:
    """Directories of jobs whose rows went with their run, or before a kill: older than those that
    are kept, and of nothing that a run which is still there rests on."""
    old = [path for path in _entries(paths.root / "jobs") if _touched(path) < before]
    with db.read() as session:
        known = set(session.scalars(select(tables.Job.id)))
    for path in old:
        if path.name.startswith("job_") and path.name not in known and not _rests(paths, path):
            _remove(path)


def _rests(paths: DataDir, directory: Path) -> bool:
    """True if a run on this disk, with or without a row, may need the job for a rebuild."""
    try:
        order = json.loads((directory / ORDER).read_bytes())
        kind, run_id = str(order["job"]), str(order.get("run_id") or "")
    except FileNotFoundError:
        return False
    except (OSError, ValueError, KeyError, TypeError):
        return True  # kept in doubt
    if kind == "import":  # its run has the job's name in no order: kept while there are runs
        return any(True for _ in _entries(paths.root / "runs"))
    return kind == "prepare" and paths.run(run_id).root.exists()


# --- corpora -------------------------------------------------------------------------------------


def sweep_corpora(db: Database, paths: DataDir, days: float, now: float) -> list[str]:
    """Remove corpora and tokenizers without a run on this disk that were not used for `days`.

    A run names its data in data.json; one without a row (a database restored from an older backup)
    counts as well. Nothing is removed while data is being prepared, or while the directory of a
    run is not there. Token caches have their cap.
    """
    with db.read() as session:
        job, row = tables.Job, tables.Execution
        working = select(job.id).join(row, row.id == job.execution_id).where(IS_OPEN)
        busy = working.where(job.kind.in_(STAY_WITH_THE_RUN))
        if session.scalar(busy.limit(1)) is not None:
            return []
        begun = list(session.scalars(select(tables.Attempt.run_id).distinct()))
    if not all(paths.run(run_id).root.is_dir() for run_id in begun):
        return []  # a disk that is not mounted: what its runs need cannot be seen
    named = "\n".join(_texts((paths.root / "runs").glob("*/data.json")))
    before = now - days * 86_400
    found = [*_entries(paths.corpora), *_entries(paths.corpora / "tokenizers")]
    gone = [
        path
        for path in found
        if path.is_dir() and not path.is_symlink() and path.name not in NOT_CORPORA
        and path.name not in named and _touched(path) < before
    ]  # fmt: skip
    for path in gone:
        log.info("removed %s: no run names it", path)
        _remove(path)
    return [path.name for path in gone]


def _texts(paths: Iterable[Path]) -> Iterator[str]:
    """Raises OSError: a run whose data cannot be read names everything."""
    yield from (path.read_text(encoding="utf-8") for path in paths)


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except OSError:
        return []


def _touched(path: Path) -> float:
    """Time of the last change of the directory or something directly in it."""
    times = [time.time()]
    with suppress(OSError):
        times = [path.stat().st_mtime, *(one.stat().st_mtime for one in _entries(path))]
    return max(times)


def _remove(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
