"""Attention over trees of loose tokens: each query only with the keys it may see, or nearly.

A run is some consecutive tokens of one prompt. Where it begins the prompt it is a causal square,
which torch's kernels do without a mask. Elsewhere it is cut into blocks of queries; the keys of a
block are the tokens before its end in that prompt, as far back as the layer's window. Squares and
blocks of about one size, from all trees of a batch, are attended together. The work is that of
the visible pairs and little more: a mask over a whole tree would cost each choice the keys of all
the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.evaluate import network

QUERY_BLOCK = 64
QUERY_STEP, KEY_STEP = 16, 32  # sizes are rounded up to these, so that there are few of them


@dataclass(frozen=True)
class Run:
    """Queries at positions [start, end) of one prompt, whose token t lies at place `path[t]`."""

    path: np.ndarray
    start: int
    end: int


@dataclass(frozen=True)
class _Block:
    """`length` queries, numbered from `number` in the output. Query j sees keys up to first + j.

    square: the keys are the queries' own places, and none is hidden but by order.
    """

    number: int
    length: int
    first: int
    keys: np.ndarray
    square: bool


@dataclass(frozen=True)
class _Group:
    """Blocks padded to one size: queries (R, T), keys (R, S).

    mask (R, 1, T, S), or one for all of them (1, 1, T, S); None: causal.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor | None


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
        square = run.start == 0 and run.end <= window + 1
        size = max(1, run.end) if square else QUERY_BLOCK
        for start in range(run.start, run.end, size):
            end = min(start + size, run.end)
            low = max(0, start - window)
            yield _Block(number, end - start, start - low, run.path[low:end], square)
            number += end - start


def _grouped(blocks: Iterable[_Block], window: int, like: Tensor) -> tuple[list[_Group], Tensor]:
    by_size: defaultdict[tuple[int, int, bool], list[_Block]] = defaultdict(list)
    for block in blocks:
        by_size[_size(block)].append(block)
    groups, numbers = [], []
    for size, members in by_size.items():
        made, of_queries = _group(members, size, window, like)
        groups.append(made)
        numbers.append(of_queries)
    joined = np.concatenate(numbers)
    order = np.empty(joined.max() + 1, dtype=np.int64)
    order[joined[::-1]] = np.arange(len(joined))[::-1]  # the first place of a number wins
    return groups, torch.from_numpy(order).to(like.device)


def _size(block: _Block) -> tuple[int, int, bool]:
    """(queries, keys) as padded, and whether a square, which is padded at its end."""
    keys = _up(len(block.keys), KEY_STEP)
    return keys if block.square else _up(block.length, QUERY_STEP), keys, block.square


def _group(
    blocks: list[_Block], size: tuple[int, int, bool], window: int, like: Tensor
) -> tuple[_Group, np.ndarray]:
    """The group, and the number of each of its queries (R x T,).

    Padding queries repeat the block's last one, and what comes of them is not looked at; padding
    keys come after all that a query may see.
    """
    length, num_keys, square = size
    number, count, first, own_keys = (
        np.array(column)[:, None]
        for column in zip(
            *((b.number, b.length, b.first, len(b.keys)) for b in blocks), strict=True
        )
    )
    steps = np.arange(length)[None, :]
    j = np.minimum(steps, count - 1)
    keys = np.zeros((len(blocks), num_keys), dtype=np.int64)
    keys[np.arange(num_keys)[None, :] < own_keys] = np.concatenate([b.keys for b in blocks])
    queries, places = torch.from_numpy(number + j), torch.from_numpy(keys)
    alike = first[:1] if (first == first[0]).all() else first  # deep in a prompt all of them are
    mask = None if square else _mask(torch.from_numpy(alike + steps), num_keys, window, like)
    group = _Group(queries.to(like.device), places.to(like.device), mask)
    return group, (number + j).ravel()


def _mask(seen_RT: Tensor, num_keys: int, window: int, like: Tensor) -> Tensor:
    """(R, 1, T, S), to be added: query (r, t) sees the keys from seen - window to seen."""
    seen = seen_RT.to(like.device, torch.int32)[:, None, :, None]
    key = torch.arange(num_keys, dtype=torch.int32, device=like.device)
    hidden = key > seen
    if num_keys > window + 1:
        hidden |= key < seen - window
    mask = torch.zeros(hidden.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill_(hidden, float("-inf"))


def _up(size: int, step: int) -> int:
    return -(-size // step) * step
