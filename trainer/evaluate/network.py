"""The model's forward pass over loose tokens: each with a position and a token before it.

Training forwards whole rows. Decoding forwards one token after many, CORE a prompt with several
endings: both say where each token stands and what it may look at, and share the arithmetic of
`block.py`, so there is no second model to keep equal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer import head, parameters
from trainer.block import Attend, block, finish, norm, start
from trainer.model import GPT

LONGEST_FACTOR = 10  # prompts are forwarded whole up to this many times sequence_len (RECIPE 7)
NO_TOKEN = -1


def hidden(
    model: GPT,
    tokens_N: Tensor,
    previous_N: Tensor,
    positions_N: Tensor,
    length: int,
    attend: Callable[[int], Attend],
) -> Tensor:
    """What the head reads for N loose tokens: (N, D) in the compute dtype.

    previous_N: the token before each one, NO_TOKEN at position 0. positions_N < length. attend(i)
    is layer i's attention over q (1, N, H, C), k and v (1, N, K, C).
    """
    rows = {name: model.rows_of(name, tokens_N[None]) for name in model.tables}
    leaf, half = model.bank.leaves, model.shape.n_layer // 2
    x = _smeared(model, rows[parameters.WTE][0], previous_N)[None]
    x0 = kept = x
    cos, sin = (table[positions_N] for table in model.rotary(length))
    lambdas = zip(leaf["resid_lambdas"].unbind(), leaf["x0_lambdas"].unbind(), strict=True)
    for layer, (resid, x0_lambda) in enumerate(lambdas):
        values = rows.get(parameters.value_embed(layer))
        weights = model._block_weights(layer, resid, x0_lambda)
        x = block(x, x0, values, weights, cos, sin, model.shape.head_dim, attend(layer))
        if layer == half:
            kept = x
    return finish(x, kept, leaf["backout_lambda"])[0]


def logits(model: GPT, x_ND: Tensor) -> Tensor:
    """Softcapped float32 logits (N, vocab_size)."""
    return head.softcap(x_ND @ model.head_weight.T)


def window(model: GPT, layer: int) -> int:
    """How many tokens back `layer` looks. Beyond sequence_len even a long layer has a limit.

    nanochat gives `L` layers a window of sequence_len, which shows only in longer prompts: there
    the fixture's losses differ by 4e-3 from those of unlimited attention and agree with this.
    """
    return model.shape.windows[layer]


def attention(q_TC: Tensor, k_SC: Tensor, v_SC: Tensor, mask_TS: Tensor | None) -> Tensor:
    """q (T, H, C) over k, v (S, K, C) -> (T, H, C); without a mask causal, T = S."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q_TC, k_SC, v_SC))
    if k.size(1) != q.size(1):
        k, v = (x.repeat_interleave(q.size(1) // k.size(1), dim=1) for x in (k, v))
    causal = mask_TS is None
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_TS, is_causal=causal)
    return y[0].transpose(0, 1)


def _smeared(model: GPT, rows_ND: Tensor, previous_N: Tensor) -> Tensor:
    """`start` for loose tokens: each as the second of a row of two."""
    leaf = model.bank.leaves
    before = model.rows_of(parameters.WTE, previous_N.clamp_min(0))
    pairs = torch.stack([before, rows_ND], dim=1)
    smeared = start(pairs, leaf[parameters.SMEAR_GATE], leaf["smear_lambda"])[:, 1]
    return torch.where((previous_N == NO_TOKEN)[:, None], norm(rows_ND), smeared)
