"""Attention with an explicit backward pass, for the trunk with explicit gradients.

Any backend provides one by autograd, in the calling thread: autograd's engine passes each call to a
device thread and waits for it. torch's flash kernel is called directly as an operator, which takes
a third of the host's time and runs the same kernels.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainer.contract.shape import ModelShape
from trainer.model import attention
from trainer.model.attention import Attend

Gradients = tuple[Tensor, Tensor, Tensor]  # of q, k and v
Back = Callable[[Tensor], Gradients]  # gradient of the result -> gradients
AttendBack = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Back]]
FLASH_HEAD_DIM = 8  # torch pads heads of sizes that are not a multiple of this


def choose(
    backend: str, window: int | None, shape: ModelShape, dtype: torch.dtype, device: torch.device
) -> AttendBack:
    """q (B, T, H, C), k, v (B, T, K, C) -> (the result (B, T, H, C), its backward pass)."""
    is_whole = window is None or window >= shape.sequence_len - 1
    is_plain = shape.n_head == shape.n_kv_head and shape.head_dim % FLASH_HEAD_DIM == 0
    may_flash = backend == "sdpa" and is_whole and is_plain and device.type == "cuda"
    if may_flash and attention.sdpa_kernel(shape, dtype, device) == "flash_attention":
        return flash
    attend = attention.bind(backend, window)
    return lambda q, k, v: by_autograd(attend, q, k, v)


def by_autograd(attend: Attend, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Back]:
    """Attention and its backward pass by autograd, with a graph even if not needed: kernels may be
    chosen by that."""
    with torch.enable_grad():
        inputs = [t.detach().requires_grad_() for t in (q, k, v)]
        y = attend(*inputs)

    def back(d_y: Tensor) -> Gradients:
        with torch.autograd.set_multithreading_enabled(False):
            d_q, d_k, d_v = torch.autograd.grad(y, inputs, d_y)
        return d_q, d_k, d_v

    return y.detach(), back


def flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Back]:
    """Flash attention by the operators of scaled_dot_product_attention, with its gradient."""
    heads = [t.transpose(1, 2) for t in (q, k, v)]
    kept = torch.ops.aten._scaled_dot_product_flash_attention(*heads, 0.0, True)
    y, logsumexp, *lengths, seed, offset, _ = kept

    def back(d_y: Tensor) -> Gradients:
        gradients = torch.ops.aten._scaled_dot_product_flash_attention_backward(
            d_y.transpose(1, 2), *heads, y, logsumexp, *lengths, 0.0, True, seed, offset
        )
        d_q, d_k, d_v = (t.transpose(1, 2) for t in gradients)
        return d_q, d_k, d_v

    return y.transpose(1, 2), back
