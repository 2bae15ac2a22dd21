"""Depth 12 on a GPU, against the plain reference: `python -m tests.bench.gpu`.

T 2,048, vocabulary 32,768, bf16, micro-batches from 2 to 64 that fit; a step is 65,536 tokens, at
64 rows the double. The fastest once more in fp8 where the card has it, and with our own kernels,
each against the compiler's bf16.
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from tests.bench import bars, training
from tests.bench.compare import Contender, interleave
from trainer.checkpoint.background_writer import Saver
from trainer.checkpoint.store import FileEntry, Manifest
from trainer.contract.peaks import fp8_missing
from trainer.contract.plan import make_plan
from trainer.contract.shape import shape_of
from trainer.contract.spec import RunSpec, resolve
from trainer.model import relu2
from trainer.runtime import device as devices

ROWS = (2, 4, 8, 16, 32, 64)
SAME_TOKENS = 32  # rows up to which a step is 65,536 tokens, as the reference's is
WARM_UP, PAIRS = 20, 50


def main() -> None:
    if not torch.cuda.is_available():
        print("there is no CUDA device here: nothing of a GPU was measured")
        return
    print(
        f"{torch.cuda.get_device_name()}, driver memory {torch.cuda.mem_get_info()[1] / 1e9:.1f} GB"
    )
    rates = {rows: _alone(rows) for rows in ROWS}
    best = max((rows for rows in ROWS if rows <= SAME_TOKENS), key=rates.__getitem__)
    for part in (_against, _fp8, _triton):
        try:
            part(best)
        except torch.OutOfMemoryError:
            print(f"{part.__name__[1:]}: both steps beside each other do not fit this card")
        gc.collect()
        torch.cuda.empty_cache()


def _spec(rows: int) -> RunSpec:
    return resolve(
        {
            "name": "bench",
            "preset": "rtx4070-d12",
            "batch": {"tokens": max(32, rows) * 2_048, "device_batch_size": rows},
        }
    )


def _alone(rows: int) -> float:
    """Tokens/s of our step; 0 where it does not fit."""
    spec = _spec(rows)
    plan = make_plan(spec)
    try:
        torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        step = training.ours(spec, "cuda")
        step()
        compiled = time.perf_counter() - began
        for _ in range(WARM_UP):
            step()
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(PAIRS):
            step()
        torch.cuda.synchronize()
        seconds = (time.perf_counter() - began) / PAIRS
    except torch.OutOfMemoryError:
        print(f"micro-batch {rows}: does not fit (the plan: {plan.memory.total / 1e9:.1f} GB)")
        return 0.0
    rate, horizon = plan.batch.tokens / seconds, plan.horizon
    peak = devices.peak(torch.device("cuda"), torch.bfloat16).value
    used = rate * horizon.flops_per_token / peak
    causal = rate * horizon.flops_per_token_causal / peak
    free, total = torch.cuda.mem_get_info()
    print(
        f"micro-batch {rows}: {rate:,.0f} tok/s, MFU {used:.1%} ({causal:.1%} of causal work), "
        f"memory {torch.cuda.max_memory_allocated() / 1e9:.2f} GB allocated, "
        f"{(total - free) / 1e9:.2f} GB by the driver, {plan.memory.total / 1e9:.2f} GB planned, "
        f"idle {_idle(step):.1%}, first step after {compiled:.0f} s",
        flush=True,
    )
    del step
    gc.collect()
    torch.cuda.empty_cache()
    return rate


def _idle(step: Callable[[], float]) -> float:
    """The share of three steps in which no kernel ran."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        began = time.perf_counter()
        for _ in range(3):
            step()
        torch.cuda.synchronize()
        wall = time.perf_counter() - began
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in (seen.events() or ())
        if event.device_type.name == "CUDA"
    )
    busy, until = 0.0, float("-inf")
    for low, high in spans:
        busy += max(0.0, high - max(low, until))
        until = max(until, high)
    return max(0.0, 1 - busy / 1e6 / wall)


def _against(rows: int) -> None:
    """The best micro-batch against the reference at 8, peak memory and a checkpoint's stall."""
    peaks: dict[str, float] = {}
    steps: dict[str, Callable[[], float]] = {}
    for name, make, size in (("opponent", training.opponent, 8), ("ours", training.ours, rows)):
        base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        steps[name] = make(_spec(size), "cuda")
        for _ in range(3):
            steps[name]()
        peaks[name] = torch.cuda.max_memory_allocated() - base
    found = interleave(
        Contender(steps["ours"]), Contender(steps["opponent"]), warm_up=WARM_UP, pairs=PAIRS
    )
    print(found.line(f"d12 step, ours at {rows}, opponent at 8"))
    bars.at_least("d12 step on this GPU", found.ratio, 1.35)
    bars.at_most("d12 peak device memory", peaks["ours"] / peaks["opponent"], 0.5)
    print(f"checkpoint of 2 GB: the step waits {_stall() * 1e3:.1f} ms")


def _fp8(rows: int) -> None:
    """The same step with the trunk's products in 8 bits. MFU stays that of bf16's peak."""
    if why := fp8_missing("this card", torch.cuda.get_device_capability()):
        print(f"fp8: {why}")
        return
    steps = [training.ours(_spec(rows), "cuda", fp8=fp8) for fp8 in (True, False)]
    ours, bf16 = (Contender(step) for step in steps)
    print(interleave(ours, bf16, warm_up=WARM_UP, pairs=PAIRS).line(f"d12 fp8 at {rows}, to bf16"))


def _triton(rows: int) -> None:
    """The same step with each tile of relu2.py, and who wins the race on this card."""
    spec, cuda = _spec(rows), torch.device("cuda")
    shape = shape_of(spec.model)
    if why := relu2.missing(cuda, torch.bfloat16):
        print(f"kernels triton: {why}")
        return
    won, why = relu2.settle(relu2.RACE, shape, rows, torch.bfloat16, cuda, compiled=True)
    print(f"kernels triton, the race: {won} ({why})")
    for tile in relu2.candidates(shape):
        if f"{tile} does not" in why:
            continue
        fused, plain = (
            Contender(training.ours(spec, "cuda", relu2_tile=t)) for t in (tile, relu2.COMPILED)
        )
        found = interleave(fused, plain, warm_up=WARM_UP, pairs=PAIRS)
        print(found.line(f"d12 relu2 {tile} at {rows}, to the compiler's"))


def _stall() -> float:
    tensors = {f"t{i}": torch.randn(31_250_000, device="cuda") for i in range(16)}

    def describe(files: dict[str, FileEntry]) -> Manifest:
        return Manifest(
            run_id="bench", attempt=1, step=0, tokens_seen=0, parent=None, why="cadence",
            files=files, spec_sha256="", data_identity="", fingerprint={}, unix_seconds=0.0,
        )  # fmt: skip

    with tempfile.TemporaryDirectory() as folder:
        saver = Saver(Path(folder), torch.device("cuda"))
        times = []
        for step in range(3):
            torch.cuda.synchronize()
            began = time.perf_counter()
            saver.begin(step, tensors, {}, {}, describe, "cadence")
            times.append(time.perf_counter() - began)
            saver.wait()
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
