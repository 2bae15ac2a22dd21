"""Plan context: facts about the machine that a plan uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PlanContext:
    """Facts about the machine. All may be unknown: planning needs no device.

    gpu_unusable: why a detected GPU cannot be used. capability: CUDA compute capability. gpus: the
    number that `gpus: all` means here. measured_*: from the earlier run of this shape on this
    device that the speed is taken from.
    """

    device_type: Literal["cpu", "cuda", "mps"] = "cuda"
    device_name: str | None = None
    device_memory_bytes: int | None = None
    peak_flops: float | None = None
    peak_source: str | None = None
    tokens_per_second: float | None = None
    throughput_source: str | None = None
    measured_rows: int | None = None
    measured_peak_bytes: int | None = None
    disk_free_bytes: int | None = None
    corpus_tokens: int | None = None
    gpu_unusable: str | None = None
    capability: tuple[int, int] | None = None
    gpus: int | None = None
