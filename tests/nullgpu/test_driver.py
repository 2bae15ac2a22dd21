"""The null GPU itself: its properties, counts and errors."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.needs("nullgpu")

NAMES = {
    "rtx4070": ("NVIDIA GeForce RTX 4070", [8, 9], 12_282),
    "rtx3090": ("NVIDIA GeForce RTX 3090", [8, 6], 24_576),
    "h200": ("NVIDIA H200", [9, 0], 143_771),
}


def describe() -> dict[str, Any]:
    import pynvml
    import torch

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    found = torch.cuda.get_device_properties(0)
    return {
        "torch": [found.name, [found.major, found.minor], found.total_memory >> 20],
        "nvml": [
            pynvml.nvmlDeviceGetName(handle),
            list(pynvml.nvmlDeviceGetCudaComputeCapability(handle)),
            int(pynvml.nvmlDeviceGetMemoryInfo(handle).total) >> 20,
        ],
        "uuids": [f"GPU-{found.uuid}", pynvml.nvmlDeviceGetUUID(handle)],
    }


@pytest.mark.parametrize("card", NAMES)
def test_torch_and_nvml_see_the_same_card(on_card, card):
    found = on_card(card, describe)
    assert tuple(found["torch"]) == NAMES[card]
    assert tuple(found["nvml"]) == NAMES[card]
    assert found["uuids"][0] == found["uuids"][1]


def work() -> dict[str, Any]:
    import os

    import pynvml
    import torch

    from tests.nullgpu.counting import cost, limit_memory

    def take(mebibytes: int) -> torch.Tensor:
        return torch.empty(mebibytes << 20, dtype=torch.uint8, device="cuda")

    pynvml.nvmlInit()
    a = torch.ones(1024, 1024, device="cuda")  # 4 MiB
    pinned, pageable = torch.empty(1024, 1024, pin_memory=True), torch.empty(1024, 1024)
    a.sum().item()
    torch.compile(torch.sin)(a)
    fresh = {
        "add": cost(lambda: a + a),
        "product": cost(lambda: a @ a),
        "compiled": cost(lambda: torch.compile(torch.sin)(a)),
        "item": cost(lambda: a.sum().item()),
        "pinned": cost(lambda: a.copy_(pinned, non_blocking=True)),
        "pageable": cost(lambda: a.copy_(pageable)),
        "too large": cost(lambda: take(13 << 10)),
    }
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    held = {p.pid: p.usedGpuMemory for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    limit_memory(torch.cuda.memory_reserved() + (64 << 20))
    fresh["beyond the limit"] = cost(
        lambda: torch.empty(65 << 20, dtype=torch.uint8, device="cuda")
    )
    fresh["within it"] = cost(lambda: torch.empty(60 << 20, dtype=torch.uint8, device="cuda"))
    return {
        "held": held.get(os.getpid()),
        "reserved": torch.cuda.memory_reserved(),
        **{name: found.to_json() for name, found in fresh.items()},
    }


def test_launches_products_copies_waits_and_memory_are_counted(on_card):
    found = on_card("rtx4070", work)
    assert found["add"]["kernels"] == 1
    assert found["add"]["peak_bytes"] - found["add"]["before_bytes"] == 4 << 20
    assert found["product"]["products"] == 1
    assert found["product"]["product_flops"] == 2 * 1024**3
    assert found["compiled"]["triton"] == 1
    assert found["compiled"]["waits"] == 0
    assert found["item"]["waits"] == 1
    assert found["pinned"]["copied_bytes"] == 4 << 20
    assert (found["pinned"]["pageable"], found["pinned"]["waits"]) == (0, 0)
    assert (found["pageable"]["pageable"], found["pageable"]["waits"]) == (1, 1)
    assert found["too large"]["outcome"] == "OutOfMemoryError"
    assert found["beyond the limit"]["outcome"] == "OutOfMemoryError"
    assert found["within it"]["outcome"] == "done"
    assert found["held"] >= 300 << 20  # a context and a few tensors
