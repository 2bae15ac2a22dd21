"""Tail of an attempt's log: control bytes escaped, length bounded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from server.text import log_line

MAX_BYTES = 4 << 20


@dataclass(frozen=True)
class Tail:
    """text and the offset behind it, from which a follower continues."""

    text: str
    next_offset: int


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
