"""What a campaign counts and how it says what it does."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field

SHOWN = 20  # failures of one campaign that are printed; all are counted


@dataclass
class Counts:
    """done: how often each thing happened. failures: a line for each promise that was not kept."""

    campaign: str
    seed: int
    done: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    worst: dict[str, float] = field(default_factory=dict)

    def add(self, what: str, number: int = 1) -> None:
        self.done[what] += number

    def fail(self, why: str) -> None:
        self.failures.append(why)
        if len(self.failures) <= SHOWN:
            self.say(f"FAILED: {why}")

    def expect(self, holds: object, why: str) -> None:
        if not holds:
            self.fail(why)

    def merge(self, part: Counts) -> None:
        """Take over what a part of the campaign counted."""
        self.done += part.done
        self.failures += part.failures
        for what, seconds in part.worst.items():
            self.longest(what, seconds)

    def longest(self, what: str, seconds: float) -> None:
        """Remember the longest time that something took."""
        self.worst[what] = max(seconds, self.worst.get(what, 0.0))

    def say(self, words: str) -> None:
        print(f"{self.campaign} seed {self.seed}: {words}", flush=True)


class Budget:
    """Seconds that a campaign may take; it always does its first round."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds
        self._begun = False

    def has_more(self) -> bool:
        """True the first time, then while there is time left."""
        first, self._begun = not self._begun, True
        return first or time.monotonic() < self._end

    @property
    def used(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - (self._end - self.seconds)

    @property
    def is_over(self) -> bool:
        return time.monotonic() >= self._end
