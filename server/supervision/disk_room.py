"""Whether the disk has room to start a process: an attempt, or a job.

Nothing is started on a full disk, because its order could not be written. A start that failed for
lack of room is repeated once there is more room than then, or after RETRY_SECONDS: a quota is not
seen in the free space.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from server.machine import disk

RETRY_SECONDS = 300.0


class _Shortage(NamedTuple):
    """A start that failed: when it ended, the free bytes and the clock when that was seen."""

    ended_at: float
    free: int
    since: float


class DiskRoom:
    """clock: monotonic seconds. A failure before this daemon started is tried again at once."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._began_at = clock, time.time()
        self._shortages: dict[str, _Shortage] = {}

    def is_missing(self, key: str, *places: Path, failed_at: float | None = None) -> bool:
        """True while nothing can be started on the disks of `places`.

        failed_at: when the last start of `key` ended for lack of room, in unix seconds.
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
        """Forget what has settled."""
        for key in self._shortages.keys() - keys:
            del self._shortages[key]
