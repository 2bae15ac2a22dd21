"""Decoding loop: draws tokens one by one from the logits of a KV cache."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.evaluate.kvcache import Cache
from trainer.evaluate.token_sampling import Rules, choose


class Drawn(NamedTuple):
    """A sampled token, and the logits (vocab_size,) that it was drawn from."""

    token: int
    logits_V: Tensor


def draw(
    cache: Cache, logits_V: Tensor, rules: Rules, max_tokens: int, randomness: torch.Generator
) -> Iterator[Drawn]:
    """Sample up to max_tokens tokens. logits_V: those after the cache's content.

    A token is appended to the cache when the next one is requested; the caller decides what ends
    the text.
    """
    counts: Counter[int] = Counter()
    for left in range(max_tokens, 0, -1):
        token = choose(logits_V, rules, counts, randomness)
        counts[token] += 1
        yield Drawn(token, logits_V)
        if left > 1:
            logits_V = cache.extend([token])
