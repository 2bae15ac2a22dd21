"""Scoring many items in one forward pass, what their prompts share computed once.

The choices of an item begin alike: a question and its examples, often nine tenths of the tokens.
An item becomes a tree, a trunk followed by one branch per prompt; the trees of many items lie one
after another as loose tokens, so that matrix products see thousands of tokens and none is padding.
Only attention goes tree by tree. Logits are made for scored tokens alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.block import Attend
from trainer.evaluate import network
from trainer.evaluate.core_prompts import Item, common_prefix
from trainer.model import GPT

LOGITS_TOKENS = 512  # scored tokens whose logits exist at a time


@dataclass(frozen=True)
class Scores:
    """Per prompt of an item: mean loss (nats) over its span, and the most likely tokens there."""

    mean_losses: list[float]
    argmax: list[list[int]]


@dataclass(frozen=True)
class Tree:
    """One item's tokens: trunk, then branches. All arrays (N,) unless said otherwise.

    branch: -1 in the trunk, else which branch. scored, targets (S,): the tokens that predict, and
    what they should predict, prompt after prompt; span_lengths says how many each prompt has.
    """

    ids: np.ndarray
    previous: np.ndarray
    positions: np.ndarray
    branch: np.ndarray
    trunk: int
    scored: np.ndarray
    targets: np.ndarray
    span_lengths: tuple[int, ...]


def tree(item: Item) -> Tree:
    """An item's prompts with their common beginning once."""
    sequences = [prompt.ids.astype(np.int64) for prompt in item.prompts]
    trunk = common_prefix(sequences) if len(sequences) > 1 else len(sequences[0])
    starts = np.cumsum([trunk, *(len(s) - trunk for s in sequences)])
    parts = [sequences[0][:trunk], *(s[trunk:] for s in sequences)]
    before = [np.concatenate([[network.NO_TOKEN], s[:-1]]) for s in sequences]
    scored = [
        _places(np.arange(p.start - 1, p.end - 1), trunk, start)
        for p, start in zip(item.prompts, starts, strict=False)
    ]
    return Tree(
        ids=np.concatenate(parts),
        previous=np.concatenate([before[0][:trunk], *(b[trunk:] for b in before)]),
        positions=np.concatenate([np.arange(trunk), *(np.arange(trunk, len(s)) for s in sequences)]),
        branch=np.repeat(np.arange(-1, len(sequences)), [len(part) for part in parts]),
        trunk=trunk,
        scored=np.concatenate(scored),
        targets=np.concatenate([p.ids[p.start : p.end].astype(np.int64) for p in item.prompts]),
        span_lengths=tuple(p.end - p.start for p in item.prompts),
    )


@torch.no_grad()
def score(model: GPT, trees: list[Tree]) -> list[Scores]:
    """The scores of each tree, in order."""

    def joined(name: str) -> Tensor:
        return torch.from_numpy(np.concatenate([getattr(t, name) for t in trees])).to(model.device)

    length = max(int(t.positions.max()) + 1 for t in trees)
    attend = _TreeAttention(model, trees)
    x_ND = network.hidden(
        model, joined("ids"), joined("previous"), joined("positions"), length, attend.of_layer
    )
    offsets = np.cumsum([0, *(len(t.ids) for t in trees)])
    places = np.concatenate([t.scored + at for t, at in zip(trees, offsets, strict=False)])
    losses, best = _losses(model, x_ND, torch.from_numpy(places).to(model.device), joined("targets"))
    return _by_tree(trees, losses, best)


def _places(tokens: np.ndarray, trunk: int, branch_start: int) -> np.ndarray:
    """Where tokens of one prompt lie in its tree."""
    return np.where(tokens < trunk, tokens, tokens - trunk + branch_start)


def _losses(
    model: GPT, x_ND: Tensor, places_S: Tensor, targets_S: Tensor
) -> tuple[Tensor, list[int]]:
    """Float32 loss and most likely token for every scored token, on the host."""
    losses, best = [], []
    for at in range(0, len(places_S), LOGITS_TOKENS):
        chunk = slice(at, at + LOGITS_TOKENS)
        logits_SV = network.logits(model, x_ND[places_S[chunk]])
        losses.append(F.cross_entropy(logits_SV, targets_S[chunk], reduction="none"))
        best.append(logits_SV.argmax(dim=-1))
    return torch.cat(losses).cpu(), torch.cat(best).tolist()


def _by_tree(trees: list[Tree], losses: Tensor, best: list[int]) -> list[Scores]:
    scores, at = [], 0
    for t in trees:
        means, tokens = [], []
        for length in t.span_lengths:
            means.append(losses[at : at + length].mean().item())
            tokens.append(best[at : at + length])
            at += length
        scores.append(Scores(means, tokens))
    return scores


class _TreeAttention:
    """Attention within each tree: a branch sees the trunk and itself, within the layer's window."""

    def __init__(self, model: GPT, trees: list[Tree]) -> None:
        self.model, self.trees = model, trees
        self.masks: dict[tuple[int, int], tuple[Tensor | None, Tensor | None]] = {}

    def of_layer(self, layer: int) -> Attend:
        window = network.window(self.model, layer)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            y, at = torch.empty_like(q), 0
            for i, t in enumerate(self.trees):
                middle, end = at + t.trunk, at + len(t.ids)
                trunk_mask, branch_mask = self._masks(i, window)
                if t.trunk:
                    y[0, at:middle] = network.attention(
                        q[0, at:middle], k[0, at:middle], v[0, at:middle], trunk_mask
                    )
                if middle < end:
                    y[0, middle:end] = network.attention(
                        q[0, middle:end], k[0, at:end], v[0, at:end], branch_mask
                    )
                at = end
            return y

        return attend

    def _masks(self, index: int, window: int) -> tuple[Tensor | None, Tensor | None]:
        """(trunk over trunk, branches over everything) of a tree; None where plainly causal."""
        key = (index, window)
        if key not in self.masks:
            t = self.trees[index]
            trunk = None if t.trunk <= window + 1 else _visible(t, 0, t.trunk, window)
            branches = _visible(t, t.trunk, len(t.ids), window)
            self.masks[key] = tuple(
                None if m is None else torch.from_numpy(m).to(self.model.device)
                for m in (trunk, branches)
            )  # type: ignore[assignment]
        return self.masks[key]


def _visible(t: Tree, start: int, end: int, window: int) -> np.ndarray:
    """mask[query, key] of queries [start, end) over all tokens before `end`."""
    back = t.positions[start:end, None] - t.positions[None, :end]
    own = (t.branch[start:end, None] == t.branch[None, :end]) | (t.branch[None, :end] == -1)
    return (back >= 0) & (back <= window) & own
