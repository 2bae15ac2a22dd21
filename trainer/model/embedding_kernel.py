"""Triton kernel of `embedding.py`: accumulates the gradients of a table's rows.

Imported where Triton is, which comes with torch for CUDA.
"""

from __future__ import annotations

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

TOKENS_TOGETHER = 16  # loads in flight: a frequent token has a thousand rows to sum
COLUMNS = 256


def add_rows(total_UW: Tensor, gradient_NW: Tensor, sorted_N: Tensor, order_N: Tensor) -> None:
    """total[slot] += the sum of the gradients whose slot it is, in the order of tokens.

    total: float32. sorted_N: slots in ascending order; order_N: the token each of them is of.
    Each row has one program that sums it, so repeats have the same bits.
    """
    count, width = gradient_NW.shape
    _add_rows[(count, triton.cdiv(width, COLUMNS))](  # pyright: ignore[reportIndexIssue]
        total_UW,
        gradient_NW,
        sorted_N,
        order_N,
        count,
        gradient_NW.stride(0),
        WIDTH=width,
        TOKENS=TOKENS_TOGETHER,
        COLUMNS=COLUMNS,
        num_warps=4,
    )


@triton.jit
def _add_rows(
    total,
    gradient,
    by_slot,
    order,
    count,
    stride,
    WIDTH: tl.constexpr,
    TOKENS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    first = tl.program_id(0)
    slot = tl.load(by_slot + first)
    before = tl.load(by_slot + first - 1, mask=first > 0, other=-1)
    if before != slot:  # the first token of its slot sums all of them
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
        inside = column < WIDTH
        summed = tl.zeros((COLUMNS,), dtype=tl.float32)
        position = first
        more = True
        while more:
            place = position + tl.arange(0, TOKENS)
            there = place < count
            own = there & (tl.load(by_slot + place, mask=there, other=-1) == slot)
            token = tl.load(order + place, mask=own, other=0)
            rows = gradient + token[:, None] * stride + column[None, :]
            values = tl.load(rows, mask=own[:, None] & inside[None, :], other=0.0)
            summed += tl.sum(values.to(tl.float32), axis=0)
            position += TOKENS
            more = tl.sum(own.to(tl.int32), axis=0) == TOKENS
        row = total + slot * WIDTH + column
        tl.store(row, tl.load(row, mask=inside, other=0.0) + summed, mask=inside)
