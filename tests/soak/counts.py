"""Counters and progress messages of a campaign."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

SHOWN = 20  # failures of one campaign that are printed; all are counted


@dataclass
class Counts:
    """done: number of times each event happened. failures: one line for each broken promise."""

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
        """Add the counts of a part of the campaign."""
        self.done += part.done
        self.failures += part.failures
        for what, seconds in part.worst.items():
            self.longest(what, seconds)

    def longest(self, what: str, seconds: float) -> None:
        """Record the longest duration of `what`."""
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


class Stopwatch:
    """Seconds since its creation, minus those in which the machine did not run ready threads.

    A thread that sleeps `NAP_SECONDS` at a time adds up its wake-up delays: a promise in seconds is
    about the program, and CPU time given to other processes is not the program's.
    """

    NAP_SECONDS = 0.005

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._late = 0.0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Stopwatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self.seconds = time.monotonic() - self._began - self._late

    def _watch(self) -> None:
        asleep_since, is_over = time.monotonic(), False
        while not is_over:
            is_over = self._is_over.wait(self.NAP_SECONDS)
            awake = time.monotonic()
            self._late += max(0.0, awake - asleep_since - 2 * self.NAP_SECONDS)
            asleep_since = awake
