"""The forward pass in pure functions: no state, tensors in and tensors out (docs/recipe.md, Model).

B rows, T tokens, D model width, H heads, K key/value heads, C head_dim. Being pure, one compiled
block serves every layer of its kind, so compile time does not grow with depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.contract.shape import SMEAR_CHANNELS, VE_GATE_CHANNELS
from trainer.model.attention import Attend

QK_SCALE = 1.2
VE_GATE_SCALE = 3.0
ROTARY_BASE = 100_000


class BlockWeights(NamedTuple):
    """One layer's matrices in the compute dtype, and its two float32 lambdas (0-d)."""

    c_q: Tensor
    c_k: Tensor
    c_v: Tensor
    attn_proj: Tensor
    c_fc: Tensor
    mlp_proj: Tensor
    resid: Tensor
    x0: Tensor
    ve_gate: Tensor | None


Linear = Callable[[Tensor, Tensor], Tensor]  # x (..., D) and weight (O, D) -> (..., O)
Mlp = Callable[[Tensor, Tensor, Tensor], Tensor]  # x (..., D), c_fc, mlp_proj -> (..., D)


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),))


def mlp(x_BTD: Tensor, c_fc: Tensor, mlp_proj: Tensor, linear: Linear = F.linear) -> Tensor:
    return linear(F.relu(linear(x_BTD, c_fc)).square(), mlp_proj)


def start(rows_BTD: Tensor, smear_gate: Tensor | None, smear_lambda: Tensor | None) -> Tensor:
    """Normed embedding, each position smeared with a little of the one before it, if at all."""
    x = norm(rows_BTD)
    if smear_gate is None or smear_lambda is None:
        return x
    here = x[:, 1:]
    gate = torch.sigmoid(F.linear(here[..., :SMEAR_CHANNELS], smear_gate))
    smeared = here + smear_lambda.to(x.dtype) * gate * x[:, :-1]
    return torch.cat([x[:, :1], smeared], dim=1)


def block(
    x_BTD: Tensor,
    x0_BTD: Tensor,
    value_rows_BTW: Tensor | None,
    weights: BlockWeights,
    cos_TC: Tensor,
    sin_TC: Tensor,
    head_dim: int,
    attend: Attend,
    linear: Linear = F.linear,
    mlp: Mlp = mlp,
) -> Tensor:
    x = weights.resid * x_BTD + weights.x0 * x0_BTD
    x = x + _attention(norm(x), value_rows_BTW, weights, cos_TC, sin_TC, head_dim, attend, linear)
    return x + mlp(norm(x), weights.c_fc, weights.mlp_proj)


def finish(x_BTD: Tensor, kept_BTD: Tensor, backout_lambda: Tensor) -> Tensor:
    return norm(x_BTD - backout_lambda.to(x_BTD.dtype) * kept_BTD)


def rotary(
    length: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos and sin, each (T, C/2), for positions from 0; angles in float32."""
    j = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
    frequencies = 1.0 / (ROTARY_BASE ** (j / head_dim))
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def _attention(
    h_BTD: Tensor,
    value_rows_BTW: Tensor | None,
    weights: BlockWeights,
    cos_TC: Tensor,
    sin_TC: Tensor,
    head_dim: int,
    attend: Attend,
    linear: Linear,
) -> Tensor:
    rows, length, _ = h_BTD.shape
    q_BTHC = linear(h_BTD, weights.c_q).view(rows, length, -1, head_dim)
    k_BTKC = linear(h_BTD, weights.c_k).view(rows, length, -1, head_dim)
    v_BTKC = linear(h_BTD, weights.c_v).view(rows, length, -1, head_dim)
    if value_rows_BTW is not None and weights.ve_gate is not None:
        gate = torch.sigmoid(F.linear(h_BTD[..., :VE_GATE_CHANNELS], weights.ve_gate))
        v_BTKC = v_BTKC + VE_GATE_SCALE * gate.unsqueeze(-1) * value_rows_BTW.view_as(v_BTKC)
    q_BTHC = norm(_rotate(q_BTHC, cos_TC, sin_TC)) * QK_SCALE
    k_BTKC = norm(_rotate(k_BTKC, cos_TC, sin_TC)) * QK_SCALE
    y_BTHC = attend(q_BTHC, k_BTKC, v_BTKC)
    return linear(y_BTHC.reshape(rows, length, -1), weights.attn_proj)


def _rotate(x_BTHC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    cos, sin = cos_TC[None, :, None, :], sin_TC[None, :, None, :]
    first, second = x_BTHC.chunk(2, dim=-1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)
