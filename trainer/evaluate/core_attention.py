"""Attention over trees of tokens: each query attends only to its own branch.

A run is a number of consecutive tokens of one prompt. At the beginning of the prompt it is a causal
square, for which torch's kernels need no mask. Elsewhere it is cut into blocks of queries; the keys
of a block are the tokens before its end in that prompt, as far back as the layer's window. Squares
and blocks of about equal size, from all trees of a batch, are attended together. The cost is little
more than the visible pairs: with a mask over a whole tree each choice would read the keys of all
others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.evaluate import network
from trainer.model.architecture import attention

QUERY_BLOCK = 64
QUERY_STEP, KEY_STEP = 16, 32  # sizes are rounded up to these, so that few groups are needed


class TokenRun(NamedTuple):
    """Queries at positions [start, end) of one prompt.

    Its token t is stored at `trunk_at + t` if t < trunk, else at `branch_at + t - trunk`.
    """

    start: int
    end: int
    trunk: int
    trunk_at: int
    branch_at: int

    @property
    def places(self) -> np.ndarray:
        """Storage indices of its queries: (end - start,)."""
        return _places(np.arange(self.start, self.end), self)


class _Blocks(NamedTuple):
    """Queries at positions [begin, end) of a run's prompt, numbered from `number` in the output.

    Their keys begin at position `low`. square: the queries begin there too, and only the causal
    order hides keys. All (B,), the last three as in TokenRun.
    """

    number: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    low: np.ndarray
    square: np.ndarray
    trunk: np.ndarray
    trunk_at: np.ndarray
    branch_at: np.ndarray


@dataclass(frozen=True)
class _Group:
    """R blocks padded to one size: queries (R x T,), keys (R x S,).

    mask (R, 1, T, S), or one for all of them (1, 1, T, S); None: causal.
    """

    num_blocks: int
    queries: Tensor
    keys: Tensor
    mask: Tensor | None


class TokenRunAttention:
    """Attention over runs: attend(layer, q, kv), with the queries of `runs`, in the last layer of
    `last_runs`."""

    def __init__(
        self, net: network.Network, runs: list[TokenRun], last_runs: list[TokenRun]
    ) -> None:
        self.net, self.runs, self.last_runs = net, runs, last_runs
        self.last = net.shape.n_layer - 1
        self.plans: dict[tuple[int, bool], tuple[list[_Group], Tensor]] = {}

    def __call__(self, layer: int, q: Tensor, kv: Tensor) -> Tensor:
        groups, order = self._plan(layer, q)
        parts = []
        for g in groups:
            keys, values = _rows(kv, g.keys, g.num_blocks).unbind(2)
            y = attention(_rows(q, g.queries, g.num_blocks), keys, values, g.mask)
            parts.append(y.reshape(len(g.queries), -1))
        return torch.cat(parts).index_select(0, order).view(-1, *q.shape[1:])

    def _plan(self, layer: int, like: Tensor) -> tuple[list[_Group], Tensor]:
        """The groups, and the index of each query in their joined outputs."""
        window, is_last = self.net.window(layer), layer == self.last
        if (window, is_last) not in self.plans:
            blocks = _blocks(self.last_runs if is_last else self.runs, window)
            self.plans[window, is_last] = _grouped(blocks, window, like)
        return self.plans[window, is_last]


def _rows(x: Tensor, places: Tensor, num_blocks: int) -> Tensor:
    """x[places] (R, T, …), by copies of whole rows, several times faster than indexing."""
    return x.index_select(0, places).view(num_blocks, -1, *x.shape[1:])


def _blocks(runs: list[TokenRun], window: int) -> _Blocks:
    start, end, *lies = np.array(runs, dtype=np.int64).T
    square = (start == 0) & (end <= window + 1)
    size = np.where(square, np.maximum(end, 1), QUERY_BLOCK)
    count = _up(end - start, size) // size
    run = np.repeat(np.arange(len(runs)), count)
    begin = start[run] + (np.arange(len(run)) - _before(count)[run]) * size[run]
    return _Blocks(
        _before(end - start)[run] + begin - start[run],
        begin,
        np.minimum(begin + size[run], end[run]),
        np.maximum(begin - window, 0),
        square[run],
        *(column[run] for column in lies),
    )


def _grouped(blocks: _Blocks, window: int, like: Tensor) -> tuple[list[_Group], Tensor]:
    """Group blocks by padded size. A square is padded at its end, queries and keys alike."""
    num_keys = _up(blocks.end - blocks.low, KEY_STEP)
    length = np.where(blocks.square, num_keys, _up(blocks.end - blocks.begin, QUERY_STEP))
    sizes = np.stack([length, num_keys, blocks.square])
    kinds, kind = np.unique(sizes, axis=1, return_inverse=True)
    visible = _visible(window, like)
    groups, numbers = [], []
    for i, (length, num_keys, square) in enumerate(kinds.T.tolist()):
        members = _Blocks(*(column[kind == i, None] for column in blocks))
        queries, keys = _numbers(members, length).ravel(), _keys(members, num_keys).ravel()
        mask = None if square else _mask(members, length, num_keys, visible)
        on_device = _on(like.device, queries), _on(like.device, keys)
        groups.append(_Group(len(members.number), *on_device, mask))
        numbers.append(queries)
    joined = np.concatenate(numbers)
    order = np.empty(joined.max() + 1, dtype=np.int64)
    order[joined[::-1]] = np.arange(len(joined))[::-1]  # the first place of a number wins
    return groups, _on(like.device, order)


def _numbers(blocks: _Blocks, length: int) -> np.ndarray:
    """Query numbers (R, T). Padding repeats a block's last query; its output is ignored."""
    return blocks.number + np.minimum(np.arange(length), blocks.end - blocks.begin - 1)


def _keys(blocks: _Blocks, num_keys: int) -> np.ndarray:
    """Key indices (R, S). Padding repeats a block's last key and is hidden by the causal order."""
    return _places(np.minimum(blocks.low + np.arange(num_keys), blocks.end - 1), blocks)


def _places(tokens: np.ndarray, of: TokenRun | _Blocks) -> np.ndarray:
    return tokens + np.where(tokens < of.trunk, of.trunk_at, of.branch_at - of.trunk)


def _visible(window: int, like: Tensor) -> Tensor:
    """Additive mask row: added to the scores of the query at index window + QUERY_BLOCK.

    The row of a query at a smaller index is the slice that begins later by the difference.
    """
    back = window + QUERY_BLOCK - torch.arange(2 * (window + QUERY_BLOCK) + KEY_STEP)
    hidden = (back < 0) | (back > window)
    return torch.zeros(hidden.shape).masked_fill_(hidden, float("-inf")).to(like)


def _mask(blocks: _Blocks, length: int, num_keys: int, visible: Tensor) -> Tensor:
    """Additive mask (R, 1, T, S), or (1, 1, T, S) if it is the same for all blocks."""
    first = blocks.begin - blocks.low
    if (first == first[0]).all():  # far into a prompt all of them are
        first = first[:1]
    seen = _on(visible.device, first + np.arange(length))
    cuts = (len(visible) - KEY_STEP) // 2 - seen
    rows = visible.unfold(0, num_keys, 1).index_select(0, cuts.flatten())
    return rows.view(len(seen), 1, length, num_keys)


def _on(device: torch.device, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(device)


def _before(counts: np.ndarray) -> np.ndarray:
    """Exclusive cumulative sum."""
    return np.cumsum(counts) - counts


def _up(size: np.ndarray, step: np.ndarray | int) -> np.ndarray:
    return -(-size // step) * step
