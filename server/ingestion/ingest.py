"""Reads a journal and commits records, cursor, rollups and counters in one transaction.

The file is read without a lock or a transaction; then the cursor is checked again under the write
lock, so that two readers of one journal cannot both apply a record. A kill anywhere leaves the old
cursor with the old rows, or the new with the new.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import exc, select
from sqlalchemy.orm import Session

from server.database import tables
from server.database.db import Database
from server.errors import TraindError
from server.ingestion import apply_attempt, apply_job
from server.ingestion.applied import Applied
from trainer.contract import events, failpoint
from trainer.contract.journal import JournalBatch, JournalReader, verify_prefix
from trainer.contract.rundir import OUTBOX, DataDir

MAX_RECORDS = 250  # 2,000 cost the ingestion process 8 MB more
RECORD_BYTES = 512  # about the size of a step record
_INT_LIMIT = 2**63


@dataclass(frozen=True)
class IngestResult:
    """Result of one read. applied: number of records applied. more: the journal has more records.
    problem: why ingestion stopped.

    The `ended` record does not change the run's state: the supervisor moves the run once the
    process is gone, so that `paused` implies free device memory.
    """

    applied: int
    more: bool
    problem: str | None = None


@dataclass(frozen=True)
class Record:
    """One valid journal record: its position and its event."""

    seq: int
    unix_seconds: float
    event: events.AnyEvent


def ingest(
    db: Database, execution_id: int, paths: DataDir, max_records: int = MAX_RECORDS
) -> IngestResult:
    """Apply the new records of an execution's journal.

    A damaged, replaced or shortened file stops the ingestion of this journal permanently, with an
    event and `outbox_problem`; the file stays unchanged. Raises errors.Busy, errors.DiskFull.
    """
    with db.read() as session:
        execution = session.get(tables.Execution, execution_id)
        owner = _owner(session, execution) if execution is not None else None
    if execution is None or owner is None:
        return IngestResult(0, False)
    read = _read(paths.root / execution.directory / OUTBOX, execution, owner, max_records)
    if not read.is_news:
        return IngestResult(0, False, execution.outbox_problem)
    try:
        return _commit(db, execution, read, _apply)
    except Exception as error:
        if not _is_of_a_record(error, read):
            raise
        if len(read.batch.records) > 1:
            return ingest(db, execution_id, paths, _fewer(read))
        why = _short(error)
        named = _named(read.batch)
        return _commit(db, execution, read, lambda target, _: target.gap(why, named))


def _apply(target: Applied, read: _Read) -> None:
    for record in _records(read.batch, target.gap):
        target.take(record.event, record.unix_seconds)
    target.finish()
    if read.problem:
        target.stop(read.problem)


_KINDS: dict[str, Callable[[Session, int], Applied]] = {
    "attempt": apply_attempt.of,
    "job": apply_job.of,
}


def _owner(session: Session, execution: tables.Execution) -> tuple[str, int] | None:
    """Run id and attempt number expected in the journal's header; for a job its id and 0."""
    attempt, job = tables.Attempt, tables.Job
    if execution.kind == "job":
        job_id = session.scalar(select(job.id).where(job.execution_id == execution.id))
        return (job_id, 0) if job_id is not None else None
    named = select(attempt.run_id, attempt.number).where(attempt.execution_id == execution.id)
    row = session.execute(named).first()
    return (row[0], row[1]) if row is not None else None


# --- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Read:
    batch: JournalBatch
    inode: int | None
    problem: str | None
    more: bool
    is_news: bool


def _read(path: Path, row: tables.Execution, owner: tuple[str, int], max_records: int) -> _Read:
    """Read at most `max_records` records after the row's cursor."""
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


def _inode(path: Path, row: tables.Execution, owner: tuple[str, int, str]) -> int | None:
    """Expected inode of the journal; None (any) for a copied file with the same contents."""
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
    """Parse the batch's records. A complete record of an unknown form is skipped with an event, so
    that a newer trainer does not stop an older daemon.
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
    """True if a record caused the error; then that record alone is found and skipped."""
    of_the_machine = (TraindError, OSError, MemoryError, exc.OperationalError, exc.TimeoutError)
    return bool(read.batch.records) and not isinstance(error, of_the_machine)


def _fewer(read: _Read) -> int:
    """Size of the next smaller batch in the search for the record that cannot be applied."""
    return max(1, len(read.batch.records) // 8)


def _named(batch: JournalBatch) -> dict[str, Any]:
    return {"seq": batch.next_seq - 1, "kind": str(batch.records[0].get("kind"))[:32]}


def _short(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"[:300]
    return str(error)[:300]


def _clean(value: Any) -> Any:
    """Remove what a database column cannot hold: NaN, lone surrogates, integers over 64 bits."""
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
    db: Database,
    seen: tables.Execution,
    read: _Read,
    act: Callable[[Applied, _Read], None],
) -> IngestResult:
    with db.write() as session:
        row = session.get(tables.Execution, seen.id)
        if row is None:
            return IngestResult(0, False)
        if (row.outbox_seq, row.outbox_offset) != (seen.outbox_seq, seen.outbox_offset):
            return IngestResult(0, True)
        act(_KINDS[row.kind](session, row.id), read)
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
