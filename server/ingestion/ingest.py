"""Reads a journal and commits records, cursor, rollups and counters in one transaction.

The file is read without a lock or a transaction; then the cursor is checked again under the write
lock, so that two readers of one journal cannot both apply a record. A kill anywhere leaves the old
cursor with the old rows, or the new with the new.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import exc
from sqlalchemy.orm import Session

from server.database import tables
from server.database.db import Database
from server.errors import TraindError
from server.ingestion import apply, apply_job
from trainer.contract import events, failpoint
from trainer.contract.journal import JournalBatch, JournalReader, verify_prefix
from trainer.contract.rundir import OUTBOX, DataDir

MAX_RECORDS = 500  # with 2,000 the process that ingests took 6 MB more
RECORD_BYTES = 512  # a record of a step takes about as many
_INT_LIMIT = 2**63


@dataclass(frozen=True)
class IngestResult:
    """applied: records now in rows. more: there is more to read now. problem: why it stopped.

    The run's state does not follow the attempt's last word here but when its process is gone, which
    the supervisor sees: `paused` is said only when the device memory is free.
    """

    applied: int
    more: bool
    problem: str | None = None


@dataclass(frozen=True)
class Record:
    """One valid record: its place in the journal and what it says."""

    seq: int
    unix_seconds: float
    event: events.AnyEvent


def ingest_attempt(
    db: Database, attempt_id: int, paths: DataDir, max_records: int = MAX_RECORDS
) -> IngestResult:
    """Apply what an attempt has reported since the last time.

    Damage, a replaced or a shortened file stops this attempt's ingestion for good, loudly: an event
    and `outbox_problem`; the file is left as it is. Raises errors.Busy, errors.DiskFull.
    """
    with db.read() as session:
        attempt = session.get(tables.Attempt, attempt_id)
    if attempt is None:
        return IngestResult(0, False)
    path = paths.run(attempt.run_id).attempt(attempt.number) / OUTBOX
    read = _read(path, attempt, (attempt.run_id, attempt.number), max_records)
    if not read.is_news:
        return IngestResult(0, False, attempt.outbox_problem)

    def act(session: Session, row: Any) -> None:
        run = session.get_one(tables.Run, row.run_id)
        applied = apply.Applied(session, run, row)
        for record in _records(read.batch, lambda why, r: apply.gap(applied, why, r)):
            applied.take(record.event, record.unix_seconds)
        applied.finish()
        if read.problem:
            apply.stop(applied, read.problem)

    def pass_over(session: Session, row: Any, why: str) -> None:
        run = session.get_one(tables.Run, row.run_id)
        apply.gap(apply.Applied(session, run, row), why, _named(read.batch))

    try:
        return _commit(db, tables.Attempt, attempt, read, act)
    except Exception as error:
        if not _is_of_a_record(error, read):
            raise
        if len(read.batch.records) > 1:
            return ingest_attempt(db, attempt_id, paths, _fewer(read))
        return _commit(db, tables.Attempt, attempt, read, partial(pass_over, why=_short(error)))


def ingest_job(
    db: Database, job_id: str, paths: DataDir, max_records: int = MAX_RECORDS
) -> IngestResult:
    """The same for a job's journal, whose header names the job as its run and 0 as its attempt."""
    with db.read() as session:
        job = session.get(tables.Job, job_id)
    if job is None:
        return IngestResult(0, False)
    read = _read(paths.job(job_id) / OUTBOX, job, (job_id, 0), max_records)
    if not read.is_news:
        return IngestResult(0, False, job.outbox_problem)

    def act(session: Session, row: Any) -> None:
        for record in _records(read.batch, lambda why, r: apply_job.gap(session, row, why, r)):
            apply_job.take(session, row, record.event, record.unix_seconds)
        if read.problem:
            apply_job.stop(session, row, read.problem)

    def pass_over(session: Session, row: Any, why: str) -> None:
        apply_job.gap(session, row, why, _named(read.batch))

    try:
        return _commit(db, tables.Job, job, read, act)
    except Exception as error:
        if not _is_of_a_record(error, read):
            raise
        if len(read.batch.records) > 1:
            return ingest_job(db, job_id, paths, _fewer(read))
        return _commit(db, tables.Job, job, read, partial(pass_over, why=_short(error)))


# By what a journal belongs to.
READERS: dict[str, Callable[..., IngestResult]] = {"attempt": ingest_attempt, "job": ingest_job}


# --- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    batch: JournalBatch
    inode: int | None
    problem: str | None
    more: bool
    is_news: bool


def _read(path: Path, row: Any, owner: tuple[str, int], max_records: int) -> _Read:
    """What lies after the row's cursor, at most `max_records` records of it."""
    if row.outbox_problem is not None:
        nothing = JournalBatch([], row.outbox_offset, row.outbox_seq)
        return _Read(nothing, row.outbox_inode, None, False, False)
    reader = JournalReader(path, _inode(path, row, (*owner, row.token)))
    batch = reader.read(row.outbox_offset, row.outbox_seq, max_records * RECORD_BYTES)
    header = reader.header
    if header and (header.run, header.attempt, header.token) != (*owner, row.token):
        why = f"the journal belongs to attempt {header.attempt} of {header.run}"
        batch = JournalBatch([], row.outbox_offset, row.outbox_seq, why)
    problem, more = batch.problem, False
    if len(batch.records) > max_records:
        left = sum(len(line) + 1 for line in batch.lines[max_records:])
        batch = JournalBatch(
            batch.records[:max_records], batch.offset - left, row.outbox_seq + max_records
        )
        problem, more = None, True
    elif batch.records and not problem:
        more = _size(path) > batch.offset
    is_news = batch.offset != row.outbox_offset or problem is not None
    return _Read(batch, reader.inode, problem, more, is_news)


def _inode(path: Path, row: Any, owner: tuple[str, int, str]) -> int | None:
    """What the journal's inode must be: any, when the file was copied and is the same journal."""
    try:
        now = path.stat().st_ino
    except OSError:
        return row.outbox_inode
    if row.outbox_inode in (None, now):
        return row.outbox_inode
    is_same = verify_prefix(path, owner, row.outbox_offset, row.outbox_seq)
    return None if is_same else row.outbox_inode


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _records(batch: JournalBatch, tell_gap: Callable[[str, dict[str, Any]], None]) -> list[Record]:
    """The batch's records, understood. One that is whole and says nothing we know is passed over
    with an event: a newer trainer must not stop an older daemon.
    """
    found = []
    validate = events.ADAPTER.validate_python
    for record in batch.records:
        seq, seconds = record.pop("seq"), record.pop("ts", 0.0)
        try:
            body = record if record.get("kind") == "step" else _clean(record)
            found.append(Record(seq, float(seconds), validate(body)))
        except (ValidationError, TypeError, ValueError) as error:
            tell_gap(_short(error), {"seq": seq, "kind": str(record.get("kind"))[:32]})
    return found


def _is_of_a_record(error: Exception, read: _Read) -> bool:
    """Whether a record is to blame, so that it is found and passed over: nothing else is lost."""
    of_the_machine = (TraindError, OSError, MemoryError, exc.OperationalError, exc.TimeoutError)
    return bool(read.batch.records) and not isinstance(error, of_the_machine)


def _fewer(read: _Read) -> int:
    """How many records to try next on the way to the one that cannot be applied."""
    return max(1, len(read.batch.records) // 8)


def _named(batch: JournalBatch) -> dict[str, Any]:
    return {"seq": batch.next_seq - 1, "kind": str(batch.records[0].get("kind"))[:32]}


def _short(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"[:300]
    return str(error)[:300]


def _clean(value: Any) -> Any:
    """What a database column can hold: no NaN, no lone surrogates, no integer beyond 64 bits."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, int):
        return value if -_INT_LIMIT <= value < _INT_LIMIT else None
    if isinstance(value, list):
        return [_clean(item) for item in value]
    if isinstance(value, dict):
        return {_clean(key): _clean(item) for key, item in value.items()}
    return value


# --- committing ----------------------------------------------------------------------------------


def _commit(
    db: Database, table: type[Any], seen: Any, read: _Read, act: Callable[[Session, Any], None]
) -> IngestResult:
    with db.write() as session:
        row = session.get(table, seen.id)
        if row is None:
            return IngestResult(0, False)
        if (row.outbox_seq, row.outbox_offset) != (seen.outbox_seq, seen.outbox_offset):
            return IngestResult(0, True)
        act(session, row)
        session.flush()
        failpoint.hit("ingest.rows")
        row.outbox_seq, row.outbox_offset = read.batch.next_seq, read.batch.offset
        row.outbox_inode = read.inode
        row.outbox_problem = row.outbox_problem or read.problem
        session.flush()
        failpoint.hit("ingest.cursor")
        problem = row.outbox_problem
    failpoint.hit("ingest.committed")
    return IngestResult(len(read.batch.records), read.more, problem)
