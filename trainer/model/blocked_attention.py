"""CPU attention as matrix products over blocks of queries.

torch's flash kernel for the CPU multiplies small tiles at about half the machine's speed. Blocks of
128 queries against all keys visible to them use the matrix library well: 1.2 times as fast forward
and backward at T 512 (1.4 if the weights are kept, which costs memory with the square of T), and a
window saves its share of the work. Only the sums are kept for the backward pass.

q and k are normed and scaled to 1.2 sqrt(C) before (docs/recipe.md, Model), so a score cannot
exceed 1.44 sqrt(C), 33 at the widest head: exp needs no maximum subtracted.

N = B x H, T tokens, C head_dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

QUERY_BLOCK = 128


@torch.library.custom_op("traind::blocked_attention", mutates_args=())
def blocked_attention(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    """Blocked attention: (output (N, T, C), logsumexp of each query's scores (N, T, 1))."""
    y, lse = torch.empty_like(q), q.new_empty(*q.shape[:2], 1)
    scale = 1 / math.sqrt(q.size(-1))
    for at, to, first in _blocks(q.size(1), window):
        e = _scores(q[:, at:to], k[:, first:to], None, scale).exp_()
        _hide(e, at, first, window)
        total = e.sum(dim=-1, keepdim=True)
        y[:, at:to] = torch.bmm(e, v[:, first:to]).div_(total)
        lse[:, at:to] = total.log_()
    return y, lse


@torch.library.custom_op("traind::blocked_attention_backward", mutates_args=())
def _backward(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v. With P the weights: dS = P (dY Vᵀ - rowsum(dY Y))."""
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    scale = 1 / math.sqrt(q.size(-1))
    shared = (gradient * y).sum(dim=-1, keepdim=True)
    for at, to, first in _blocks(q.size(1), window):
        queries, keys, dy = q[:, at:to], k[:, first:to], gradient[:, at:to]
        p = _scores(queries, keys, -lse[:, at:to], scale).exp_()
        _hide(p, at, first, window)
        dv[:, first:to].baddbmm_(p.mT, dy)
        ds = _scores(dy, v[:, first:to], -shared[:, at:to], 1.0).mul_(p)
        dq[:, at:to] = torch.bmm(ds, keys).mul_(scale)
        dk[:, first:to].baddbmm_(ds.mT, queries, alpha=scale)
    return dq, dk, dv


def _blocks(length: int, window: int) -> Iterator[tuple[int, int, int]]:
    """(first query, end, first key) of each block."""
    for at in range(0, length, QUERY_BLOCK):
        yield at, min(at + QUERY_BLOCK, length), max(0, at - window)


def _scores(a: Tensor, b: Tensor, offset: Tensor | None, scale: float) -> Tensor:
    """Scores scale a bᵀ + offset, in one call."""
    if offset is None:
        return torch.baddbmm(a.new_empty(1, 1, 1), a, b.mT, beta=0, alpha=scale)
    return torch.baddbmm(offset.expand(-1, -1, b.size(1)), a, b.mT, alpha=scale)


def _hide(e: Tensor, at: int, first: int, window: int) -> None:
    """Zero the keys hidden from a query: the future, and those more than `window` back."""
    e[:, :, at - first :].tril_()
    if first > 0 or at + e.size(1) - 1 > window:
        e.triu_(at - first - window)


@blocked_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, window: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), q.new_empty(*q.shape[:2], 1)


@_backward.register_fake
def _(
    gradient: Tensor, q: Tensor, k: Tensor, v: Tensor, y: Tensor, lse: Tensor, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _keep(ctx, inputs, output) -> None:
    q, k, v, ctx.window = inputs
    ctx.save_for_backward(q, k, v, *output)


def _differentiate(ctx, dy: Tensor, _: Tensor):
    return *_backward(dy.contiguous(), *ctx.saved_tensors, ctx.window), None


blocked_attention.register_autograd(_differentiate, setup_context=_keep)
