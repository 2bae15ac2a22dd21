"""The fastest micro-batch that fits, found by running real steps."""

from __future__ import annotations

import torch

from trainer.contract.plan import Hyperparameters
from trainer.contract.shape import ModelShape

ENOUGH = 0.98  # a larger micro-batch must be 2 % faster to be worth its memory
PAST_THE_BEST = 1.1
MAX_CPU_ROWS = 16


def fastest_rows(
    shape: ModelShape,
    candidates: list[int],
    device: torch.device,
    dtype: torch.dtype,
    hyper: Hyperparameters,
) -> int:
    """The candidate with the least seconds per token; stops where memory ends or nothing is won.

    candidates: rows, ascending. Raises torch.OutOfMemoryError when not even the first fits.
    """
    from trainer.probe import probe_step

    best_rows, best = candidates[0], float("inf")
    for rows in candidates:
        if device.type == "cpu" and rows > MAX_CPU_ROWS:
            break
        found = probe_step(
            shape,
            rows,
            hyper=hyper,
            compute_dtype=dtype,
            device=device,
            steps=3,
            compile=device.type == "cuda",
        )
        if not found.fits:
            if rows == candidates[0]:
                raise torch.OutOfMemoryError(f"not even {rows} rows fit on {device}")
            break
        if found.seconds_per_token < best * ENOUGH:
            best_rows, best = rows, found.seconds_per_token
        elif found.seconds_per_token > best * PAST_THE_BEST:
            break
    return best_rows
