"""FP8 matrix products of the trunk, on GPUs with twice the rate of bf16.

Activations and weights are rounded to e4m3 (3 bits of mantissa), gradients to e5m2 (2 bits, more
range), each tensor with one scale that maps its largest magnitude to the format's largest number,
computed each time without host synchronization (Micikevicius et al. 2022, arXiv 2209.05433). Every
size of a product must be a multiple of spec.FP8_TILE. Sums are float32; results are bf16, as is
everything else: weights, gates, attention, head, updates.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model.architecture import block, mlp

_WHOLE = F.ScalingType.TensorWise  # pyright: ignore[reportPrivateImportUsage]


def block_fp8(*args: Any) -> Tensor:
    """`architecture.block` with its six matrix products in 8 bits."""
    return block(*args, linear=linear, mlp=partial(mlp, linear=linear))


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., D) times weight (O, D) -> (..., O), dtype of x; for backward both are kept in fp8.

    Non-finite values in x, the weight or a gradient make the result NaN.
    """
    result = _Product.apply(x.flatten(0, -2), weight)
    return result.view(*x.shape[:-1], len(weight))


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight_OD: Tensor) -> Tensor:
        x8, x_scale = quantize(x_ND, torch.float8_e4m3fn)
        w8, w_scale = quantize(weight_OD, torch.float8_e4m3fn)
        ctx.save_for_backward(x8, x_scale, w8, w_scale)
        return _scaled_mm(x8, w8.t(), x_scale, w_scale, x_ND.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x8, x_scale, w8, w_scale = ctx.saved_tensors
        dtype = gradients[0].dtype
        g8, g_scale = quantize(gradients[0], torch.float8_e5m2)
        for_x = _scaled_mm(g8, _columns(w8), g_scale, w_scale, dtype)
        rows_ON = g8.t().contiguous()
        return for_x, _scaled_mm(rows_ON, _columns(x8), g_scale, x_scale, dtype)


def quantize(x_ND: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """fp8 quantization: (x / scale as `dtype`, row-major; scale, float32, 0-d). Zeros stay 0."""
    largest = x_ND.abs().amax().float()
    scale = (largest / torch.finfo(dtype).max).clamp_min(torch.finfo(torch.float32).tiny)
    return (x_ND.float() / scale).to(dtype).contiguous(), scale


def _scaled_mm(
    a: Tensor, b: Tensor, a_scale: Tensor, b_scale: Tensor, dtype: torch.dtype
) -> Tensor:
    """a (N, K) by rows times b (K, M) by columns."""
    return F.scaled_mm(a, b, a_scale, _WHOLE, b_scale, _WHOLE, output_dtype=dtype)


def _columns(x: Tensor) -> Tensor:
    """The same matrix in column-major order."""
    return x.t().contiguous().t()
