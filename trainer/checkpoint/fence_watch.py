"""Fence watch: a superseded trainer ends within seconds, not at its next save."""

from __future__ import annotations

import time
from pathlib import Path

from trainer.checkpoint import fence

CHECK_SECONDS = 5.0


class FenceWatch:
    """Checks every few seconds if a newer attempt has taken over, so that this one ends then and
    not at its next save."""

    def __init__(self, run_dir: Path, attempt: int) -> None:
        self._run_dir, self._attempt = run_dir, attempt
        self._next = 0.0

    def check(self) -> None:
        """Check if it is time to. Raises Fenced."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + CHECK_SECONDS
            fence.check(self._run_dir, self._attempt)
