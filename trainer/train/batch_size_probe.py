"""The fastest micro-batch that fits, found by running real steps."""

from __future__ import annotations

import torch

from trainer.contract.events import Probed
from trainer.contract.plan import Hyperparameters
from trainer.contract.shape import ModelShape

ENOUGH = 0.98  # a larger micro-batch must be 2 % faster to be worth its memory
PAST_THE_BEST = 1.1
MAX_CPU_ROWS = 16
STEPS = 3


def fastest_rows(
    shape: ModelShape,
    candidates: list[int],
    device: torch.device,
    dtype: torch.dtype,
    fp8: bool,
    hyper: Hyperparameters,
) -> tuple[int, list[Probed]]:
    """The candidate with the least seconds per token, and what each that was tried did.

    Stops where memory ends or nothing is won. candidates: rows, ascending. Raises
    torch.OutOfMemoryError when not even the first fits.
    """
    from trainer.train.step_probe import probe_step

    best_rows, best = candidates[0], float("inf")
    tried: list[Probed] = []
    for rows in candidates:
        if device.type == "cpu" and rows > MAX_CPU_ROWS:
            break
        found = probe_step(
            shape,
            rows,
            hyper=hyper,
            compute_dtype=dtype,
            fp8=fp8,
            device=device,
            steps=STEPS,
            compile=device.type == "cuda",
        )
        if not found.fits:
            if rows == candidates[0]:
                raise torch.OutOfMemoryError(f"not even {rows} rows fit on {device}")
            break
        rate = 1 / found.seconds_per_token
        peak = found.peak_bytes if device.type == "cuda" else None
        tried.append(Probed(rows=rows, steps=STEPS, tokens_per_second=rate, peak_bytes=peak))
        if found.seconds_per_token < best * ENOUGH:
            best_rows, best = rows, found.seconds_per_token
        elif found.seconds_per_token > best * PAST_THE_BEST:
            break
    return best_rows, tried
