"""The two training steps that the benchmarks compare, on the same tokens."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.reference.model import PlainGPT
from tests.reference.optimizer import PlainOptimizer
from tests.reference.step import train_step
from trainer.contract.plan import make_plan
from trainer.contract.shape import shape_of
from trainer.contract.spec import RunSpec, resolve
from trainer.model.gpt import GPT
from trainer.optim.optimizer import Optimizer
from trainer.train.step import Stepper

RATES = {"lr_multiplier": 0.5, "momentum": 0.95, "weight_decay": 0.05}


def cpu_spec(vocab: int = 8192, rows: int = 4, accumulation: int = 4, length: int = 512) -> RunSpec:
    """Depth 4, width 256: the CPU configuration of the goals."""
    return resolve(
        {
            "name": "bench",
            "model": {
                "depth": 4,
                "aspect_ratio": 64,
                "head_dim": 64,
                "sequence_len": length,
                "vocab_size": vocab,
            },
            "batch": {"tokens": rows * length * accumulation, "device_batch_size": rows},
        }
    )


def batches(spec: RunSpec, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Micro-batches whose tokens are distributed as in text: frequency ~ 1 / rank."""
    plan = make_plan(spec)
    draw = torch.Generator().manual_seed(seed)
    vocab, rows, length = (
        plan.shape.vocab_size,
        plan.batch.device_batch_size,
        plan.shape.sequence_len,
    )
    weights = 1 / torch.arange(1, vocab + 1, dtype=torch.float64)
    order = torch.randperm(vocab, generator=draw)
    result = []
    for _ in range(plan.batch.accumulation):
        picked = torch.multinomial(weights, rows * (length + 1), True, generator=draw)
        block = order[picked].view(rows, length + 1)
        result.append((block[:, :-1].contiguous(), block[:, 1:].contiguous()))
    return result


def ours(
    spec: RunSpec, device: str = "cpu", compile: bool = True, **kind: Any
) -> Callable[[], float]:
    """One step of the trainer, the loss read at its end. kind: fp8, relu2_tile of the Stepper."""
    plan, shape = make_plan(spec), shape_of(spec.model)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = GPT(shape, compute_dtype=dtype, device=device)
    model.init_weights(0)
    optimizer = Optimizer(model, plan.hyperparameters)
    rows = plan.batch.device_batch_size
    stepper = Stepper(model, optimizer, compile=compile, deterministic=True, rows=rows, **kind)
    data = itertools.cycle([batches(spec, seed) for seed in range(3)])
    return lambda: stepper.train_step(next(data), **RATES).loss.item()


def opponent(spec: RunSpec, device: str = "cpu", compile: bool = True) -> Callable[[], float]:
    """One step of the plain reference, compiled as a whole."""
    plan, shape = make_plan(spec), shape_of(spec.model)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = PlainGPT(shape, dtype).to(device)
    start = GPT(shape, compute_dtype=dtype, device=device)
    start.init_weights(0)
    model.load_state_dict(start.state_dict())

    def wrap(function: Callable) -> Callable:
        return torch.compile(function, dynamic=False) if compile else function

    optimizer = PlainOptimizer(model, plan.hyperparameters, wrap)
    loss_function = wrap(model.loss)
    data = itertools.cycle([batches(spec, seed) for seed in range(3)])

    def step() -> float:
        moved = [(t.to(device), y.to(device)) for t, y in next(data)]
        return train_step(model, optimizer, moved, **RATES, loss_function=loss_function)

    return step
