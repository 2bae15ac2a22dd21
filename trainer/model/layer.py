"""Forward and backward pass of a layer with explicit gradients, as pure functions.

A layer is split at its attention: `inward` computes q, k and v from x, `outward` the next x from
the attention's result; the part between two attentions can then be compiled as one. The arithmetic
is that of `architecture.py`, which remains the reference: tests/trainer/test_trunk.py compares
every gradient with autograd's.

B rows, T tokens, D model width, H heads, K key/value heads, C head_dim, W = K C. `d_` is the
gradient of the loss for what follows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.contract.shape import VE_GATE_CHANNELS
from trainer.model.architecture import QK_SCALE, VE_GATE_SCALE, lookup

EPS = torch.finfo(torch.float32).eps  # the default of F.rms_norm


class Inward(NamedTuple):
    """A layer's weights before its attention.

    mix: both lambdas (2,), float32. qkv: one to three matrices for q, k and v, in this order.
    ve_gate, table: of the value embedding, if the layer has one.
    """

    mix: Tensor
    qkv: tuple[Tensor, ...]
    ve_gate: Tensor | None
    table: Tensor | None


class Outward(NamedTuple):
    """A layer's weights after its attention."""

    mix: Tensor
    attn_proj: Tensor
    c_fc: Tensor
    mlp_proj: Tensor


class Start(NamedTuple):
    """Weights from tokens to x0. table: wte (V, D). smear_gate (1, channels) in the compute
    dtype, smear_lambda (1,): where the model smears."""

    table: Tensor
    smear_gate: Tensor | None
    smear_lambda: Tensor | None


class Fixed(NamedTuple):
    """Inputs shared by every layer: tokens (B, T), x0 (B, T, D), and the rotation: cos (T, C)
    and sin (T, C), whose second half has the other sign."""

    tokens: Tensor
    x0: Tensor
    cos: Tensor
    sin: Tensor


class Heads(NamedTuple):
    """q (B, T, H, C), k, v (B, T, K, C) for the attention, and what their gradients need:
    the normed input h (B, T, D), each norm's 1 / rms (float32), the value gate (B, T, K)."""

    q: Tensor
    k: Tensor
    v: Tensor
    h: Tensor
    h_inv: Tensor
    q_inv: Tensor
    k_inv: Tensor
    gate: Tensor | None


class Hidden(NamedTuple):
    """The MLP's normed input h (B, T, D), its 1 / rms, relu² (B, T, 4 D); the layer's result x."""

    h: Tensor
    h_inv: Tensor
    relu2: Tensor
    x: Tensor


class DStart(NamedTuple):
    """Gradients: of the table's rows (B, T, D), of the smear's gate (1, channels) and lambda (1,),
    in float32."""

    rows: Tensor
    smear_gate: Tensor | None
    smear_lambda: Tensor | None


class DInward(NamedTuple):
    """Gradients: of q, k and v side by side (B, T, D + 2 W), of x, of x0 summed so far, of both
    lambdas (2,), of the value rows (B, T, W), of the gate before its sigmoid (B, T, K)."""

    qkv: Tensor
    x: Tensor
    x0: Tensor
    mix: Tensor
    rows: Tensor | None
    gate: Tensor | None


class DOutward(NamedTuple):
    """Gradients: of c_fc's result (B, T, 4 D), of the sum that the MLP's norm reads (B, T, D), of
    the attention's result (B, T, D)."""

    fc: Tensor
    u: Tensor
    y: Tensor


Relu2 = Callable[[Tensor, Tensor], Tensor]  # h, c_fc -> relu(h c_fcᵀ)²
Relu2Gradient = Callable[[Tensor, Tensor, Tensor], Tensor]  # d_x, mlp_proj, relu² -> d_fc


# --- forward -------------------------------------------------------------------------------------


def start(tokens: Tensor, weights: Start, dtype: torch.dtype) -> Tensor:
    """x0 (B, T, D) in the compute dtype."""
    n, _ = _norm(lookup(tokens, weights.table, dtype))
    if weights.smear_gate is None or weights.smear_lambda is None:
        return n
    share = weights.smear_lambda * _smear_gate(n, weights.smear_gate)
    return torch.cat([n[:, :1], (n[:, 1:] + share * n[:, :-1]).to(dtype)], dim=1)


def inward(x: Tensor, fixed: Fixed, weights: Inward, head_dim: int) -> Heads:
    """From x (B, T, D) to q, k and v: x0 mix, RMS norm, projections, value embedding, RoPE."""
    h, h_inv = _norm(_mixed(x, fixed.x0, weights.mix))
    q, k, v = (t.unflatten(-1, (-1, head_dim)) for t in _qkv(h, weights.qkv))
    gate = None
    if weights.table is not None and weights.ve_gate is not None:
        channels = h[..., :VE_GATE_CHANNELS].flatten(0, 1)
        gate = torch.sigmoid(F.linear(channels, weights.ve_gate)).view(*h.shape[:-1], -1)
        rows = lookup(fixed.tokens, weights.table, h.dtype)
        v = v + VE_GATE_SCALE * gate.unsqueeze(-1) * rows.view_as(v)
    q, q_inv = _scaled_norm(q, fixed)
    k, k_inv = _scaled_norm(k, fixed)
    return Heads(q, k, v, h, h_inv, q_inv, k_inv, gate)


def outward(x: Tensor, y: Tensor, fixed: Fixed, weights: Outward, relu2: Relu2) -> Hidden:
    """From the attention's result y (B, T, D) to the next x: output projection and MLP."""
    u = _mixed(x, fixed.x0, weights.mix) + F.linear(y, weights.attn_proj)
    h, h_inv = _norm(u)
    hidden = relu2(h, weights.c_fc)
    return Hidden(h, h_inv, hidden, u + F.linear(hidden, weights.mlp_proj))


def finish(x: Tensor, middle: Tensor, backout_lambda: Tensor) -> tuple[Tensor, Tensor]:
    """The trunk's result (after the final norm) and its 1 / rms. middle: the middle layer's x."""
    return _norm(x - backout_lambda.to(x.dtype) * middle)


def _smear_gate(n: Tensor, gate: Tensor) -> Tensor:
    """Smear gate of all positions but the first: (B, T - 1, 1), float32."""
    return torch.sigmoid((n[:, 1:, : gate.size(-1)].float() * gate).sum(-1, keepdim=True))


def relu2(h: Tensor, c_fc: Tensor) -> Tensor:
    """First product of the MLP with relu²: (B, T, 4 D)."""
    return F.relu(F.linear(h, c_fc)).square()


def _mixed(x: Tensor, x0: Tensor, mix: Tensor) -> Tensor:
    return mix[0] * x + mix[1] * x0


def _norm(x: Tensor) -> tuple[Tensor, Tensor]:
    """RMS norm over the last dimension, and 1 / rms in float32 (..., 1)."""
    inv = _inverse_rms(x)
    return (x * inv).to(x.dtype), inv


def _scaled_norm(x: Tensor, fixed: Fixed) -> tuple[Tensor, Tensor]:
    """QK norm with RoPE: heads (B, T, H, C) rotated, normed, scaled. The rotation preserves the
    norm, so the rotated heads need not be stored before the norm."""
    inv = _inverse_rms(x)
    return (_rotated(x, fixed.cos, fixed.sin) * (QK_SCALE * inv)).to(x.dtype), inv


def _inverse_rms(x: Tensor) -> Tensor:
    return torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPS)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`architecture._rotate` (RoPE) in float32, by swapping both halves: to a compiler that is an
    index, where a concatenation may be a kernel."""
    swapped = x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return x.float() * cos[:, None] + swapped.float() * sin[:, None]


def _qkv(h: Tensor, weights: tuple[Tensor, ...]) -> list[Tensor]:
    """q (B, T, D), k and v (B, T, W) from one, two or three products."""
    width = h.size(-1)
    kv_width = (sum(map(len, weights)) - width) // 2
    sizes, found = [width, kv_width, kv_width], []
    for weight in weights:
        taken = []
        while sum(taken) < len(weight):
            taken.append(sizes.pop(0))
        found += F.linear(h, weight).split(taken, dim=-1)
    return found


# --- backward ------------------------------------------------------------------------------------


def d_finish(
    d_out: Tensor, out: Tensor, inv: Tensor, middle: Tensor, backout_lambda: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the last layer's x, of the middle layer's, of the lambda (1,)."""
    d_u = _d_norm(d_out, out, inv)
    d_lambda = -_dot(d_u, middle).view(1)
    return d_u.to(out.dtype), (-backout_lambda * d_u).to(out.dtype), d_lambda


def d_start(d_x0: Tensor, tokens: Tensor, weights: Start) -> DStart:
    """Gradients of `start`. Recomputes the normed rows, which is cheaper than storing them."""
    n, inv = _norm(lookup(tokens, weights.table, d_x0.dtype))
    if weights.smear_gate is None or weights.smear_lambda is None:
        return DStart(_d_norm(d_x0, n, inv).to(d_x0.dtype), None, None)
    gate, channels = _smear_gate(n, weights.smear_gate), weights.smear_gate.size(-1)
    d_x = d_x0[:, 1:].float()
    d_share = (d_x * n[:, :-1]).sum(-1, keepdim=True)
    d_z = weights.smear_lambda * d_share * gate * (1 - gate)
    d_gate = (d_z * n[:, 1:, :channels]).sum((0, 1)).view(1, -1)
    right = F.pad(d_z * weights.smear_gate, (0, n.size(-1) - channels, 1, 0))
    left = F.pad(weights.smear_lambda * gate * d_x, (0, 0, 0, 1))
    d_rows = _d_norm(d_x0.float() + right + left, n, inv)
    return DStart(d_rows.to(d_x0.dtype), d_gate, (d_share * gate).sum().view(1))


def d_outward(d_x: Tensor, hidden: Hidden, weights: Outward, d_relu2: Relu2Gradient) -> DOutward:
    """Gradients of `outward`. d_x: of its result (B, T, D)."""
    d_fc = d_relu2(d_x, weights.mlp_proj, hidden.relu2)
    d_u = (d_x + _d_norm(d_fc @ weights.c_fc, hidden.h, hidden.h_inv)).to(d_x.dtype)
    return DOutward(d_fc, d_u, d_u @ weights.attn_proj)


def d_relu2(d_x: Tensor, mlp_proj: Tensor, relu2: Tensor) -> Tensor:
    """Gradient of relu². Its derivative is 2 sqrt(relu²), so its input need not be kept."""
    return (d_x @ mlp_proj) * (2 * relu2.sqrt())


def d_inward(
    d_heads: tuple[Tensor, Tensor, Tensor],
    d_u: Tensor,
    d_x0: Tensor,
    x: Tensor,
    heads: Heads,
    fixed: Fixed,
    weights: Inward,
) -> DInward:
    """Gradients of `inward`. d_u: of the mixed x, by the residual. d_x0: of the layers above."""
    d_q, d_k, d_v = d_heads
    d_rows = d_gate = None
    if weights.table is not None and heads.gate is not None:
        d_rows, d_gate = _d_value(d_v, heads.gate, fixed.tokens, weights.table)
    d_q = _d_scaled_norm(d_q, heads.q, heads.q_inv, fixed)
    d_k = _d_scaled_norm(d_k, heads.k, heads.k_inv, fixed)
    # head by head: a compiler concatenates without a copy only tensors that are not views
    d_qkv = torch.cat([d_q, d_k, d_v], dim=-2).flatten(-2)
    pieces = d_qkv.split([len(w) for w in weights.qkv], dim=-1)
    d_h, *others = (d @ w for d, w in zip(pieces, weights.qkv, strict=True))
    for other in others:
        d_h = d_h + other
    if d_gate is not None and weights.ve_gate is not None:
        d_h = d_h + F.pad(d_gate @ weights.ve_gate, (0, x.size(-1) - VE_GATE_CHANNELS))
    wide = d_u + _d_norm(d_h, heads.h, heads.h_inv)
    d_mix = torch.stack([_dot(wide, x), _dot(wide, fixed.x0)])
    d_x, d_x0 = weights.mix[0] * wide, d_x0 + weights.mix[1] * wide
    return DInward(d_qkv, d_x.to(x.dtype), d_x0.to(x.dtype), d_mix, d_rows, d_gate)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Dot product, per token first: fuses with the kernel that reads the rows; more accurate."""
    return (a * b).sum(-1).sum()


def _d_norm(d_y: Tensor, y: Tensor, inv: Tensor) -> Tensor:
    """Gradient of the input of an RMS norm with result y; float32."""
    wide = d_y.float()
    return inv * (wide - y * (wide * y).mean(-1, keepdim=True))


def _d_scaled_norm(d_y: Tensor, y: Tensor, inv: Tensor, fixed: Fixed) -> Tensor:
    """Gradient of `_scaled_norm` (RoPE, QK norm) with result y (B, T, H, C)."""
    mean = (d_y.float() * y).mean(-1, keepdim=True) / QK_SCALE
    back = (fixed.cos, -fixed.sin)
    turned = QK_SCALE * _rotated(d_y, *back) - _rotated(y, *back) * mean
    return (inv * turned).to(d_y.dtype)


def _d_value(d_v: Tensor, gate: Tensor, tokens: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of the table's rows (B, T, W) and of the gate before its sigmoid (B, T, K)."""
    rows = lookup(tokens, table, d_v.dtype).view_as(d_v)
    d_rows = VE_GATE_SCALE * gate.unsqueeze(-1) * d_v
    d_gate = VE_GATE_SCALE * (d_v.float() * rows).sum(-1) * gate * (1 - gate)
    return d_rows.flatten(-2), d_gate.to(d_v.dtype)
