"""Checks free disk space before the start of a process: an attempt, or a job.

A full disk prevents every start, because the order could not be written. A start that failed for
lack of space is repeated once more space is free, or after RETRY_SECONDS, because free space does
not show a quota.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from server.machine import disk

RETRY_SECONDS = 300.0


class _Shortage(NamedTuple):
    """A failed start: its end, and the free bytes and the clock at its detection."""

    ended_at: float
    free: int
    since: float


class DiskRoom:
    """Disk shortages by run or job. clock: monotonic seconds. Failures before this daemon's start
    are retried immediately."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._began_at = clock, time.time()
        self._shortages: dict[str, _Shortage] = {}

    def is_missing(self, key: str, *places: Path, failed_at: float | None = None) -> bool:
        """True while the disks of `places` lack the space for a start.

        failed_at: when the last start of `key` failed for lack of space, in unix seconds.
        """
        free = disk.least_free(*places)
        if free is None:
            return False
        shortage = self._shortage(key, failed_at, free)
        return free < disk.FULL_BYTES or (shortage is not None and self._lasts(shortage, free))

    def _shortage(self, key: str, failed_at: float | None, free: int) -> _Shortage | None:
        if failed_at is None or failed_at < self._began_at:
            self._shortages.pop(key, None)
            return None
        known = self._shortages.get(key)
        if known is None or known.ended_at != failed_at:
            known = self._shortages[key] = _Shortage(failed_at, free, self._clock())
        return known

    def _lasts(self, shortage: _Shortage, free: int) -> bool:
        has_more = free >= shortage.free + disk.FULL_BYTES
        return not has_more and self._clock() < shortage.since + RETRY_SECONDS

    def keep_only(self, keys: set[str]) -> None:
        """Drop the shortages of settled runs and jobs."""
        for key in self._shortages.keys() - keys:
            del self._shortages[key]
