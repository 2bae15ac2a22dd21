"""The architecture: the one definition of the forward pass (docs/recipe.md, Model).

Pure functions and a KV cache, which need only torch. Tokens may be whole training rows or loose:
then each has a position, a previous token, and keys visible to it. Faster variants override a part
and are tested to equal it: attention kernels (`attention.py`), products in fp8 and with relu²
(`fp8.py`, `relu2.py`), explicit gradients (`layer.py`, `trunk.py`), inference over loose tokens
(`evaluate/network.py`). Exports contain this file's source (`interop/huggingface.py`).

B rows, T tokens, D model width, H heads, K key/value heads, C head_dim, W = K C, S keys,
V vocabulary. Because blocks are pure, one compiled block serves every layer of its kind, so compile
time does not grow with depth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.model.names import (
    BACKOUT_LAMBDA,
    RESID_LAMBDAS,
    SMEAR_GATE,
    SMEAR_LAMBDA,
    WTE,
    X0_LAMBDAS,
    attention_weight,
    mlp_weight,
    value_embed,
)

QK_SCALE = 1.2
VE_GATE_SCALE = 3.0
ROTARY_BASE = 100_000
SOFTCAP = 15.0
NO_TOKEN = -1  # stands for the token before the first one

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q, k, v -> (B, T, H, C)
Linear = Callable[[Tensor, Tensor], Tensor]  # x (..., D) and weight (O, D) -> (..., O)
Mlp = Callable[[Tensor, Tensor, Tensor], Tensor]  # x (..., D), c_fc, mlp_proj -> (..., D)
Piece = Callable[..., Tensor]


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


class TrunkWeights(NamedTuple):
    """Weights of the trunk: everything between the embedding tables and the head."""

    blocks: Sequence[BlockWeights]
    smear_gate: Tensor | None
    smear_lambda: Tensor | None
    backout_lambda: Tensor


def trunk_weights(state: Mapping[str, Tensor]) -> TrunkWeights:
    """The weights of `trunk` from tensors by name: matrices in the compute dtype."""
    lambdas = zip(state[RESID_LAMBDAS].unbind(), state[X0_LAMBDAS].unbind(), strict=True)
    return TrunkWeights(
        [_block_weights(state, layer, *own) for layer, own in enumerate(lambdas)],
        state.get(SMEAR_GATE),
        state.get(SMEAR_LAMBDA),
        state[BACKOUT_LAMBDA],
    )


# --- the network ---------------------------------------------------------------------------------


def hidden(
    tokens_BT: Tensor,
    tables: Mapping[str, Tensor],
    weights: TrunkWeights,
    rotation: tuple[Tensor, Tensor],
    attends: Sequence[Attend],
    previous_BT: Tensor | None = None,
) -> Tensor:
    """Hidden states for the head: (B, T, D) in the compute dtype, that of `rotation`.

    rotation: `rotary` of the tokens' positions. attends: the attention of each layer.
    previous_BT: the previous token of each, NO_TOKEN if there is none; None for whole rows, where
    it is the token to the left.
    """
    dtype = rotation[0].dtype
    before = None
    if previous_BT is not None:
        before = lookup(previous_BT.clamp_min(0), tables[WTE], dtype)
        before = before.masked_fill((previous_BT == NO_TOKEN).unsqueeze(-1), 0.0)
    value_rows = {
        layer: lookup(tokens_BT, tables[value_embed(layer)], dtype)
        for layer in range(len(weights.blocks))
        if value_embed(layer) in tables
    }
    rows = lookup(tokens_BT, tables[WTE], dtype)
    return trunk(rows, value_rows, weights, rotation, attends, before)


def trunk(
    rows_BTD: Tensor,
    value_rows: Mapping[int, Tensor],
    weights: TrunkWeights,
    rotation: tuple[Tensor, Tensor],
    attends: Sequence[Attend],
    before_BTD: Tensor | None = None,
    *,
    start_function: Piece | None = None,
    block_function: Piece | None = None,
    finish_function: Piece | None = None,
) -> Tensor:
    """Transformer trunk: table rows of every token -> (B, T, D) before the head.

    value_rows: rows of the value embeddings (B, T, W) by layer. before_BTD: see `start`. The
    function arguments may be replaced by faster variants.
    """
    enter, layer_of, leave = (
        start_function or start,
        block_function or block,
        finish_function or finish,
    )
    smear = (weights.smear_gate, weights.smear_lambda)
    x = enter(rows_BTD, *smear, *(() if before_BTD is None else (before_BTD,)))
    x0 = kept = x.view_as(x)  # another name: otherwise the compiler specializes layer 0
    cos, sin = rotation
    for layer, own in enumerate(weights.blocks):
        head_dim = 2 * cos.size(-1)
        x = layer_of(x, x0, value_rows.get(layer), own, cos, sin, head_dim, attends[layer])
        if layer == len(weights.blocks) // 2:
            kept = x
    return leave(x, kept, weights.backout_lambda)


def logits(x_BTD: Tensor, head_weight_VD: Tensor) -> Tensor:
    """LM head: softcapped float32 logits (B, T, V)."""
    return softcap(x_BTD @ head_weight_VD.T)


def softcap(z: Tensor) -> Tensor:
    """Logit softcap: 15 tanh(z / 15) in float32."""
    return SOFTCAP * torch.tanh(z.float() / SOFTCAP)


# --- its pieces ----------------------------------------------------------------------------------


def lookup(tokens_BT: Tensor, table_VW: Tensor, compute_dtype: torch.dtype) -> Tensor:
    """Embedding lookup: rows of a table (B, T, W) in the compute dtype."""
    return F.embedding(tokens_BT, table_VW).to(compute_dtype)


def norm(x: Tensor) -> Tensor:
    """RMS norm over the last dimension, without a weight."""
    return F.rms_norm(x, (x.size(-1),))


def start(
    rows_BTD: Tensor,
    smear_gate: Tensor | None,
    smear_lambda: Tensor | None,
    before_BTD: Tensor | None = None,
) -> Tensor:
    """Normed embedding (RMS norm); with a smear, a gated part of the previous position is added.

    before_BTD: the row of each previous token, zeros if there is none; None for whole rows, where
    it is the row to the left.
    """
    x = norm(rows_BTD)
    if smear_gate is None or smear_lambda is None:
        return x
    if before_BTD is not None:
        return smear(x, norm(before_BTD), smear_gate, smear_lambda)
    smeared = smear(x[:, 1:], x[:, :-1], smear_gate, smear_lambda)
    return torch.cat([x[:, :1], smeared], dim=1)


def smear(x: Tensor, before: Tensor, smear_gate: Tensor, smear_lambda: Tensor) -> Tensor:
    """Smear: x plus a gated part of `before`, the previous position; both (..., D)."""
    gate = torch.sigmoid(F.linear(x[..., : smear_gate.size(-1)], smear_gate))
    return x + smear_lambda.to(x.dtype) * gate * before


def mlp(x_BTD: Tensor, c_fc: Tensor, mlp_proj: Tensor, linear: Linear = F.linear) -> Tensor:
    """MLP with relu²: (B, T, D) -> (B, T, D)."""
    return linear(F.relu(linear(x_BTD, c_fc)).square(), mlp_proj)


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
    """Transformer block (B, T, D) -> (B, T, D): x0 mix, attention, MLP."""
    x = weights.resid * x_BTD + weights.x0 * x0_BTD
    x = x + _attention(norm(x), value_rows_BTW, weights, cos_TC, sin_TC, head_dim, attend, linear)
    return x + mlp(norm(x), weights.c_fc, weights.mlp_proj)


def finish(x_BTD: Tensor, kept_BTD: Tensor, backout_lambda: Tensor) -> Tensor:
    """Final norm (B, T, D), after subtracting the kept middle layer (backout)."""
    return norm(x_BTD - backout_lambda.to(x_BTD.dtype) * kept_BTD)


def rotary(positions_T: Tensor, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """RoPE (rotary embedding): cos and sin, each (T, C/2), of the positions; angles in float32."""
    j = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions_T.device)
    frequencies = 1.0 / (ROTARY_BASE ** (j / head_dim))
    angles = torch.outer(positions_T.float(), frequencies)
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
        channels = weights.ve_gate.size(-1)
        gate = torch.sigmoid(F.linear(h_BTD[..., :channels], weights.ve_gate))
        v_BTKC = v_BTKC + VE_GATE_SCALE * gate.unsqueeze(-1) * value_rows_BTW.view_as(v_BTKC)
    q_BTHC = norm(_rotate(q_BTHC, cos_TC, sin_TC)) * QK_SCALE
    k_BTKC = norm(_rotate(k_BTKC, cos_TC, sin_TC)) * QK_SCALE
    y_BTHC = attend(q_BTHC, k_BTKC, v_BTKC)
    return linear(y_BTHC.reshape(rows, length, -1), weights.attn_proj)


def _rotate(x_BTHC: Tensor, cos_TC: Tensor, sin_TC: Tensor) -> Tensor:
    cos, sin = cos_TC[None, :, None, :], sin_TC[None, :, None, :]
    first, second = x_BTHC.chunk(2, dim=-1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], dim=-1)


def _block_weights(
    state: Mapping[str, Tensor], layer: int, resid: Tensor, x0: Tensor
) -> BlockWeights:
    return BlockWeights(
        c_q=state[attention_weight(layer, "c_q")],
        c_k=state[attention_weight(layer, "c_k")],
        c_v=state[attention_weight(layer, "c_v")],
        attn_proj=state[attention_weight(layer, "c_proj")],
        c_fc=state[mlp_weight(layer, "c_fc")],
        mlp_proj=state[mlp_weight(layer, "c_proj")],
        resid=resid,
        x0=x0,
        ve_gate=state.get(attention_weight(layer, "ve_gate")),
    )


# --- attention and its mask ----------------------------------------------------------------------


def causal(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
    """Attention within whole rows: key j is visible to query i when 0 <= i - j <= window."""
    positions = torch.arange(q.size(1), device=q.device)
    return attention(q, k, v, visible(positions, positions, window))


def visible(queries_T: Tensor, keys_S: Tensor, window: int | None) -> Tensor:
    """Attention mask by positions of queries and keys: (T, S). window None: the whole past."""
    back = queries_T[:, None] - keys_S[None, :]
    return (back >= 0) if window is None else (back >= 0) & (back <= window)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention: q (B, T, H, C), k, v (B, S, K, C) -> (B, T, H, C); K divides H; scale 1 / sqrt(C).

    mask: boolean or additive, for (B, H, T, S); None: causal, which requires T = S.
    """
    q, k, v = heads_first(q, k, v)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    return y.transpose(1, 2)


def heads_first(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, H, T, C) each, key/value heads repeated for grouped queries."""
    groups = q.size(2) // k.size(2)
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


class KVCache:
    """KV cache: keys and values (B, capacity, 2, K, C) of each layer for B sequences of one length;
    grows by doubling. For inference: no gradients flow through it.

    Exact: value embeddings depend only on the token, the smear only on the previous token, and a
    window is a slice of the cache. A pass reads `positions` and `previous`, calls `attend` in each
    layer, and ends with `advance`.
    """

    def __init__(self, windows: Sequence[int], capacity: int = 64) -> None:
        self.windows, self.capacity, self.length = tuple(windows), max(1, capacity), 0
        self._last_B1: Tensor | None = None
        self._kv: list[Tensor | None] = [None] * len(self.windows)

    def positions(self, tokens_BT: Tensor) -> Tensor:
        """Positions (T,) of the tokens to be appended."""
        end = self.length + tokens_BT.size(1)
        return torch.arange(self.length, end, device=tokens_BT.device)

    def previous(self, tokens_BT: Tensor) -> Tensor:
        """The previous token of each: (B, T), NO_TOKEN before the first position."""
        last = self._last_B1
        if last is None:
            last = torch.full_like(tokens_BT[:, :1], NO_TOKEN)
        return torch.cat([last, tokens_BT[:, :-1]], dim=1)

    def attends(self) -> list[Attend]:
        """The attention function of each layer, for `trunk`."""

        def of(layer: int) -> Attend:
            return lambda q, k, v: self.attend(layer, q, k, v)

        return [of(layer) for layer in range(len(self.windows))]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Append k and v, and attend; q may be of only their last tokens."""
        end, window = self.length + k.size(1), self.windows[layer]
        kv = self._kv[layer] = self._with_room(self._kv[layer], k, end)
        kv[:, self.length : end, 0], kv[:, self.length : end, 1] = k, v
        start = end - q.size(1)
        first = max(0, start - window)
        keys, values = kv[:, first:end].unbind(2)
        return attention(q, keys, values, _cut(start, end, first, window, q.device))

    def advance(self, tokens_BT: Tensor) -> None:
        """Finish a pass: the tokens are appended in every layer."""
        self.length, self._last_B1 = self.length + tokens_BT.size(1), tokens_BT[:, -1:]

    def copy(self) -> KVCache:
        """An independent copy of the cache."""
        other = KVCache(self.windows, self.capacity)
        other.length, other._last_B1 = self.length, self._last_B1
        other._kv = [None if kv is None else kv.clone() for kv in self._kv]
        return other

    def _with_room(self, kv: Tensor | None, like: Tensor, length: int) -> Tensor:
        if kv is None:
            kv = like.new_empty(like.size(0), self.capacity, 2, *like.shape[2:])
        while kv.size(1) < length:
            kv = torch.cat([kv, torch.empty_like(kv)], dim=1)
        return kv


def _cut(start: int, end: int, first: int, window: int, device: torch.device) -> Tensor | None:
    """The mask of queries [start, end) over keys [first, end); None if plainly causal.

    One query sees all keys from `first` on; torch's causal flag requires as many queries as keys.
    """
    if start == first and end - start <= window + 1:
        return None
    positions = torch.arange(first, end, device=device)
    return visible(positions[start - first :], positions, window)
