"""The journal: a durable queue between trainer and server, one JSON-lines file in each direction.

The first line is the header (version, run, attempt, token). Each record is one line with a gap-free
`seq` from 0, `ts` (unix seconds), `kind`, its fields, and a CRC-32 of everything before it. Each
file has one writer; a new attempt opens a new file, so nothing is appended after a torn tail. A
reader waits for an unfinished last line; anything else that does not parse is damage, and reading
stops there.
"""

from __future__ import annotations

import errno
import json
import os
import time
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.contract import failpoint
from trainer.contract.durable import fsync_directory, write_all
from trainer.contract.rundir import is_at

VERSION = 1
READABLE_VERSIONS = (1,)
READ_BYTES = 1_000_000
MAX_LINE_BYTES = 4_200_000  # no less: journals of 0.1 hold records of up to 4,194,304
_CRC_TAIL = len(',"crc":"00000000"}')


@dataclass(frozen=True)
class JournalHeader:
    """Identity of a journal's writer. token: the fencing secret of this attempt."""

    run: str
    attempt: int
    token: str
    version: int = VERSION


class JournalError(Exception):
    """The journal cannot be read or written; the message names the file and the problem."""


class JournalFull(JournalError):
    """The disk is full: the record was not written and the file is unchanged."""


# --- writing -------------------------------------------------------------------------------------


class Writer:
    """Appends records. `append` returns when the bytes are written; `sync` when they are durable.

    After a failed fsync the writer refuses every record (`JournalError`): the kernel may have
    dropped the pages and marked them clean.
    """

    def __init__(
        self, path: Path, fd: int, header: JournalHeader, next_seq: int, size: int
    ) -> None:
        self.path, self.header = path, header
        self._fd, self._next_seq, self._size = fd, next_seq, size
        self._broken = False
        self._dirty = False

    @classmethod
    def create(cls, path: Path, header: JournalHeader) -> Writer:
        """Create a journal with a durable header. Raises FileExistsError if it exists."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(path, flags, 0o644)
        line = _encode({"journal": "traind", **vars(header)})
        write_all(fd, line)
        os.fsync(fd)
        fsync_directory(path.parent)
        return cls(path, fd, header, 0, len(line))

    @classmethod
    def reopen(cls, path: Path) -> Writer:
        """Reopen this writer's journal after a restart; truncates a torn last line.

        Raises JournalError if the journal cannot be read to its end."""
        reader = JournalReader(path)
        batch = reader.read()
        while batch.records:
            last = batch
            batch = reader.read(last.offset, last.next_seq)
        if batch.problem or reader.header is None:
            raise JournalError(f"{path}: {batch.problem or 'no header'}")
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.ftruncate(fd, batch.offset)
        os.fsync(fd)
        return cls(path, fd, reader.header, batch.next_seq, batch.offset)

    def is_at_path(self) -> bool:
        """True if the path still names this file; False once it was deleted or replaced."""
        return is_at(self._fd, self.path)

    def append(self, record: dict[str, Any], *, durable: bool = False) -> int:
        """Append one record and return its seq. Raises JournalFull with nothing written.

        After any other error, or a torn record that cannot be truncated, the writer is broken.
        """
        if self._broken:
            raise JournalError(f"{self.path}: an earlier write failed, no record is accepted")
        line = _fitting({"seq": self._next_seq, "ts": round(time.time(), 6), **record})
        try:
            failpoint.hit("journal.append")
            write_all(self._fd, line)
        except OSError as error:
            self._broken = True  # until the file is known to end where it ended before
            os.ftruncate(self._fd, self._size)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._broken = False
                raise JournalFull(f"{self.path}: {error.strerror}") from error
            raise
        self._size += len(line)
        self._next_seq += 1
        self._dirty = True
        if durable:
            self.sync()
        return self._next_seq - 1

    def sync(self) -> None:
        """Make everything appended so far durable. Raises OSError and breaks the writer."""
        if not self._dirty:
            return
        self._dirty = False  # before, not after: another thread may append meanwhile
        try:
            failpoint.hit("journal.fsync")
            os.fdatasync(self._fd) if hasattr(os, "fdatasync") else os.fsync(self._fd)
        except OSError:
            self._broken = True
            raise

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _fitting(record: dict[str, Any]) -> bytes:
    """The record as a line, no longer than a reader accepts: long strings and lists are truncated,
    since reading stops at a line that is too long."""
    line = _encode(record)
    for most in (10_000, 1_000, 100, 10):
        if len(line) <= MAX_LINE_BYTES:
            break
        line = _encode(_cut(record, most))
    return line


def _cut(value: Any, most: int) -> Any:
    """The value with strings truncated to `most` characters, lists and objects to `most` items."""
    if isinstance(value, str):
        return value if len(value) <= most else f"{value[:most]}…"
    if isinstance(value, list):
        return [_cut(item, most) for item in value[:most]]
    if isinstance(value, dict):
        return {key: _cut(item, most) for key, item in list(value.items())[:most]}
    return value


def _encode(record: dict[str, Any]) -> bytes:
    body = json.dumps(record, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    crc = zlib.crc32(body.encode())
    return f'{body[:-1]},"crc":"{crc:08x}"}}\n'.encode()


# --- reading -------------------------------------------------------------------------------------


def verify_prefix(path: Path, owner: tuple[str, int, str], offset: int, next_seq: int) -> bool:
    """True if the file is that owner's journal, undamaged and gap-free up to exactly this cursor.

    owner: (run, attempt, token). A copy of a journal has another inode and is the same journal.
    """
    reader, at = JournalReader(path), (0, 0)
    while at[0] < offset:
        batch = reader.read(*at, max_bytes=min(READ_BYTES, offset - at[0]))
        if batch.problem or batch.offset == at[0]:
            return False
        at = (batch.offset, batch.next_seq)
    header = reader.header
    same = header is not None and (header.run, header.attempt, header.token) == owner
    return same and at == (offset, next_seq)


@dataclass(frozen=True)
class JournalBatch:
    """Records and the cursor after them. problem: why reading stops at `offset`, or None."""

    records: list[dict[str, Any]]
    offset: int
    next_seq: int
    problem: str | None = None
    lines: list[bytes] = field(default_factory=list, repr=False)


class JournalReader:
    """Reads a journal from any cursor; keeps no file open and detects a replaced file by its inode.

    Another inode is not another journal (see `verify_prefix`): a restored backup has only new ones.
    """

    def __init__(self, path: Path, inode: int | None = None) -> None:
        self.path = path
        self.inode = inode
        self.header: JournalHeader | None = None

    def read(self, offset: int = 0, next_seq: int = 0, max_bytes: int = READ_BYTES) -> JournalBatch:
        """Whole valid records from the cursor on; (0, 0) is the beginning of the file.

        A missing file gives an empty batch if nothing was read before, otherwise a problem.
        """
        try:
            chunk, size, inode = self._load(offset, max_bytes)
        except FileNotFoundError:
            gone = "the file is gone" if offset or self.inode is not None else None
            return JournalBatch([], offset, next_seq, gone)
        if self.inode is not None and inode != self.inode:
            return JournalBatch([], offset, next_seq, "the file was replaced by another")
        if size < offset:
            why = f"the file was truncated to {size:,} bytes, {offset:,} were already read"
            return JournalBatch([], offset, next_seq, why)
        self.inode = inode
        return self._parse(chunk, offset, next_seq)

    def _load(self, offset: int, max_bytes: int) -> tuple[bytes, int, int]:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            stat = os.fstat(fd)
            chunk = os.pread(fd, max_bytes, offset)
            if b"\n" not in chunk and len(chunk) == max_bytes:
                chunk = os.pread(fd, MAX_LINE_BYTES + 1, offset)
            return chunk, stat.st_size, stat.st_ino
        finally:
            os.close(fd)

    def _parse(self, chunk: bytes, offset: int, next_seq: int) -> JournalBatch:
        records: list[dict[str, Any]] = []
        lines: list[bytes] = []
        problem = None
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:
            line = chunk[start:end]
            record = decode(line)
            if record is None:
                problem = f"damaged record at byte {offset + start:,} (after record {next_seq - 1})"
                break
            if offset + start == 0:
                problem = self._take_header(record)
                if problem:
                    break
            elif record.get("seq") != next_seq:
                problem = f"record {next_seq} is missing at byte {offset + start:,}"
                break
            else:
                records.append(record)
                lines.append(line)
                next_seq += 1
            start = end + 1
        if problem is None and len(chunk) - start > MAX_LINE_BYTES:
            problem = f"a record longer than {MAX_LINE_BYTES:,} bytes at byte {offset + start:,}"
        return JournalBatch(records, offset + start, next_seq, problem, lines)

    def _take_header(self, record: dict[str, Any]) -> str | None:
        version = record.get("version")
        if record.get("journal") != "traind":
            return "the first line is not a traind journal header"
        if version not in READABLE_VERSIONS:
            return f"journal version {version}, this traind reads {READABLE_VERSIONS}"
        try:
            self.header = JournalHeader(
                str(record["run"]), int(record["attempt"]), str(record["token"]), int(version)
            )
        except (KeyError, TypeError, ValueError):
            return "the journal header is incomplete"
        return None


def decode(line: bytes) -> dict[str, Any] | None:
    """The record of one line without its newline; None if its CRC or JSON is invalid."""
    body, tail = line[:-_CRC_TAIL], line[-_CRC_TAIL:]
    if not (tail.startswith(b',"crc":"') and tail.endswith(b'"}')):
        return None
    try:
        stated = int(tail[8:16], 16)
        if tail[8:16] != b"%08x" % stated or zlib.crc32(body + b"}") != stated:
            return None
        record = json.loads(body + b"}")
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
