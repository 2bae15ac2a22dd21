"""Lanes: gradients summed in a fixed binary tree, so that bits do not depend on the rank count.

The micro-batches of a step form `lanes` consecutive groups. Each group is summed in order, then
groups pairwise: ((0 + 1) + (2 + 3)). A rank holds consecutive lanes, whose sum is a node of that
tree; `world.sum_` adds the nodes of the ranks by the rest of the tree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass
class _Node:
    bank: Tensor
    tables: dict[str, Tensor]


class Touched(Protocol):
    gradients: dict[str, Tensor]


class LaneSum:
    """Adds up the lanes of one rank. Keeps log2(lanes) copies of the dense gradient."""

    def __init__(self) -> None:
        self._waiting: list[_Node] = []
        self._spare: list[Tensor] = []
        self._closed = 0

    def begin(self) -> None:
        """Start a new step."""
        self._spare += [node.bank for node in self._waiting]
        self._waiting, self._closed = [], 0

    def close(self, bank: Tensor, touched: Touched, *, last: bool) -> None:
        """Add a lane, whose gradients are complete in `bank` and `touched`. After the last one they
        hold the sum of all; otherwise they are saved, and the caller clears `bank` for the next."""
        self._closed += 1
        level = self._closed
        while level % 2 == 0:
            self._add(self._waiting.pop(), bank, touched)
            level //= 2
        if last:
            return
        kept = self._spare.pop() if self._spare else bank.new_empty(bank.shape)
        self._waiting.append(_Node(kept.copy_(bank), touched.gradients))
        touched.gradients = {}

    def _add(self, node: _Node, bank: Tensor, touched: Touched) -> None:
        bank.add_(node.bank)
        self._spare.append(node.bank)
        for name, gradient in node.tables.items():
            touched.gradients[name].add_(gradient)
