"""Inference forward pass: `architecture.hidden` for loose tokens, faster without gradients.

Training forwards whole rows. Decoding forwards one token after many, CORE a prompt with several
endings: each token has a position, a previous token and keys visible to it. The results are those
of `trainer/model/architecture.py` (tests/trainer/evaluate/test_network.py). It is faster because it
computes query, key and value in one product, RoPE as one complex product, works in place, on chunks
of tokens whose activations stay in the processor's cache, multiplies by oneDNN if there are enough
rows, and in the last layer computes only the wanted tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.contract.shape import SMEAR_CHANNELS, VE_GATE_CHANNELS
from trainer.model import onednn, parameters
from trainer.model.architecture import NO_TOKEN, QK_SCALE, SOFTCAP, VE_GATE_SCALE, norm
from trainer.model.gpt import GPT

LONGEST_FACTOR = 10  # longest prompt forwarded whole, in sequence_len (docs/recipe.md)
CHUNK_TOKENS_CPU = 2048  # a layer's activations of this many stay in the cache (width 64)
FEWEST_ROWS_ONEDNN = 64  # below, oneDNN's 11 us per call cost more than they save (width 64)

# (layer, q (M, H, C), k and v (N, 2, K, C)) -> (M, H, C); M <= N, fewer in the last layer
TokenAttend = Callable[[int, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class _Layer:
    """A layer's matrices in the compute dtype; qkv is c_q, c_k and c_v concatenated by rows.

    The channels of each query and key head are in the order of `_paired`.
    """

    qkv: Tensor
    attn_proj: Tensor
    c_fc: Tensor
    mlp_proj: Tensor
    ve_gate: Tensor | None
    values: str
    resid: Tensor
    x0: Tensor


class Network:
    """A copy of a model's current weights, laid out for inference; later updates do not apply."""

    def __init__(self, model: GPT) -> None:
        self.model, self.shape = model, model.shape
        self._leaf = {name: leaf.detach() for name, leaf in model.bank.leaves.items()}
        self._layers = [self._layer(i) for i in range(model.shape.n_layer)]
        self.head = model.head_weight.detach()
        model.rotary(LONGEST_FACTOR * model.shape.sequence_len)  # made once, for every thread

    @torch.no_grad()
    def hidden(
        self,
        tokens_N: Tensor,
        previous_N: Tensor,
        positions_N: Tensor,
        length: int,
        attend: TokenAttend,
        wanted_M: Tensor,
    ) -> Tensor:
        """Head input of the wanted ones of N loose tokens: (M, D), compute dtype.

        previous_N: the previous token of each, NO_TOKEN at position 0. positions_N < length.
        """
        x0 = self._smeared(tokens_N, previous_N)
        x, kept, last = x0.clone(), x0, len(self._layers) - 1
        turn = self._turn(positions_N, length)
        for i, layer in enumerate(self._layers):
            q, kv = self._attention_inputs(layer, x, x0, tokens_N, turn)
            if i == last:
                x, q, kept = (t.index_select(0, wanted_M) for t in (x, q, kept))
            self._add_outputs(layer, x, attend(i, q, kv).flatten(1))
            if i == len(self._layers) // 2:
                kept = x if i == last else x.clone()
        return norm(x - self._leaf["backout_lambda"].to(x.dtype) * kept)

    @torch.no_grad()
    def logits(self, x_ND: Tensor) -> Tensor:
        """Softcapped float32 logits (N, vocab_size)."""
        z = _linear(x_ND, self.head).float()
        return z.div_(SOFTCAP).tanh_().mul_(SOFTCAP)

    def window(self, layer: int) -> int:
        """Attention window of a layer, in tokens."""
        return self.shape.windows[layer]

    def _layer(self, i: int) -> _Layer:
        c_q, c_k, c_v = (self._leaf[parameters.attention(i, m)] for m in ("c_q", "c_k", "c_v"))
        channels = self.shape.head_dim
        return _Layer(
            qkv=torch.cat([_paired(c_q, channels), _paired(c_k, channels), c_v]),
            attn_proj=self._leaf[parameters.attention(i, "c_proj")],
            c_fc=self._leaf[parameters.mlp(i, "c_fc")],
            mlp_proj=self._leaf[parameters.mlp(i, "c_proj")],
            ve_gate=self._leaf.get(parameters.attention(i, "ve_gate")),
            values=parameters.value_embed(i),
            resid=self._leaf["resid_lambdas"][i],
            x0=self._leaf["x0_lambdas"][i],
        )

    def _smeared(self, tokens_N: Tensor, previous_N: Tensor) -> Tensor:
        """`start` for loose tokens, each with its previous token, if any."""
        x = norm(self.model.rows_of(parameters.WTE, tokens_N))
        if not self.shape.traits.smear:
            return x
        before = norm(self.model.rows_of(parameters.WTE, previous_N.clamp_min(0)))
        gate = torch.sigmoid(F.linear(x[:, :SMEAR_CHANNELS], self._leaf[parameters.SMEAR_GATE]))
        weight = self._leaf["smear_lambda"].to(x.dtype) * gate
        return x.addcmul_(weight.masked_fill_((previous_N == NO_TOKEN)[:, None], 0.0), before)

    def _turn(self, positions_N: Tensor, length: int) -> Tensor:
        """RoPE as complex factors of each token's channel pairs: (N, 1, C / 2)."""
        cos, sin = (table[positions_N, None].float() for table in self.model.rotary(length))
        return torch.complex(cos, -sin)

    def _attention_inputs(
        self, layer: _Layer, x_ND: Tensor, x0_ND: Tensor, tokens_N: Tensor, turn_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """q (N, H, C), k and v (N, 2, K, C): parts of one tensor. Mixes x in place."""
        heads, kv_heads, channels = self.shape.n_head, self.shape.n_kv_head, self.shape.head_dim
        qkv_N = x_ND.new_empty(len(x_ND), heads + 2 * kv_heads, channels)
        x0_lambda = layer.x0.to(x_ND.dtype)
        for x, x0, tokens, turn, out in self._chunks(x_ND, x0_ND, tokens_N, turn_N, qkv_N):
            h = norm(x.mul_(layer.resid).addcmul_(x0, x0_lambda))
            qkv = _linear(h, layer.qkv).view_as(out)
            qk, v = qkv.split([heads + kv_heads, kv_heads], dim=1)
            qk_out, v_out = out.split([heads + kv_heads, kv_heads], dim=1)
            _turn_and_norm(qk, turn, qk_out)
            if layer.ve_gate is None:
                v_out.copy_(v)
            else:
                gate = torch.sigmoid(F.linear(h[:, :VE_GATE_CHANNELS], layer.ve_gate))
                rows = self.model.rows_of(layer.values, tokens).view_as(v)
                torch.addcmul(v, gate.mul_(VE_GATE_SCALE).unsqueeze(-1), rows, out=v_out)
        return qkv_N[:, :heads], qkv_N[:, heads:].unflatten(1, (2, kv_heads))

    def _add_outputs(self, layer: _Layer, x_MD: Tensor, y_MD: Tensor) -> None:
        """Add the attention's output, then the MLP's, to x in place."""
        for x, y in self._chunks(x_MD, y_MD):
            wide = _linear_relu(norm(x.add_(_linear(y, layer.attn_proj))), layer.c_fc)
            x.add_(_linear(wide.mul_(wide), layer.mlp_proj))

    def _chunks(self, *tensors_N: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Chunks of tokens of all tensors in parallel."""
        whole = max(1, len(tensors_N[0]))
        size = CHUNK_TOKENS_CPU if self.model.device.type == "cpu" else whole
        return zip(*(t.split(size) for t in tensors_N), strict=True)


def _linear(x_ND: Tensor, weight_OD: Tensor) -> Tensor:
    """x_ND weight_ODᵀ."""
    few = len(x_ND) < FEWEST_ROWS_ONEDNN
    return F.linear(x_ND, weight_OD) if few else onednn.linear(x_ND, weight_OD)


def _linear_relu(x_ND: Tensor, weight_OD: Tensor) -> Tensor:
    few = len(x_ND) < FEWEST_ROWS_ONEDNN
    return F.linear(x_ND, weight_OD).relu_() if few else onednn.linear_relu(x_ND, weight_OD)


def _paired(weight: Tensor, channels: int) -> Tensor:
    """Rows of c_q or c_k reordered so that the two channels of a RoPE pair are adjacent.

    A score is a sum over channels, so their order does not matter.
    """
    halves = weight.view(-1, 2, channels // 2, weight.size(-1))
    return halves.transpose(1, 2).reshape_as(weight)


def _turn_and_norm(x_NHC: Tensor, turn_N: Tensor, out_NHC: Tensor) -> None:
    """RoPE and QK norm into `out`: channel pairs as complex numbers times `turn`, then `norm` times
    QK_SCALE.

    The mean over a few channels is a product with equal weights, three times as fast as `mean`.
    """
    turned = x_NHC.float()  # the same tensor where it is float32 already
    pairs = torch.view_as_complex(turned.unflatten(-1, (-1, 2)))
    pairs.mul_(turn_N)
    squares = turned.square()
    weights = squares.new_full(squares.shape[-1:], 1 / squares.size(-1))
    scale = torch.mv(squares.flatten(0, 1), weights).add_(torch.finfo(torch.float32).eps).rsqrt_()
    torch.mul(turned, scale.mul_(QK_SCALE).view(*turned.shape[:-1], 1), out=out_NHC)
