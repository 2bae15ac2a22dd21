"""Background verification of a corpus while a run trains."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass
from typing import Any

from trainer.data import hashing, helper_process, prepared
from trainer.data.errors import DataChanged
from trainer.data.prepared import PreparedData

POLL_SECONDS = 2.0
RESTART_SECONDS = 30.0
REPORT_EVERY = 0.25  # of the bytes


@dataclass(frozen=True)
class HashingProgress:
    """Progress of hashing in bytes. touched: files with a new stat and the same sample."""

    done_bytes: int
    total_bytes: int
    touched: list[str]
    finished: bool


class BackgroundCheck:
    """Hashes a corpus that was only sampled when the run was prepared. Close it."""

    def __init__(self, prepared: PreparedData) -> None:
        self._prepared = prepared
        self._process: subprocess.Popen[bytes] | None = None
        self._began = self._polled = float("-inf")
        self._reported = -REPORT_EVERY
        self.finished = not hashing.left_to_hash(prepared)

    def poll(self) -> HashingProgress | None:
        """New progress to report, or None. Usually costs one clock reading.

        Raises DataChanged for the first file that is not what the run was prepared with.
        """
        now = time.monotonic()
        if self.finished or now - self._polled < POLL_SECONDS:
            return None
        self._polled = now
        state = self._state()
        if state and state["changed"]:
            path, why = state["changed"][0]
            raise DataChanged(path, why)
        if state and state["finished"]:
            self.finished = True
            return HashingProgress(
                state["total_bytes"], state["total_bytes"], state["touched"], True
            )
        self._keep_process(now)
        if state is None:
            return None
        share = state["done_bytes"] / max(1, state["total_bytes"])
        if share < self._reported + REPORT_EVERY:
            return None
        self._reported = share
        return HashingProgress(state["done_bytes"], state["total_bytes"], state["touched"], False)

    def close(self) -> None:
        helper_process.end(self._process)

    def _state(self) -> dict[str, Any] | None:
        """Last state of this run's hashing process, or of another run's that is hashing."""
        state = hashing.read_state(self._prepared)
        if state and self._process is not None and state["pid"] == self._process.pid:
            return state
        return hashing.live_state(self._prepared)

    def _keep_process(self, now: float) -> None:
        """Start a hashing process if none runs; it exits if another run's is hashing already."""
        gone = self._process is None or self._process.poll() is not None
        if gone and now - self._began > RESTART_SECONDS:
            self._began = now
            description = hashing.state_path(self._prepared).with_suffix(".json")
            prepared.store(description, self._prepared, self._prepared.corpora_dir.parent)
            self._process = helper_process.start("trainer.data.hashing", str(description))
