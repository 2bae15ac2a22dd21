"""Decoding one token at a time: the keys and values of a sequence, kept per layer.

Exact with respect to the forward pass without a cache: value embeddings depend on the token alone,
the smear needs only the token before, and a window is a cut of the cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.block import Attend
from trainer.evaluate import network
from trainer.model import GPT


class Cache:
    """Keys and values (2, capacity, K, C) of each layer for one sequence; grows by doubling."""

    def __init__(self, model: GPT, capacity: int = 64) -> None:
        self.model, self.length, self.last_token = model, 0, network.NO_TOKEN
        shape = model.shape
        self._kv = [
            torch.empty(
                (2, capacity, shape.n_kv_head, shape.head_dim),
                dtype=model.compute_dtype,
                device=model.device,
            )
            for _ in range(shape.n_layer)
        ]

    def extend(self, tokens: list[int]) -> Tensor:
        """Append tokens; the logits (vocab_size,) for the one that follows them."""
        device, count = self.model.device, len(tokens)
        ids_N = torch.tensor(tokens, device=device)
        previous_N = torch.tensor([self.last_token, *tokens[:-1]], device=device)
        end = self.length + count
        positions_N = torch.arange(self.length, end, device=device)
        self._grow_to(end)
        x_ND = network.hidden(self.model, ids_N, previous_N, positions_N, end, self._attend)
        self.length, self.last_token = end, tokens[-1]
        return network.logits(self.model, x_ND[-1:])[0]

    def _attend(self, layer: int) -> Attend:
        start, limit = self.length, network.window(self.model, layer)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            end = start + q.size(1)
            self._kv[layer][0, start:end], self._kv[layer][1, start:end] = k[0], v[0]
            first = max(0, start - limit)
            keys, values = self._kv[layer][:, first:end]
            mask = _visible(start, end, first, limit, q.device)
            return network.attention(q[0], keys, values, mask)[None]

        return attend

    def _grow_to(self, length: int) -> None:
        while self._kv[0].size(1) < length:
            self._kv = [torch.cat([kv, torch.empty_like(kv)], dim=1) for kv in self._kv]


def _visible(start: int, end: int, first: int, limit: int, device: torch.device) -> Tensor | None:
    """mask[query, key] of queries [start, end) over keys [first, end); None where causal says it."""
    if start == first and end - start <= limit + 1:
        return None
    back = (
        torch.arange(start, end, device=device)[:, None]
        - torch.arange(first, end, device=device)[None, :]
    )
    return (back >= 0) & (back <= limit)
