"""Loss spike detector: a loss far above what the last hundred steps predict."""

from __future__ import annotations

import math
from collections import deque

from trainer.contract import events

WINDOW_STEPS = 100
DEVIATIONS = 6.0
MIN_RISE = 1.10


class SpikeWatch:
    """Detects loss spikes from every loss. A spike does not enter the window."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=WINDOW_STEPS)

    def observe(self, step: int, loss: float) -> events.Notice | None:
        """Add the loss of a step; returns a notice if it is a spike."""
        window = self._recent
        if len(window) == WINDOW_STEPS:
            mean = sum(window) / WINDOW_STEPS
            deviation = math.sqrt(sum((x - mean) ** 2 for x in window) / WINDOW_STEPS)
            if loss > mean + DEVIATIONS * deviation and loss > mean * MIN_RISE:
                window.popleft()  # a lasting change of level stops being a spike after a while
                return events.Notice(
                    level="warning",
                    code="loss_spike",
                    message=f"loss spike at step {step:,}: {loss:.4f}, the last "
                    f"{WINDOW_STEPS} steps had {mean:.4f} ± {deviation:.4f}",
                    step=step,
                    data={"loss": loss, "mean": mean, "deviation": deviation},
                )
        window.append(loss)
        return None
