"""Missing parts of a GPU machine: NVML readings, a compiler, a deterministic kernel."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.needs("nullgpu"), pytest.mark.timeout(300)]


def look() -> dict[str, Any]:
    import torch

    from server.machine import devices, readings
    from trainer.runtime import device

    torch.ones(1, device="cuda")
    (card, *_) = devices.discover()
    now = readings.Readings().of(card.uuid)
    sensed = device.Sensors.open(torch.device("cuda", 0)).read()
    return {
        "device": card.device, "memory": card.memory_bytes, "used": now.memory_used_bytes,
        "holders": len(now.holders), "server_watts": now.power_watts,
        "server_celsius": now.temperature_celsius, "watts": sensed["power_watts"],
        "celsius": sensed["temperature_celsius"], "unusable": devices.unusable_gpu(),
        "total": sensed["vram_total_bytes"], "pci": card.pci,
    }  # fmt: skip


def test_a_card_that_tells_all(on_card):
    found = on_card("rtx4070", look)
    assert (found["device"], found["pci"]) == ("cuda:0", "0000:01:00")
    assert found["memory"] == found["total"] == 12_282 << 20
    assert found["used"] >= 300 << 20
    assert found["holders"] >= 1
    assert found["watts"] == found["server_watts"] == 198
    assert found["celsius"] == found["server_celsius"] == 66


def test_a_card_that_tells_no_power_memory_or_processes(on_card):
    found = on_card("rtx4070", look, variables={"NULLGPU_NVML": "power memory processes"})
    assert found["device"] == "cuda:0"
    assert (found["memory"], found["used"], found["holders"]) == (None, None, 0)
    assert found["watts"] is None
    assert found["server_watts"] is None
    assert found["celsius"] == found["server_celsius"] == 66


def test_a_card_that_is_named_by_its_uuid(on_card):
    uuid = "GPU-01020304-0506"
    found = on_card("h200", look, variables={"CUDA_VISIBLE_DEVICES": uuid})
    assert (found["device"], found["memory"]) == ("cuda:0", 143_771 << 20)


def hear(holders: str) -> dict[str, Any]:
    """GPU errors that the daemon's listener receives."""
    import time
    from pathlib import Path

    from server.machine import kernel_log
    from server.machine.xid_events import XidListener

    listener = XidListener()
    listener.start()
    (Path(holders) / "xid.new").write_text("79")
    (Path(holders) / "xid.new").rename(Path(holders) / "xid")
    deadline = time.monotonic() + 60
    while not listener.lines() and time.monotonic() < deadline:
        time.sleep(0.01)
    lines = listener.lines()
    listener.stop()
    xid, other = (kernel_log.worst_xid(lines, pci) for pci in ("0000:01:00", "0000:82:00"))
    return {"xid": str(xid), "of another card": other, "later": listener.lines(float("inf"))}


def test_an_error_of_the_card_is_heard_without_the_kernels_log(on_card, tmp_path):
    found = on_card("rtx4070", hear, variables={"NULLGPU_HOLDERS": str(tmp_path)},
                    holders=str(tmp_path))  # fmt: skip
    assert found["xid"] == "Xid 79 (GPU has fallen off the bus)"
    assert found["of another card"] is None
    assert found["later"] == []


SMALL: dict[str, Any] = {
    "model": {
        "depth": 2,
        "aspect_ratio": 64,
        "head_dim": 64,
        "sequence_len": 256,
        "vocab_size": 512,
    },
    "batch": {"tokens": 2048},
}


def step_small(deterministic: bool = False) -> dict[str, Any]:
    """A step of a small model as a session does it, attention raced."""
    import warnings

    import torch

    from tests.nullgpu.counting import cost
    from tests.nullgpu.steps import Bench
    from trainer.model import attention
    from trainer.runtime import device

    device.configure(torch.device("cuda", 0), threads=1, deterministic=deterministic)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        bench = Bench("rtx4070-d12", 8, deterministic=deterministic, race=True, **SMALL)
        loss = bench.train()[0]
        bench.loss_only()
        counted = cost(bench.train).to_json()
    return {
        "loss": loss,
        "reason": bench.stepper.compiler.reason,
        "attention": bench.stepper.attention,
        "kernel": attention.sdpa_kernel(bench.shape, torch.bfloat16, bench.device),
        "nondeterministic": [str(w.message) for w in warned if "determinis" in str(w.message)],
        "triton": counted["triton"],
    }


def test_a_compiler_that_fails_leaves_the_step_uncompiled(on_card, tmp_path):
    broken = {
        "CC": "/bin/false",
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
    }
    found = on_card("rtx4070", step_small, variables=broken)
    assert found["reason"]
    assert found["triton"] == 0
    assert found["loss"] == 1.0


def test_a_compiler_that_works_is_used(on_card):
    found = on_card("rtx4070", step_small)
    assert found["reason"] is None
    assert found["triton"] > 0


@pytest.mark.parametrize(("card", "kernel"), [("rtx4070", "flash_attention")])
def test_a_deterministic_step_uses_kernels_that_repeat(on_card, card, kernel):
    found = on_card(card, step_small, deterministic=True)
    assert found["nondeterministic"] == []
    assert found["kernel"] == kernel


def step_with_windows() -> dict[str, int]:
    """Number of flex attention block masks that a first step builds, and a later one."""
    from tests.nullgpu.steps import Bench
    from trainer.model import attention

    model = {**SMALL["model"], "window_pattern": "SL"}
    changes = {**SMALL, "model": model}
    bench = Bench("rtx4070-d12", 8, compile=False, attention="flex", **changes)
    bench.train()
    first = attention._block_mask.cache_info().misses
    bench.train()
    later = attention._block_mask.cache_info().misses - first
    return {"first": first, "later": later, "windows": len(set(bench.shape.windows))}


@pytest.mark.timeout(600)  # flex attention compiles, whatever the step does
def test_a_block_mask_is_built_once_for_each_window(on_card):
    """In a compiled block it was part of the graph, and built in every layer of every pass."""
    found = on_card("rtx4070", step_with_windows, seconds=560)
    assert found == {"first": found["windows"], "later": 0, "windows": 2}
