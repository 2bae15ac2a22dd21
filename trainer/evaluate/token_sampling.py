"""Token sampling: temperature, top-k, top-p and penalties."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

SMALLEST_TEMPERATURE = 1e-6  # logits are at most 15: divided by less they exceed float32


@dataclass(frozen=True)
class Rules:
    """Sampling settings. temperature: 0, or practically 0, takes the likeliest token. top_k: keeps
    the k likeliest tokens; top_p: the fewest of them with total probability p.

    A token drawn c > 0 times before loses presence_penalty + c * frequency_penalty of its logit;
    bias is added to it, by token.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)


def choose(
    logits_V: Tensor, rules: Rules, drawn: Mapping[int, int], randomness: torch.Generator
) -> int:
    """Sample one token. drawn: number of times each was drawn before.

    Runs on the CPU, so that a seed gives the same tokens on every device up to rounding.
    """
    logits_V = _shifted(logits_V, rules, drawn)
    if rules.temperature < SMALLEST_TEMPERATURE:
        return int(logits_V.argmax())
    logits_V = _most_likely(logits_V.float().cpu() / rules.temperature, rules)
    return int(torch.multinomial(logits_V.softmax(dim=-1), 1, generator=randomness))


def _shifted(logits_V: Tensor, rules: Rules, drawn: Mapping[int, int]) -> Tensor:
    """The logits with bias and penalties; the same tensor if there are none."""
    shifts = dict(rules.bias)
    if rules.presence_penalty or rules.frequency_penalty:
        for token, times in drawn.items():
            penalty = rules.presence_penalty + times * rules.frequency_penalty
            shifts[token] = shifts.get(token, 0.0) - penalty
    if not shifts:
        return logits_V
    logits_V = logits_V.float().cpu().clone()
    logits_V[list(shifts)] += torch.tensor(list(shifts.values()))
    return logits_V


def _most_likely(logits_V: Tensor, rules: Rules) -> Tensor:
    """The logits with tokens beyond top_k and top_p masked."""
    if rules.top_k is not None and rules.top_k < len(logits_V):
        least = logits_V.topk(rules.top_k).values[-1]
        logits_V = logits_V.masked_fill(logits_V < least, float("-inf"))
    if rules.top_p < 1:
        chances, tokens = logits_V.softmax(dim=-1).sort(descending=True)
        before = chances.cumsum(dim=-1) - chances  # total probability of the likelier ones
        logits_V = logits_V.index_fill(0, tokens[before >= rules.top_p], float("-inf"))
    return logits_V
