"""The fastest micro-batch that fits, found by running real steps."""

from __future__ import annotations

import torch

from trainer.contract.shape import ModelShape

ENOUGH = 1.02  # a larger micro-batch must be 2 % faster to be worth its memory


def fastest_rows(
    shape: ModelShape, candidates: list[int], device: torch.device, dtype: torch.dtype
) -> int:
    """The candidate with the least seconds per token; stops where memory ends or nothing is won.

    candidates: rows, ascending. Raises torch.OutOfMemoryError when not even the first fits.
    """
    from trainer.step import probe_step

    best_rows, best = candidates[0], float("inf")
    for rows in candidates:
        try:
            seconds_per_token, _ = probe_step(shape, rows, device=device, compute_dtype=dtype)
        except torch.OutOfMemoryError:
            if rows == candidates[0]:
                raise
            torch.cuda.empty_cache()
            break
        if seconds_per_token * ENOUGH < best:
            best_rows, best = rows, seconds_per_token
        elif seconds_per_token > best * 1.1:
            break
    return best_rows
