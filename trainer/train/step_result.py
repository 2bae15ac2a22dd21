"""Asynchronous copy of a step's result to the host, and the time of the step's own passes."""

from __future__ import annotations

import statistics
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class StepResult:
    """Result of a step: 0-d tensors on the device, read one step later.

    loss: float32, nats per token, mean over the micro-batches that have a target. grad_norm:
    float32, of the whole gradient. finite: bool; if false, the weights did not change.
    """

    loss: Tensor
    grad_norm: Tensor
    finite: Tensor


class Reading:
    """Asynchronous copy of a step's numbers to the host, queued right after the step, so that
    reading waits for that step alone: `.item()` would wait for everything launched since."""

    def __init__(self, result: StepResult) -> None:
        numbers = torch.stack([result.loss, result.grad_norm, result.finite.float()])
        self._arrived: torch.cuda.Event | None = None
        self._numbers = numbers
        if numbers.device.type == "cuda":
            self._numbers = torch.empty(3, pin_memory=True).copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()

    def values(self) -> tuple[float, float, bool]:
        """(loss, gradient norm, finite), as soon as the step is done."""
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, grad_norm, finite = self._numbers.tolist()
        return loss, grad_norm, bool(finite)


class OwnWork:
    """Times a part of each step, with device events on an asynchronous device."""

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == "cuda"
        self._spans: deque[tuple[Any, Any]] = deque(maxlen=32)
        self._began: Any = None

    def __enter__(self) -> None:
        self._began = self._now()

    def __exit__(self, *_: object) -> None:
        self._spans.append((self._began, self._now()))

    def seconds(self) -> float | None:
        """Median over the finished steps; None before the first."""
        if not self._on_cuda:
            done = [end - began for began, end in self._spans]
        else:
            ended = [(began, end) for began, end in self._spans if end.query()]
            done = [began.elapsed_time(end) / 1000 for began, end in ended]
        return statistics.median(done) if done else None

    def _now(self) -> Any:
        if not self._on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
