"""Logs of attempts and jobs: control bytes escaped, length bounded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.database import tables
from server.errors import NotFound
from trainer.contract.rundir import DataDir, rank_log
from trainer.contract.text import log_line

MAX_BYTES = 4_000_000


@dataclass(frozen=True)
class Tail:
    """text and the offset behind it, from which a follower continues."""

    text: str
    next_offset: int


def of_attempt(
    session: Session, paths: DataDir, run: tables.Run, attempt: int | None, rank: int
) -> tuple[int, Path]:
    """Number of the attempt, the newest by default, and the log of its rank. Raises NotFound."""
    table = tables.Attempt
    query = select(table.number).where(table.run_id == run.id).order_by(table.number)
    numbers = list(session.scalars(query))
    if not numbers:
        raise NotFound(f"Run {run.name} has not been started: there is no log.")
    number = numbers[-1] if attempt is None else attempt
    if number not in numbers:
        raise NotFound(
            f"Run {run.name} has no attempt {number}; it has {numbers[0]} to {numbers[-1]}."
        )
    path = rank_log(paths.run(run.id).attempt(number), rank)
    if rank and not path.exists():
        raise NotFound(f"Attempt {number} of run {run.name} has no log of rank {rank}.")
    return number, path


def tail(path: Path, lines: int) -> Tail:
    """The last `lines` lines, without an unfinished last line unless there is nothing else."""
    raw, end = _read_end(path)
    whole = raw[: raw.rfind(b"\n") + 1] or raw
    shown = whole.split(b"\n")
    if shown and not shown[-1]:
        shown.pop()
    return Tail(_shown(shown[-lines:]), end - len(raw) + len(whole))


def after(path: Path, offset: int) -> Tail:
    """The complete lines after `offset`; empty if there are none yet."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(min(offset, size))
            raw = file.read(MAX_BYTES)
    except OSError:
        return Tail("", 0)
    whole = raw[: raw.rfind(b"\n") + 1]
    if not whole and len(raw) == MAX_BYTES:
        whole = raw  # a line longer than the limit is returned in pieces
    shown = whole.split(b"\n")
    return Tail(
        _shown(shown[:-1] if whole.endswith(b"\n") else shown), min(offset, size) + len(whole)
    )


def _read_end(path: Path) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_BYTES))
            return file.read(MAX_BYTES), size
    except OSError:
        return b"", 0


def _shown(lines: list[bytes]) -> str:
    return "".join(log_line(line.decode("utf-8", "replace")) + "\n" for line in lines)
