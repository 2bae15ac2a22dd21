"""Batch size probe: the fastest micro-batch that fits, found by running real steps."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch

from trainer.contract.events import Probed
from trainer.contract.plan import Hyperparameters
from trainer.contract.shape import ModelShape

if TYPE_CHECKING:
    from trainer.train.step_probe import ProbeResult

ENOUGH = 0.98  # a larger micro-batch must be 2 % faster to be worth its memory
PAST_THE_BEST = 1.1
MAX_CPU_ROWS = 16
FIRST_GPU_ROWS = 4  # each size compiles separately, and fewer rows are never faster on a GPU
STEPS = 3


def fastest_rows(
    shape: ModelShape,
    candidates: list[int],
    rows_a_step: int,
    device: torch.device,
    dtype: torch.dtype,
    fp8: bool,
    hyper: Hyperparameters,
) -> tuple[int, list[Probed]]:
    """The candidate with the fewest seconds per token, and the results of all that were tried.

    Stops when memory runs out or a size is no faster. candidates: rows, ascending. On a GPU it
    starts with FIRST_GPU_ROWS, and tries smaller sizes only if that does not fit. rows_a_step: rows
    of all micro-batches together; from the second micro-batch on, a step holds more. Raises
    torch.OutOfMemoryError if none fits.
    """
    probe = partial(_probe, shape, rows_a_step, device, dtype, fp8, hyper)
    at_least = FIRST_GPU_ROWS if device.type == "cuda" else 1
    begin = next((i for i, rows in enumerate(candidates) if rows >= at_least), 0)
    best_rows, best = candidates[begin], float("inf")
    tried: list[Probed] = []
    for rows in candidates[begin:]:
        if device.type == "cpu" and rows > MAX_CPU_ROWS:
            break
        found = probe(rows)
        if not found.fits:
            break
        tried.append(_probed(found, device))
        if found.seconds_per_token < best * ENOUGH:
            best_rows, best = rows, found.seconds_per_token
        elif found.seconds_per_token > best * PAST_THE_BEST:
            break
    if tried:
        return best_rows, tried
    for rows in reversed(candidates[:begin]):
        found = probe(rows)
        if found.fits:
            return rows, [_probed(found, device)]
    raise torch.OutOfMemoryError(f"not even {candidates[0]} rows fit on {device}")


def _probe(
    shape: ModelShape,
    rows_a_step: int,
    device: torch.device,
    dtype: torch.dtype,
    fp8: bool,
    hyper: Hyperparameters,
    rows: int,
) -> ProbeResult:
    from trainer.train import step_probe

    return step_probe.probe_step(
        shape,
        rows,
        accumulation=min(2, rows_a_step // rows),
        hyper=hyper,
        compute_dtype=dtype,
        fp8=fp8,
        device=device,
        steps=STEPS,
        compile=device.type == "cuda",
    )


def _probed(found: ProbeResult, device: torch.device) -> Probed:
    return Probed(
        rows=found.rows,
        steps=STEPS,
        tokens_per_second=1 / found.seconds_per_token,
        peak_bytes=found.peak_bytes if device.type == "cuda" else None,
    )
