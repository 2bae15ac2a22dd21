"""KV cache of one sequence, for decoding one token at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.evaluate.network import Network
from trainer.model import architecture

SCORED_TOKENS = 256  # tokens at a time: their logits take about 30 MB


class Cache:
    """A growing sequence: its `architecture.KVCache`, filled by the faster `Network`."""

    def __init__(self, net: Network, capacity: int = 64) -> None:
        self.net, self._kept = net, architecture.KVCache(net.shape.windows, capacity)

    def extend(self, tokens: list[int]) -> Tensor:
        """Append tokens; returns the logits (vocab_size,) for the next one."""
        return self.net.logits(self._append(tokens, wanted=1))[0]

    def score(self, tokens: list[int]) -> Iterator[Tensor]:
        """Append tokens in chunks; yields the logits (vocab_size,) after each token."""
        for start in range(0, len(tokens), SCORED_TOKENS):
            some = tokens[start : start + SCORED_TOKENS]
            yield from self.net.logits(self._append(some, wanted=len(some)))

    def copy(self) -> Cache:
        """An independent copy of the cache."""
        other = Cache(self.net)
        other._kept = self._kept.copy()
        return other

    def _append(self, tokens: list[int], wanted: int) -> Tensor:
        """Append tokens; returns the head's input for the last `wanted` of them: (wanted, D)."""
        device, kept = self.net.model.device, self._kept
        tokens_1T = torch.tensor([tokens], device=device)
        x_MD = self.net.hidden(
            tokens_1T[0],
            kept.previous(tokens_1T)[0],
            kept.positions(tokens_1T),
            kept.length + len(tokens),
            self._attend,
            torch.arange(len(tokens) - wanted, len(tokens), device=device),
        )
        kept.advance(tokens_1T)
        return x_MD

    def _attend(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        return self._kept.attend(layer, q[None], *kv[None].unbind(2))[0]
