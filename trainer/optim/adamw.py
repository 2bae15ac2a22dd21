"""AdamW for tables, head and scalars: decoupled decay first, bias-corrected (docs/recipe.md)."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-10


def adamw_update(
    p: Tensor,
    g: Tensor,
    slots: Tensor | None,
    m: Tensor,
    v: Tensor,
    lr: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    bias1: Tensor,
    bias2: Tensor,
    weight_decay: Tensor,
    finite: Tensor | None,
) -> None:
    """One AdamW step in place; arithmetic in float32, p, m and v in their storage dtypes.

    The rates are 0-d or one per element. slots: with touched-rows gradients (`embedding.py`), the
    row of `g` that each row of p reads; compiled, the dense gradient never exists.
    Where `finite` is false, all values stay unchanged.
    """
    gradient = (g if slots is None else g[slots]).float()
    m_new = torch.lerp(m.float(), gradient, 1 - beta1)
    v_new = torch.lerp(v.float(), gradient * gradient, 1 - beta2)
    denominator = (v_new / bias2).sqrt() + EPS
    p_new = p.float() * (1 - lr * weight_decay) - (lr / bias1) * m_new / denominator
    for target, value in ((p, p_new), (m, m_new), (v, v_new)):
        stored = value.to(target.dtype)
        target.copy_(stored if finite is None else torch.where(finite, stored, target))


def adamw_from_count(
    p: Tensor,
    g: Tensor,
    slots: Tensor | None,
    m: Tensor,
    v: Tensor,
    lr: Tensor,
    beta1: Tensor,
    beta2: Tensor,
    log_beta1: Tensor,
    log_beta2: Tensor,
    weight_decay: Tensor,
    lr_multiplier: Tensor,
    count: Tensor,
    finite: Tensor | None,
) -> None:
    """`adamw_update` that also computes the rates of a step: compiled, they are part of its kernel
    instead of eleven extra launches. lr_multiplier, count: 0-d."""
    bias = (bias_correction(log_beta1, count), bias_correction(log_beta2, count))
    rates = (lr * lr_multiplier, beta1, beta2, *bias, weight_decay)
    adamw_update(p, g, slots, m, v, *rates, finite)


def bias_correction(log_beta: Tensor, count: Tensor) -> Tensor:
    """1 - beta^count, by expm1: the plain formula loses digits of float32 at the first steps."""
    return -torch.expm1(count.float() * log_beta)
