"""Triton kernel of `head.py`: softcap, cross entropy and their gradient, in place.

The compiler makes two kernels of it where the gradient goes into the logits, which then leave the
L2 cache in between. Imported where Triton is, which comes with torch for CUDA.
"""

from __future__ import annotations

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

COLUMNS = 4096


def loss_and_gradient_in_place(
    z_NV: Tensor, targets_N: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """`head.chunk_loss_and_gradient` with the gradient written over z (contiguous)."""
    nll_N = torch.empty(len(z_NV), dtype=torch.float32, device=z_NV.device)
    _loss_and_gradient[(len(z_NV),)](  # pyright: ignore[reportIndexIssue]
        z_NV,
        targets_N,
        factor,
        nll_N,
        VOCAB=z_NV.size(1),
        COLUMNS=COLUMNS,
        num_warps=8,
    )
    return nll_N, z_NV


@triton.jit
def _loss_and_gradient(z, targets, factor, nll, VOCAB: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    counts = target != -1
    own = z + row * VOCAB
    # read before the sums below make all threads meet: after them the gradient overwrites it
    target_z = tl.load(own + tl.where(counts, target, 0)).to(tl.float32)

    sums = tl.zeros((COLUMNS,), dtype=tl.float32)
    for start in range(0, VOCAB, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        t = _tanh_15(tl.load(own + column, mask=column < VOCAB, other=0.0))
        sums += tl.where(column < VOCAB, tl.exp(15.0 * t), 0.0)
    total = tl.sum(sums, axis=0)
    tl.store(nll + row, tl.where(counts, tl.log(total) - 15.0 * _tanh_15(target_z), 0.0))

    weight = tl.where(counts, tl.load(factor), 0.0)
    for start in range(0, VOCAB, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        there = column < VOCAB
        t = _tanh_15(tl.load(own + column, mask=there, other=0.0))
        p = tl.exp(15.0 * t) / total
        gradient = (p - (column == target).to(tl.float32)) * (1 - t * t) * weight
        tl.store(own + column, gradient.to(z.dtype.element_ty), mask=there)


@triton.jit
def _tanh_15(z):
    """tanh(z / 15) by exp, as in `head.py`."""
    return 1 - 2 / (tl.exp(z.to(tl.float32) * (2.0 / 15.0)) + 1)
