"""Host time of a step of the preset on CUDA, traind's against the reference's, in turns.

    python -m tests.bench.host [--rows 8] [--depth 12] [--pairs 60] [--profile]

CPU seconds of this process, all its threads: the host's work while the GPU computes. On a null GPU
(`tests/nullgpu`) they contain nothing else; on a GPU they may include waiting for it.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from tests.bench import training
from trainer.contract.plan import make_plan
from trainer.contract.shape import shape_of
from trainer.contract.spec import RunSpec, resolve
from trainer.model.gpt import GPT
from trainer.optim.optimizer import Optimizer
from trainer.train.step import Stepper
from trainer.train.step_result import Reading

WARM_UP = 4


def spec(rows: int, depth: int) -> RunSpec:
    body = {"tokens": 65_536, "device_batch_size": rows}
    model = {"depth": depth}
    return resolve({"name": "host", "preset": "rtx4070-d12", "model": model, "batch": body})


def ours(wanted: RunSpec) -> Callable[[], object]:
    """A step as in the training loop, with its numbers read."""
    plan, shape = make_plan(wanted), shape_of(wanted.model)
    model = GPT(shape, compute_dtype=torch.bfloat16, device="cuda")
    optimizer = Optimizer(model, plan.hyperparameters)
    settled = {str(w): "sdpa" for w in shape.windows}
    stepper = Stepper(
        model,
        optimizer,
        compile=True,
        deterministic=False,
        rows=plan.batch.device_batch_size,
        attention_backends=settled,
    )
    data = pinned(wanted)
    return lambda: Reading(stepper.train_step(data, **training.RATES)).values()


def pinned(wanted: RunSpec) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(t.pin_memory(), y.pin_memory()) for t, y in training.batches(wanted)]


def processor_seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


def in_turns(
    first: Callable[[], object], second: Callable[[], object], pairs: int
) -> tuple[list[float], list[float]]:
    """CPU seconds of both, A B B A; garbage is collected between them, not during them."""
    for _ in range(WARM_UP):
        first()
        second()
    times: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    gc.disable()
    try:
        for turn in range(pairs):
            order = [(first, times[0]), (second, times[1])]
            for call, taken in order if turn % 2 == 0 else reversed(order):
                taken.append(processor_seconds(call))
    finally:
        gc.enable()
    return times


def measure(rows: int = 8, depth: int = 12, pairs: int = 60) -> dict[str, Any]:
    """Minimum and median milliseconds of both; ratio: traind to reference, median of the pairs."""
    wanted = spec(rows, depth)
    a, b = in_turns(ours(wanted), training.opponent(wanted, "cuda"), pairs)
    return {
        "ours_least": min(a) * 1e3,
        "ours_median": statistics.median(a) * 1e3,
        "plain_least": min(b) * 1e3,
        "plain_median": statistics.median(b) * 1e3,
        "ratio": statistics.median(x / y for x, y in zip(a, b, strict=True)),
    }


def profile(wanted: RunSpec, steps: int = 20) -> None:
    import cProfile
    import pstats

    step = ours(wanted)
    for _ in range(WARM_UP):
        step()
    least = min(processor_seconds(step) for _ in range(steps))
    seen = cProfile.Profile()
    seen.enable()
    for _ in range(steps):
        step()
    seen.disable()
    print(f"{least * 1e3:.1f} ms of processor at least; below, seconds of {steps} steps")
    pstats.Stats(seen).sort_stats("tottime").print_stats(45)


def main() -> None:
    ask = argparse.ArgumentParser()
    ask.add_argument("--rows", type=int, default=8)
    ask.add_argument("--depth", type=int, default=12)
    ask.add_argument("--pairs", type=int, default=60)
    ask.add_argument("--profile", action="store_true")
    asked = ask.parse_args()
    if asked.profile:
        profile(spec(asked.rows, asked.depth))
        return
    for name, value in measure(asked.rows, asked.depth, asked.pairs).items():
        print(f"{name}: {value:.2f}")


if __name__ == "__main__":
    main()
