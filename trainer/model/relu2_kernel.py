"""Triton kernel of `relu2.py`: a matrix product with relu² applied to its result.

Imported where Triton is, which comes with torch for CUDA.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

TILES_TOGETHER = 8  # rows of tiles that run side by side share their weights in the L2 cache


class Tile(NamedTuple):
    """Rows and columns of the result that a program makes, terms of the sum it loads at a time."""

    rows: int
    cols: int
    terms: int
    num_warps: int
    num_stages: int

    @classmethod
    def named(cls, name: str) -> Tile:
        return cls(*map(int, name.split("x")))


def product(a_NK: Tensor, b_KO: Tensor, tile: str, before_NO: Tensor | None = None) -> Tensor:
    """relu(a b)² without `before`; with it, the relu² of before, a b times its derivative.

    a is read row by row, b may be transposed. Sums and relu² are float32, the result has a's dtype.
    K and O must be multiples of the tile's terms and columns.
    """
    rows, columns = a_NK.size(0), b_KO.size(1)
    result_NO = torch.empty((rows, columns), dtype=a_NK.dtype, device=a_NK.device)
    shape = Tile.named(tile)
    programs = triton.cdiv(rows, shape.rows) * (columns // shape.cols)
    _product[(programs,)](  # pyright: ignore[reportIndexIssue]
        a_NK,
        b_KO,
        result_NO if before_NO is None else before_NO,
        result_NO,
        rows,
        **constants(b_KO, before_NO is not None, shape),
        num_warps=shape.num_warps,
        num_stages=shape.num_stages,
    )
    return result_NO


def constants(b_KO: Tensor, backward: bool, tile: Tile) -> dict[str, Any]:
    """Compile-time constants of the kernel."""
    terms, columns = b_KO.shape
    row, column = b_KO.stride()
    return {
        "TERMS": terms,
        "COLUMNS": columns,
        "B_ROW": row,
        "B_COLUMN": column,
        "BACKWARD": backward,
        "TILE_ROWS": tile.rows,
        "TILE_COLUMNS": tile.cols,
        "TILE_TERMS": tile.terms,
        "TOGETHER": TILES_TOGETHER,
    }


@triton.jit
def _product(
    a,
    b,
    before,
    result,
    rows,
    TERMS: tl.constexpr,
    COLUMNS: tl.constexpr,
    B_ROW: tl.constexpr,
    B_COLUMN: tl.constexpr,
    BACKWARD: tl.constexpr,
    TILE_ROWS: tl.constexpr,
    TILE_COLUMNS: tl.constexpr,
    TILE_TERMS: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    across = COLUMNS // TILE_COLUMNS
    group, inside = tl.program_id(0) // (TOGETHER * across), tl.program_id(0) % (TOGETHER * across)
    height = min(tl.cdiv(rows, TILE_ROWS) - group * TOGETHER, TOGETHER)
    row = (group * TOGETHER + inside % height) * TILE_ROWS + tl.arange(0, TILE_ROWS)
    column = inside // height * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS)
    term = tl.arange(0, TILE_TERMS)

    there = row[:, None] < rows
    wide_row = row.to(tl.int64)[:, None]  # rows times columns may be more than 2^31
    from_a = a + wide_row * TERMS + term[None, :]
    from_b = b + term[:, None] * B_ROW + column[None, :] * B_COLUMN
    total = tl.zeros((TILE_ROWS, TILE_COLUMNS), dtype=tl.float32)
    for _ in range(TERMS // TILE_TERMS):
        total = tl.dot(tl.load(from_a, mask=there, other=0.0), tl.load(from_b), total)
        from_a += TILE_TERMS
        from_b += TILE_TERMS * B_ROW

    place = wide_row * COLUMNS + column[None, :]
    if BACKWARD:
        # relu² is the square of what its derivative doubles: nothing else has to be kept
        squares = tl.load(before + place, mask=there, other=0.0).to(tl.float32)
        total = total * (2 * tl.sqrt(squares))
    else:
        total = tl.where(total < 0, 0.0, total)  # unlike a maximum it leaves NaN what it is
        total = total * total
    tl.store(result + place, total.to(result.dtype.element_ty), mask=there)
