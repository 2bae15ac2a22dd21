"""The model's forward pass over loose tokens: each with a position and a token before it.

Training forwards whole rows. Decoding forwards one token after many, CORE a prompt with several
endings: both say where each token stands and what it may look at. The arithmetic is that of
`trainer/block.py` without gradients, which allows three savings: query, key and value in one
product, work in place, and in the last layer only the tokens whose prediction is wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer import head, parameters
from trainer.block import QK_SCALE, VE_GATE_SCALE, norm, start
from trainer.contract.shape import VE_GATE_CHANNELS
from trainer.model import GPT

LONGEST_FACTOR = 10  # prompts are forwarded whole up to this many times sequence_len (RECIPE 7)
NO_TOKEN = -1

# (layer, q (M, H, C), k and v (N, 2, K, C)) -> (M, H, C); M <= N, fewer in the last layer
Attend = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Layer:
    """A layer's matrices in the compute dtype; qkv is c_q, c_k and c_v one above the other."""

    qkv: Tensor
    attn_proj: Tensor
    c_fc: Tensor
    mlp_proj: Tensor
    ve_gate: Tensor | None
    values: str
    resid: Tensor
    x0: Tensor


class Network:
    """A model's weights as they are now, laid out for evaluation; later updates are not seen."""

    def __init__(self, model: GPT) -> None:
        self.model, self.shape = model, model.shape
        self._leaf = {name: leaf.detach() for name, leaf in model.bank.leaves.items()}
        self._layers = [self._layer(i) for i in range(model.shape.n_layer)]
        self._head = model.head_weight.detach()

    @torch.no_grad()
    def hidden(
        self,
        tokens_N: Tensor,
        previous_N: Tensor,
        positions_N: Tensor,
        length: int,
        attend: Attend,
        wanted_M: Tensor,
    ) -> Tensor:
        """What the head reads for the wanted ones of N loose tokens: (M, D), compute dtype.

        previous_N: the token before each one, NO_TOKEN at position 0. positions_N < length.
        """
        x = self._smeared(tokens_N, previous_N)
        x0, kept, last = x, x, len(self._layers) - 1
        cos, sin = self._rotary(positions_N, length)
        for i, layer in enumerate(self._layers):
            x = torch.addcmul(layer.resid * x, layer.x0, x0)
            q, kv = self._qkv(layer, norm(x), tokens_N, cos, sin)
            if i == last:
                x, q, kept = (t.index_select(0, wanted_M) for t in (x, q, kept))
            x += F.linear(attend(i, q, kv).flatten(1), layer.attn_proj)
            wide = F.linear(norm(x), layer.c_fc).relu_()
            x += F.linear(wide.mul_(wide), layer.mlp_proj)
            if i == len(self._layers) // 2:
                kept = x
        return norm(x - self._leaf["backout_lambda"].to(x.dtype) * kept)

    @torch.no_grad()
    def logits(self, x_ND: Tensor) -> Tensor:
        """Softcapped float32 logits (N, vocab_size)."""
        z = F.linear(x_ND, self._head).float()
        return z.div_(head.SOFTCAP).tanh_().mul_(head.SOFTCAP)

    def window(self, layer: int) -> int:
        """How many tokens back a layer looks."""
        return self.shape.windows[layer]

    def _layer(self, i: int) -> _Layer:
        attention = {m: self._leaf.get(parameters.attention(i, m)) for m in ("c_q", "c_k", "c_v")}
        return _Layer(
            qkv=torch.cat([w for w in attention.values() if w is not None]),
            attn_proj=self._leaf[parameters.attention(i, "c_proj")],
            c_fc=self._leaf[parameters.mlp(i, "c_fc")],
            mlp_proj=self._leaf[parameters.mlp(i, "c_proj")],
            ve_gate=self._leaf.get(parameters.attention(i, "ve_gate")),
            values=parameters.value_embed(i),
            resid=self._leaf["resid_lambdas"][i],
            x0=self._leaf["x0_lambdas"][i],
        )

    def _smeared(self, tokens_N: Tensor, previous_N: Tensor) -> Tensor:
        """`start` for loose tokens: each as the second of a row of two."""
        rows = self.model.rows_of(parameters.WTE, tokens_N)
        before = self.model.rows_of(parameters.WTE, previous_N.clamp_min(0))
        gate, weight = self._leaf[parameters.SMEAR_GATE], self._leaf["smear_lambda"]
        smeared = start(torch.stack([before, rows], dim=1), gate, weight)[:, 1]
        return torch.where((previous_N == NO_TOKEN)[:, None], norm(rows), smeared)

    def _rotary(self, positions_N: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin (N, 1, C) such that y = x * cos + (x's halves swapped) * sin."""
        cos, sin = (table[positions_N, None] for table in self.model.rotary(length))
        return torch.cat([cos, cos], dim=-1), torch.cat([sin, -sin], dim=-1)

    def _qkv(
        self, layer: _Layer, h_ND: Tensor, tokens_N: Tensor, cos_N1C: Tensor, sin_N1C: Tensor
    ) -> tuple[Tensor, Tensor]:
        """q (N, H, C), k and v (N, 2, K, C)."""
        heads, kv, channels = self.shape.n_head, self.shape.n_kv_head, self.shape.head_dim
        qkv = F.linear(h_ND, layer.qkv).view(len(h_ND), heads + 2 * kv, channels)
        qk, v = qkv[:, : heads + kv], qkv[:, heads + kv :]
        if layer.ve_gate is not None:
            gate = torch.sigmoid(F.linear(h_ND[:, :VE_GATE_CHANNELS], layer.ve_gate))
            rows = self.model.rows_of(layer.values, tokens_N).view_as(v)
            v = torch.addcmul(v, VE_GATE_SCALE * gate.unsqueeze(-1), rows)
        half = channels // 2
        swapped = torch.cat([qk[..., half:], qk[..., :half]], dim=-1)
        qk = norm((qk * cos_N1C).addcmul_(swapped, sin_N1C)).mul_(QK_SCALE)
        return qk[:, :heads], torch.stack([qk[:, heads:], v], dim=1)


def attention(q_RTHC: Tensor, k_RSKC: Tensor, v_RSKC: Tensor, mask: Tensor | None) -> Tensor:
    """Rows of queries over rows of keys -> (R, T, H, C). mask (R or 1, 1, T, S), None: causal."""
    q, k, v = (x.transpose(1, 2) for x in (q_RTHC, k_RSKC, v_RSKC))
    if k.size(1) != q.size(1):
        k, v = (x.repeat_interleave(q.size(1) // k.size(1), dim=1) for x in (k, v))
    scale = 1 / math.sqrt(q.size(-1))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
    return y.transpose(1, 2)
