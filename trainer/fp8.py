"""The trunk's matrix products in 8-bit floats, for cards that do them at twice the rate of bf16.

Activations and weights are rounded to e4m3 (3 bits of mantissa), gradients to e5m2 (2 bits, more
range), each tensor with one scale that takes its largest magnitude to the format's largest number,
found anew each time and without a word to the host (Micikevicius et al. 2022, arXiv 2209.05433).
Every size of a product must be a multiple of spec.FP8_TILE. Sums are float32; results are as in
bf16, and so is all around them: weights, gates, attention, head, updates.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.block import block

_WHOLE = F.ScalingType.TensorWise  # pyright: ignore[reportPrivateImportUsage]


def block_fp8(*args: Any) -> Tensor:
    """`block.block` with its six matrix products in 8 bits."""
    return block(*args, linear=linear)


def linear(x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
    """x (..., D) times each weight (O, D) -> (..., O), dtype of x; x is kept in 8 bits.

    What is not finite in x, a weight or a gradient makes the results NaN.
    """
    return _Linear.apply(x, *weights)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        x8, x_scale = quantize(x.flatten(0, -2), torch.float8_e4m3fn)
        kept, results = [x8, x_scale], []
        for weight in weights:
            w8, w_scale = quantize(weight, torch.float8_e4m3fn)
            result = _product(x8, w8.t(), x_scale, w_scale, x.dtype)
            results.append(result.view(*x.shape[:-1], len(weight)))
            kept += [w8, w_scale]
        ctx.save_for_backward(*kept)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        x8, x_scale, *kept = ctx.saved_tensors
        x_columns = _columns(x8)
        for_x, for_weights = None, []
        for gradient, w8, w_scale in zip(gradients, kept[::2], kept[1::2], strict=True):
            g8, g_scale = quantize(gradient.flatten(0, -2), torch.float8_e5m2)
            part = _product(g8, _columns(w8), g_scale, w_scale, gradient.dtype)
            for_x = part if for_x is None else for_x + part
            rows = g8.t().contiguous()
            for_weights.append(_product(rows, x_columns, g_scale, x_scale, gradient.dtype))
        assert for_x is not None
        return for_x.view(*gradients[0].shape[:-1], -1), *for_weights


def quantize(x_ND: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """(x / scale rounded to `dtype`, row by row; scale, float32, 0-d). Zeros stay zeros."""
    largest = x_ND.abs().amax().float()
    scale = (largest / torch.finfo(dtype).max).clamp_min(torch.finfo(torch.float32).tiny)
    return (x_ND.float() / scale).to(dtype).contiguous(), scale


def _product(a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype) -> Tensor:
    """a (N, K) by rows times b (K, M) by columns."""
    return F.scaled_mm(a, b, a_scale, _WHOLE, b_scale, _WHOLE, output_dtype=dtype)


def _columns(x: Tensor) -> Tensor:
    """The same matrix, column after column in memory."""
    return x.t().contiguous().t()
