"""Lost rank: rank 0 determines which other rank failed, and why."""

from __future__ import annotations

import time
from pathlib import Path

from trainer.contract.exits import first_failure
from trainer.contract.reasons import Reason
from trainer.contract.rundir import identify, rank_record
from trainer.runtime.peers import ELSEWHERE, NEVER_SEEN

WAIT_SECONDS = 3.0  # for the record of the rank that failed


def find(attempt: Path, members: list[tuple[int, str, int]], heard: str) -> tuple[Reason, str]:
    """Cause of a lost rank: reason and sentence. Waits for its record.

    members: (rank, device, pid), where ELSEWHERE is a process of another machine and NEVER_SEEN one
    that exited before it registered. heard: the error of the lost connection, as a last resort.
    """
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        gone = [one for one in members if one[0] and one[2] != ELSEWHERE and _is_gone(one[2])]
        found = first_failure(attempt)  # after the processes: it is written before the end
        if found is not None:
            rank, record = found
            device = next((d for r, d, _ in members if r == rank), "its device")
            return record.reason, f"rank {rank} ({device}): {record.message}"
        silent = [one for one in gone if not rank_record(attempt, one[0]).exists()]
        if silent:
            named = ", ".join(_rank_words(*one) for one in silent)
            return Reason.rank_lost, f"{named} ended without a report: it was killed or crashed"
        if time.monotonic() >= deadline:
            break
        time.sleep(0.05)
    return Reason.rank_lost, f"a rank does not answer: {heard}"


def _is_gone(pid: int) -> bool:
    return pid == NEVER_SEEN or identify(pid) is None


def _rank_words(rank: int, device: str, pid: int) -> str:
    return (
        f"rank {rank} ({device})" if pid == NEVER_SEEN else f"rank {rank} ({device}, process {pid})"
    )
