"""Attention over trees of loose tokens: in blocks of queries, with only the keys they may see.

A block is a few consecutive tokens of one prompt; its keys are the tokens before them in that
prompt, as far back as the layer's window. Blocks of about one size, from all trees of a batch, are
attended together. The work is that of the visible pairs and little more: a mask over a whole tree
would cost each choice the keys of all the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.evaluate import network

QUERY_BLOCK = 32  # of 32, 48, 64, 128 the fastest on a CPU at the fixture's shape
QUERY_STEP, KEY_STEP = 16, 32  # sizes are rounded up to these, so that there are few of them


@dataclass(frozen=True)
class Run:
    """Queries at positions [start, end) of one prompt, whose token t lies at place `path[t]`."""

    path: np.ndarray
    start: int
    end: int


@dataclass(frozen=True)
class _Block:
    """number: of its first query in the output. Query j sees keys up to first + j."""

    number: int
    length: int
    first: int
    keys: np.ndarray


@dataclass(frozen=True)
class _Group:
    """Blocks padded to one size: queries (R, T), keys (R, S), mask (R, 1, T, S) to be added."""

    queries: Tensor
    keys: Tensor
    mask: Tensor


class RunAttention:
    """attend(layer, q, kv): queries are those of `runs`, in the last layer those of `last_runs`."""

    def __init__(self, net: network.Network, runs: list[Run], last_runs: list[Run]) -> None:
        self.net, self.runs, self.last_runs = net, runs, last_runs
        self.last = net.shape.n_layer - 1
        self.plans: dict[tuple[int, bool], tuple[list[_Group], Tensor]] = {}

    def __call__(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        groups, order = self._plan(layer, q)
        parts = []
        for g in groups:
            keys, values = _rows(kv, g.keys).unbind(2)
            y = network.attention(_rows(q, g.queries), keys, values, g.mask)
            parts.append(y.flatten(2).flatten(0, 1))
        return torch.cat(parts).index_select(0, order).view(-1, *q.shape[1:])

    def _plan(self, layer: int, like: Tensor) -> tuple[list[_Group], Tensor]:
        """The groups, and where in their joined outputs each query's own lies."""
        window, is_last = self.net.window(layer), layer == self.last
        if (window, is_last) not in self.plans:
            blocks = _blocks(self.last_runs if is_last else self.runs, window)
            self.plans[window, is_last] = _grouped(blocks, window, like)
        return self.plans[window, is_last]


def _rows(x: Tensor, places_RT: Tensor) -> Tensor:
    """x[places]: whole rows are copied at once, several times faster than general indexing."""
    return x.index_select(0, places_RT.flatten()).view(*places_RT.shape, *x.shape[1:])


def _blocks(runs: Iterable[Run], window: int) -> Iterator[_Block]:
    number = 0
    for run in runs:
        for start in range(run.start, run.end, QUERY_BLOCK):
            end = min(start + QUERY_BLOCK, run.end)
            low = max(0, start - window)
            yield _Block(number, end - start, start - low, run.path[low:end])
            number += end - start


def _grouped(blocks: Iterable[_Block], window: int, like: Tensor) -> tuple[list[_Group], Tensor]:
    by_size: defaultdict[tuple[int, int], list[_Block]] = defaultdict(list)
    for block in blocks:
        by_size[_up(block.length, QUERY_STEP), _up(len(block.keys), KEY_STEP)].append(block)
    places = [_places(members, size[0]) for size, members in by_size.items()]
    order = np.argsort(np.concatenate([p.ravel() for p in places]), kind="stable")
    order = order[: sum(b.length for members in by_size.values() for b in members)]
    groups = []
    for size, members in by_size.items():
        groups.append(_group(members, *size, window, like))
    return groups, torch.from_numpy(order).to(like.device)


def _places(blocks: list[_Block], length: int) -> np.ndarray:
    """Number of the query at each place (R, T); padding comes after every number."""
    j = np.arange(length)[None, :]
    number, count = (
        np.array([getattr(b, n) for b in blocks])[:, None] for n in ("number", "length")
    )
    return np.where(j < count, number + j, np.iinfo(np.int64).max)


def _group(blocks: list[_Block], length: int, num_keys: int, window: int, like: Tensor) -> _Group:
    """Padding queries repeat the block's last one; padding keys are masked."""
    number, count, first = (
        np.array([getattr(b, name) for b in blocks])[:, None]
        for name in ("number", "length", "first")
    )
    j = np.minimum(np.arange(length)[None, :], count - 1)
    keys = np.zeros((len(blocks), num_keys), dtype=np.int64)
    for row, block in zip(keys, blocks, strict=True):
        row[: len(block.keys)] = block.keys
    back = (first + j)[:, :, None] - np.arange(num_keys)[None, None, :]
    hidden = torch.from_numpy((back < 0) | (back > window)).to(like.device)[:, None]
    mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    return _Group(
        queries=torch.from_numpy(number + j).to(like.device),
        keys=torch.from_numpy(keys).to(like.device),
        mask=mask.masked_fill_(hidden, float("-inf")),
    )


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
