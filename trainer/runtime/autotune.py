"""Autotuning: measures alternative kernels on the device and remembers the fastest in a file.

The fastest depends on GPU, driver and torch, so no table can predict it. Candidates are raced once
per key; the result is then frozen into the run, since another kernel gives other bits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from trainer.contract import durable
from trainer.contract.shape import ModelShape

REPEATS = 5
T = TypeVar("T")


class Memory:
    """Cache of winners by key, in `file`; None stores nothing."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.winners = _recall(file)

    def winner(self, key: str, among: Collection[str], race: Callable[[], str]) -> str:
        """The cached winner of this key if still a candidate, otherwise the result of `race`."""
        if self.winners.get(key) not in among:
            self.winners[key] = race()
            self._keep()
        return self.winners[key]

    def _keep(self) -> None:
        if self.file is None:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        content = json.dumps(self.winners, indent=2, sort_keys=True)
        durable.write_atomically(self.file, content.encode())


def as_called(way: Callable[..., T], compiled: bool) -> Callable[..., T]:
    """`way` as a block calls it: in a compiled block it is part of a full graph."""

    def call(*operands: Tensor) -> T:
        return way(*operands)

    # the compiler counts compilations per code object: each way gets its own
    call.__code__ = call.__code__.replace()
    return torch.compile(call, dynamic=False, fullgraph=True) if compiled else call


class Undecided(Exception):
    """No candidate ran. The message is the last one's error."""


def attempt(run: Callable[[], T]) -> T | None:
    """The result of `run`; None if it raises: such a candidate has lost the race.

    Raises torch.OutOfMemoryError: a full GPU decides nothing.
    """
    try:
        return run()
    except torch.OutOfMemoryError:
        raise
    except Exception:  # errors of Triton and of the compiler have no common base
        return None


AGREES = 0.02  # relative, of bf16 results: both round each by up to 0.004


def agree(found: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """True if the results are of the same function, up to rounding."""
    pairs = [(a.float(), b.float()) for a, b in zip(found, right, strict=True)]
    off = torch.stack([(a - b).norm() / b.norm() for a, b in pairs])
    return bool((off < AGREES).all())


def best_seconds(run: Callable[[], object], device: torch.device) -> float:
    """Best of several timings in seconds; the first, which may compile, does not count."""
    times = []
    for _ in range(REPEATS):
        _wait(device)
        began = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - began)
    return min(times[1:])


def key(shape: ModelShape, rows: int, dtype: torch.dtype, device: torch.device, what: str) -> str:
    """Cache key of a race; `what`: the parts of the shape that this race depends on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return (
        f"{name}, torch {torch.__version__}, {dtype}, rows {rows}, T {shape.sequence_len}, {what}"
    )


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _recall(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}  # no file yet, or a torn one: race again
    return found if isinstance(found, dict) else {}
