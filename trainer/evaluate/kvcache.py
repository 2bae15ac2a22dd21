"""KV cache: keys and values per layer, for decoding one token at a time.

Exact with respect to the forward pass without a cache: value embeddings depend on the token alone,
the smear needs only the token before, and a window is a cut of the cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.evaluate import network
from trainer.evaluate.network import Network

SCORED_TOKENS = 256  # at a time: their logits are some 30 MB


class Cache:
    """Keys and values (capacity, 2, K, C) of each layer for one sequence; grows by doubling."""

    def __init__(self, net: Network, capacity: int = 64) -> None:
        self.net, self.length, self.last_token = net, 0, network.NO_TOKEN
        shape, model = net.shape, net.model
        size = (capacity, 2, shape.n_kv_head, shape.head_dim)
        self._kv = [
            torch.empty(size, dtype=model.compute_dtype, device=model.device)
            for _ in range(shape.n_layer)
        ]

    def extend(self, tokens: list[int]) -> Tensor:
        """Append tokens; the logits (vocab_size,) for the one that follows them."""
        return self.net.logits(self._append(tokens, wanted=1))[0]

    def score(self, tokens: list[int]) -> Iterator[Tensor]:
        """Append tokens, some at a time; the logits (vocab_size,) after each of them."""
        for start in range(0, len(tokens), SCORED_TOKENS):
            some = tokens[start : start + SCORED_TOKENS]
            yield from self.net.logits(self._append(some, wanted=len(some)))

    def copy(self) -> Cache:
        """Another one that goes on from here by itself."""
        other = Cache(self.net, capacity=0)
        other.length, other.last_token = self.length, self.last_token
        other._kv = [kv.clone() for kv in self._kv]
        return other

    def _append(self, tokens: list[int], wanted: int) -> Tensor:
        """What the head reads for the last `wanted` of them: (wanted, D)."""
        device, end = self.net.model.device, self.length + len(tokens)
        for layer, kv in enumerate(self._kv):
            self._kv[layer] = _grown(kv, end)
        x_MD = self.net.hidden(
            torch.tensor(tokens, device=device),
            torch.tensor([self.last_token, *tokens[:-1]], device=device),
            torch.arange(self.length, end, device=device),
            end,
            self._attend,
            torch.arange(len(tokens) - wanted, len(tokens), device=device),
        )
        self.length, self.last_token = end, tokens[-1]
        return x_MD

    def _attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        """q are the last of the tokens being appended."""
        end, limit = self.length + len(kv), self.net.window(layer)
        self._kv[layer][self.length : end] = kv
        start = end - len(q)
        first = max(0, start - limit)
        keys, values = self._kv[layer][None, first:end].unbind(2)
        mask = _visible(start, end, first, limit, q.device)
        return network.attention(q[None], keys, values, mask)[0]


def _grown(kv: Tensor, length: int) -> Tensor:
    while len(kv) < length:
        kv = torch.cat([kv, torch.empty_like(kv)])
    return kv


def _visible(start: int, end: int, first: int, limit: int, device: torch.device) -> Tensor | None:
    """mask (1, 1, T, S) of queries [start, end) over keys [first, end); None where plainly causal.

    One query sees all keys from `first` on; torch's causal flag wants as many queries as keys.
    """
    if start == first and end - start <= limit + 1:
        return None
    back = (
        torch.arange(start, end, device=device)[:, None]
        - torch.arange(first, end, device=device)[None, :]
    )
    return ((back >= 0) & (back <= limit))[None, None]
