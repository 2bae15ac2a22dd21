"""Progress line in the trainer's log once a minute: step, loss, throughput, time left."""

from __future__ import annotations

import time
from collections.abc import Callable

from trainer.contract import units
from trainer.contract.orders import AttemptOrder
from trainer.contract.plan import time_left
from trainer.contract.shape import shape_of

EVERY_SECONDS = 60.0


class MinuteLog:
    """Prints at most one line in EVERY_SECONDS; throughput is since the previous line."""

    def __init__(self, order: AttemptOrder, clock: Callable[[], float] = time.monotonic) -> None:
        self._order, self._clock = order, clock
        self._since, self._tokens = clock(), 0

    def add(self, step: int, loss: float, tokens: int) -> None:
        """Count step `step` (from 0) with its smoothed loss; print when a minute has passed."""
        self._tokens += tokens
        passed = self._clock() - self._since
        if passed < EVERY_SECONDS:
            return
        rate = self._tokens / passed
        left = units.duration(self._left(step + 1, rate))
        print(
            f"{units.exactly(time.time())} step {step + 1:,}/{self._order.end_step:,}, loss "
            f"{loss:.4f}, {units.rate(rate)}, {left} left",
            flush=True,
        )
        self._since, self._tokens = self._clock(), 0

    def _left(self, step: int, tokens_per_second: float) -> float:
        spec, order = self._order.spec, self._order
        return time_left(
            spec, shape_of(spec.model), order.plan.batch, step, order.end_step, tokens_per_second
        ).total
