"""Step probe: real training steps of a shape on a device, to measure speed and memory.

It determines which number of rows per micro-batch runs fastest, and which still fits.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.contract.plan import Hyperparameters
from trainer.contract.shape import ModelShape
from trainer.model.gpt import GPT
from trainer.optim.optimizer import Optimizer
from trainer.train.step import Stepper

WARM_UP_STEPS = 2
MARGIN = 0.95  # of the free memory: evaluations, fragmentation and a desktop need some too


@dataclass(frozen=True)
class ProbeResult:
    """Result of a probe. seconds_per_token: median over the steps, optimizer included.

    peak_bytes: the device allocator's peak on CUDA, the process's peak resident memory elsewhere.
    fits: false if the device ran out of memory, with the other numbers 0, or if too little memory
    would be left.
    """

    rows: int
    fits: bool
    seconds_per_token: float
    peak_bytes: int
    compiled: bool


def probe_step(
    shape: ModelShape,
    rows: int,
    *,
    hyper: Hyperparameters,
    compute_dtype: torch.dtype,
    device: torch.device | str,
    accumulation: int = 1,
    steps: int = 5,
    compile: bool = True,
    deterministic: bool = False,
    choices_file: Path | None = None,
    fp8: bool = False,
) -> ProbeResult:
    """Train `steps` steps of `accumulation` micro-batches of `rows` rows on random tokens, and
    compute a loss as a pause does.

    Running out of device memory is a result, not an error.
    """
    device = torch.device(device)
    room = 0
    try:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            room = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        model = GPT(shape, compute_dtype=compute_dtype, device=device)
        _fill(model)
        stepper = Stepper(
            model,
            Optimizer(model, hyper),
            compile=compile,
            deterministic=deterministic,
            rows=rows,
            choices_file=choices_file,
            fp8=fp8,
        )
        seconds = _step_seconds(stepper, rows, accumulation, steps)
        tokens = rows * accumulation * shape.sequence_len
        peak = peak_memory(device)
        fits = device.type != "cuda" or peak <= MARGIN * room
        return ProbeResult(rows, fits, seconds / tokens, peak, stepper.compiler.active)
    except torch.OutOfMemoryError:
        return ProbeResult(rows, False, 0.0, 0, False)
    finally:
        model = stepper = None
        if "torch._dynamo" in sys.modules:  # otherwise every call evaluates the guards of each size
            torch._dynamo.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: the CUDA allocator's, or the process's resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    unit = 1 if sys.platform == "darwin" else 1024  # Linux counts in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _fill(model: GPT) -> None:
    """Fill weights with random values, on the GPU if there is one: the host takes seconds."""
    if model.device.type == "cpu":
        model.init_weights(0)
        return
    draw = torch.Generator(model.device).manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02, generator=draw)
    model.bank.refresh()


def _step_seconds(stepper: Stepper, rows: int, accumulation: int, steps: int) -> float:
    shape = stepper.model.shape
    draw = torch.Generator().manual_seed(0)
    size = (accumulation, rows, shape.sequence_len + 1)
    blocks = torch.randint(0, shape.vocab_size, size, generator=draw)
    micro_batches = [(b[:, :-1].contiguous(), b[:, 1:].contiguous()) for b in blocks]
    times = []
    for _ in range(WARM_UP_STEPS + steps):
        began = time.perf_counter()
        result = stepper.train_step(
            micro_batches, lr_multiplier=0.0, momentum=0.9, weight_decay=0.0
        )
        result.loss.item()  # waits for the device
        times.append(time.perf_counter() - began)
    stepper.loss_only(micro_batches)
    return statistics.median(times[WARM_UP_STEPS:])
