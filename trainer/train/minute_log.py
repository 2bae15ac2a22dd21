"""Progress line in the trainer's log once a minute: step, loss, throughput, time left."""

from __future__ import annotations

import time
from collections.abc import Callable

from trainer.contract import units

EVERY_SECONDS = 60.0


class MinuteLog:
    """Prints at most one line in EVERY_SECONDS; throughput is since the previous line."""

    def __init__(self, end_step: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._end_step, self._clock = end_step, clock
        self._since, self._steps, self._tokens = clock(), 0, 0

    def add(self, step: int, loss: float, tokens: int) -> None:
        """Count step `step` (from 0) with its smoothed loss; print when a minute has passed."""
        self._steps += 1
        self._tokens += tokens
        passed = self._clock() - self._since
        if passed < EVERY_SECONDS:
            return
        left = (self._end_step - step - 1) * passed / self._steps
        print(
            f"{units.exactly(time.time())} step {step + 1:,}/{self._end_step:,}, loss {loss:.4f}, "
            f"{units.rate(self._tokens / passed)}, {units.duration(left)} left",
            flush=True,
        )
        self._since, self._steps, self._tokens = self._clock(), 0, 0
