"""The exit record (`exit.json`) that a process leaves behind.

The exit code of a process that is not a child cannot be read, so the trainer writes this record.
No record means that it crashed.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from trainer.contract.durable import write_durably
from trainer.contract.reasons import Reason


class ExitRecord(BaseModel):
    """Written durably by a trainer or job just before its process ends.

    outcome: 'completed' (last step of the phase done), 'phase_ended' (asked to end early),
    'paused', 'cancelled', 'terminated' (SIGTERM), 'failed'.
    """

    model_config = ConfigDict(extra="forbid")

    outcome: str
    reason: Reason
    step: int | None = None
    checkpoint: str | None = None
    message: str = ""
    unix_seconds: float


def write_exit(directory: Path, record: ExitRecord) -> None:
    """Write the exit record durably. Raises OSError."""
    write_durably(directory / "exit.json", record.model_dump_json().encode())


def read_exit(directory: Path) -> ExitRecord | None:
    """The exit record of an attempt or job directory; None if there is no valid one."""
    try:
        return ExitRecord.model_validate(json.loads((directory / "exit.json").read_bytes()))
    except (OSError, ValueError):
        return None


def first_failure(attempt: Path) -> tuple[int, ExitRecord] | None:
    """(rank, record) of the first rank of an attempt that failed by itself, not because it lost
    another rank; None if there is none. Rank 0's record is the attempt's own."""
    found = [
        (record.unix_seconds, rank, record)
        for rank, record in rank_records(attempt).items()
        if record.outcome == "failed" and record.reason is not Reason.rank_lost
    ]
    return min(found, key=lambda one: one[:2])[1:] if found else None


def rank_records(attempt: Path) -> dict[int, ExitRecord]:
    """The exit records written so far by ranks other than 0, by rank."""
    found = {}
    for path in (attempt / "ranks").glob("[0-9]*.json"):
        try:
            found[int(path.stem)] = ExitRecord.model_validate_json(path.read_bytes())
        except (OSError, ValueError):
            continue
    return found
