"""Comparison of two implementations, timed in turn (A B B A): median and quartiles of the ratio."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch


@dataclass(frozen=True)
class Comparison:
    """Seconds per call. ratios: opponent / traind, per pair of neighbours; above 1 traind wins."""

    ours: list[float]
    opponent: list[float]

    @property
    def ratios(self) -> list[float]:
        return [b / a for a, b in zip(self.ours, self.opponent, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    def line(self, name: str) -> str:
        low, middle, high = statistics.quantiles(self.ratios, n=4)
        spread = statistics.quantiles(self.ours, n=4)
        return (
            f"{name}: {middle:.2f}x (quartiles {low:.2f} to {high:.2f}); ours "
            f"{statistics.median(self.ours) * 1e3:.1f} ms, opponent "
            f"{statistics.median(self.opponent) * 1e3:.1f} ms; noise of ours "
            f"{(spread[2] - spread[0]) / spread[1]:.0%}, {len(self.ours)} pairs"
        )


@dataclass(frozen=True)
class Contender:
    """A call to time, and its setup (not timed)."""

    call: Callable[[], object]
    prepare: Callable[[], object] = lambda: None


@contextmanager
def elsewhere(make: Callable[[], Callable[[], Any]]) -> Iterator[Callable[[], Any]]:
    """`make()`'s function in a separate process with the default allocator settings.

    glibc's default behaviour cannot be restored: its thresholds adapt to the freed sizes only until
    one of them is set, as the trainer does.
    """
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    there = context.Process(target=_serve, args=(make, far, torch.get_num_threads()), daemon=True)
    there.start()
    far.close()

    def call() -> Any:
        near.send(True)
        return near.recv()

    try:
        yield call
    finally:
        near.close()
        there.join(20)
        there.kill()


def _serve(make: Callable[[], Callable[[], Any]], far: Connection, threads: int) -> None:
    torch.set_num_threads(threads)
    call = make()
    while True:
        try:
            far.recv()
        except EOFError:
            return
        far.send(call())


def interleave(ours: Contender, opponent: Contender, *, warm_up: int, pairs: int) -> Comparison:
    """Time both `pairs` times after `warm_up` calls of each."""
    for _ in range(warm_up):
        ours.call()
        opponent.call()
    a: list[float] = []
    b: list[float] = []
    for i in range(pairs):
        order = [(ours, a), (opponent, b)]
        for contender, times in order if i % 2 == 0 else reversed(order):
            contender.prepare()
            times.append(seconds(contender.call))
    return Comparison(a, b)


def seconds(call: Callable[[], object]) -> float:
    wait()
    began = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - began


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
