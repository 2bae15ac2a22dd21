"""Cost of a call on this process's null GPU: memory, launches, products, copies and waits."""

from __future__ import annotations

import ctypes
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import torch


@dataclass
class Cost:
    """Bytes at the peak and before the call; counts by kind; `by_name`: count by "kind name".

    kernels: torch's own; triton: the compiler's and traind's; products: cuBLAS calls;
    pageable: copies between the device and host memory that is not pinned; waits: host for device.
    outcome: "done" or the name of the error.
    """

    before_bytes: int = 0
    peak_bytes: int = 0
    reserved_bytes: int = 0
    pinned_peak_bytes: int = 0
    kernels: int = 0
    triton: int = 0
    products: int = 0
    product_flops: int = 0
    memsets: int = 0
    copies: int = 0
    copied_bytes: int = 0
    pageable: int = 0
    waits: int = 0
    outcome: str = "done"
    by_name: dict[str, int] = field(default_factory=dict)

    @property
    def launches(self) -> int:
        return self.kernels + self.triton + self.products

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "launches": self.launches}


def cost(call: Callable[[], object]) -> Cost:
    """The cost of one call. Running out of device memory is an outcome, not an error."""
    torch.cuda.reset_peak_memory_stats()
    counted = Cost(before_bytes=torch.cuda.memory_allocated())
    driver().nullgpu_forget_counts()
    try:
        call()
    except torch.OutOfMemoryError as error:
        counted.outcome = type(error).__name__
    counted.peak_bytes = torch.cuda.max_memory_allocated()
    counted.reserved_bytes = torch.cuda.max_memory_reserved()
    counted.pinned_peak_bytes = driver().nullgpu_pinned_peak()
    _take_counts(counted)
    return counted


def host_calls(call: Callable[[], object]) -> int:
    """Number of Python and C functions that the host calls: its work, as a number that does not
    depend on the machine's load. Calls in other threads are not counted."""
    count = 0

    def seen(_: Any, event: str, __: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(seen)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


def limit_memory(byte_count: int | None) -> None:
    """Limit the GPU's memory from now on; None lifts the limit. Frees cached memory first."""
    torch.cuda.empty_cache()
    driver().nullgpu_limit(ctypes.c_size_t(byte_count or 0))


@cache
def driver() -> ctypes.CDLL:
    library = ctypes.CDLL("libcuda.so.1")
    library.nullgpu_pinned_peak.restype = ctypes.c_size_t
    return library


_FIELDS = {"kernel": "kernels", "triton": "triton", "gemm": "products", "memset": "memsets",
           "copy": "copies", "sync": "waits"}  # fmt: skip


def _take_counts(counted: Cost) -> None:
    with tempfile.NamedTemporaryFile("r") as file:
        driver().nullgpu_write_counts(file.name.encode())
        lines = [line.rstrip("\n").split("\t") for line in file]
    for number, size, kind, name in lines:
        counted.by_name[f"{kind} {name}"] = int(number)
        if kind in _FIELDS:
            setattr(counted, _FIELDS[kind], getattr(counted, _FIELDS[kind]) + int(number))
        counted.product_flops += int(size) if kind == "gemm" else 0
        counted.copied_bytes += int(size) if kind == "copy" else 0
        blocking = kind == "copy" and name.startswith("waiting")
        counted.waits += int(number) if blocking else 0
        counted.pageable += int(number) if kind == "copy" and name.endswith("pageable") else 0
