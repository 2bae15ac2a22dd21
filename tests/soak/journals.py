"""Journals: cut at every byte and flipped at every bit of 10 kB.

All are read as in ingestion; as many as the time allows are ingested into the database.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

from sqlalchemy import delete, func, select

from server.database.db import Database
from server.database.tables import Attempt, Event, Execution, Point
from server.ingestion import ingest
from server.settings import Settings
from tests.server import reporting
from tests.server.reporting import Reporter
from tests.soak import books
from tests.soak.counts import SHOWN, Budget, Counts
from trainer.contract import journal
from trainer.contract.rundir import OUTBOX

STEPS = 26
SECONDS_PER_FLIP = 0.006  # approximate seconds of one: determines how many a budget allows


def run(budget: float, seed: int) -> Counts:
    """Every bit and byte read; then every byte as a cut and every k-th bit through the database, k
    as the budget allows and the seed as the phase."""
    counts = Counts("journal", seed)
    with _place() as (db, settings):
        raw = _written(db, settings)
        _read_all(db, settings, raw, counts)
        stride = max(1, round(8 * len(raw) * SECONDS_PER_FLIP / budget))
        _sweep(db, settings, raw, counts, Budget(2 * budget), stride, seed % stride)
    return counts


def control(seed: int) -> Counts:
    """The same with CRCs ignored: it must be detected."""

    def believe(line: bytes) -> dict[str, object] | None:
        try:
            record = json.loads(line)
        except ValueError:
            return None
        return record if isinstance(record, dict) else None

    counts, read = Counts("journal", seed), Counts("journal", seed)
    with _place() as (db, settings), patch.object(journal, "decode", believe):
        raw = _written(db, settings)
        _read_all(db, settings, raw, read)
        _sweep(db, settings, raw, counts, Budget(10), stride=211, phase=seed % 211)
    counts.failures += read.failures
    return counts


@contextmanager
def _place() -> Iterator[tuple[Database, Settings]]:
    """A database in a memory file system if there is one: this tests bytes, not the disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="soak-journal-", dir=memory if memory.is_dir() else None
    ) as folder:
        settings = Settings(data_dir=Path(folder))
        db = Database.open(settings)
        try:
            yield db, settings
        finally:
            db.close()


def _written(db: Database, settings: Settings) -> bytes:
    """The bytes of a complete attempt's journal, of which nothing is ingested yet."""
    reporter = _reporter(db, settings)
    reporter.begin()
    reporter.steps(0, STEPS // 2)
    reporter.save(STEPS // 2)
    reporter.steps(STEPS // 2, STEPS)
    reporter.writer.close()
    return reporter.outbox.read_bytes()


def _reporter(db: Database, settings: Settings) -> Reporter:
    return reporting.attempt(db, settings, reporting.create(db, steps=2 * STEPS))


# --- every one, read -----------------------------------------------------------------------------


def _read_all(db: Database, settings: Settings, raw: bytes, counts: Counts) -> None:
    """Check that each cut gives the whole records before it and waits for the rest, and each flip
    ends reading at the record before it. The cursor starts at the damaged line."""
    with db.read() as session:
        attempt = session.scalars(select(Attempt)).one()
    path = settings.paths.run(attempt.run_id).attempt(attempt.number) / OUTBOX
    ends = [i + 1 for i, byte in enumerate(raw) if byte == ord("\n")]
    for cut in range(len(raw)):
        _put(path, raw[:cut])
        read = _ingestion_reads(path, attempt, 0, 0)
        there = (len(read.batch.records), read.problem)
        whole = max(0, sum(end <= cut for end in ends) - 1)
        counts.expect(there == (whole, None), f"read, cut at byte {cut}: {there}, not {whole}")
        counts.add("truncations read")
    for line, (start, end) in enumerate(pairwise([0, *ends])):
        for bit in range(8 * start, 8 * end):
            _read_flipped(path, attempt, raw, bit, (start, max(0, line - 1)), counts)
    _put(path, raw)


def _read_flipped(
    path: Path, attempt: Attempt, raw: bytes, bit: int, cursor: tuple[int, int], counts: Counts
) -> None:
    damaged = bytearray(raw)
    damaged[bit // 8] ^= 1 << (bit % 8)
    _put(path, damaged)
    read = _ingestion_reads(path, attempt, *cursor)
    waits = bit // 8 == len(raw) - 1
    found = (len(read.batch.records), read.problem is None, read.batch.offset)
    counts.expect(found == (0, waits, cursor[0]), f"read, bit {bit}: {found}, {read.problem}")
    counts.add("bit flips read")


def _ingestion_reads(path: Path, attempt: Attempt, offset: int, seq: int) -> ingest._Read:
    row = Execution(outbox_offset=offset, outbox_seq=seq, token=attempt.token)
    return ingest._read(path, row, (attempt.run_id, attempt.number), ingest.MAX_RECORDS)


# --- through the database ------------------------------------------------------------------------


def _sweep(
    db: Database,
    settings: Settings,
    raw: bytes,
    counts: Counts,
    left: Budget,
    stride: int,
    phase: int,
) -> None:
    """Line by line: damage the next line in every way, then ingest it undamaged."""
    with db.read() as session:
        attempt = session.scalars(select(Attempt)).one()
    reporter = Reporter(db, settings, attempt.run_id, attempt.id, 1, None)  # type: ignore[arg-type]
    start = 0
    for end in [i + 1 for i, byte in enumerate(raw) if byte == ord("\n")]:
        if len(counts.failures) > SHOWN:
            return
        for cut in range(start, end):
            _cut(reporter, raw, cut, counts)
        before = _points(db)
        for bit in range(8 * start, 8 * end):
            is_least = bit % (4 * stride) == phase  # always done, however busy the machine is
            if is_least or (bit % stride == phase and not left.is_over):
                _flip(reporter, raw, bit, end, counts)
        counts.expect(_points(db) == before, f"points from the line that ends at byte {end}")
        _put(reporter.outbox, raw[:end])
        reporter.ingest()
        start = end
    counts.expect(_points(db) == STEPS, f"{_points(db)} points of {STEPS} in the end")
    for words in books.differences(db, settings.paths):
        counts.fail(words)


def _put(path: Path, raw: bytes | bytearray) -> None:
    """Replace the file's content in place, keeping its inode."""
    fd = os.open(path, os.O_WRONLY)
    os.pwrite(fd, raw, 0)
    os.ftruncate(fd, len(raw))
    os.close(fd)


def _cut(reporter: Reporter, raw: bytes, at: int, counts: Counts) -> None:
    _put(reporter.outbox, raw[:at])
    result = reporter.ingest()
    counts.add("truncations")
    counts.expect((result.applied, result.problem) == (0, None), f"cut at byte {at}: {result}")


def _flip(reporter: Reporter, raw: bytes, bit: int, end: int, counts: Counts) -> None:
    """No part of the line may be accepted. A lost newline looks like an unfinished line while
    nothing follows it."""
    damaged = bytearray(raw)
    damaged[bit // 8] ^= 1 << (bit % 8)
    waits = bit // 8 == len(raw) - 1
    _put(reporter.outbox, damaged)
    result = reporter.ingest()
    counts.add("bit flips")
    found = (result.applied, result.problem is None)
    counts.expect(found == (0, waits), f"bit {bit} of a line that ends at {end}: {result}")
    counts.expect(reporter.outbox.read_bytes() == damaged, f"bit {bit}: the file was changed")
    if not waits:
        _forgive(reporter)


def _forgive(reporter: Reporter) -> None:
    """Reset the reader's state, as if the damage had not been seen."""
    with reporter.db.write() as session:
        session.get_one(Attempt, reporter.attempt_id).outbox_problem = None
        session.execute(delete(Event).where(Event.kind == "report_gap"))


def _points(db: Database) -> int:
    with db.read() as session:
        return session.scalar(select(func.count()).select_from(Point)) or 0
