"""Optimizer sharding: Muon's stacks are cut into one piece per lane, assigned to the ranks.

The pieces depend only on the number of lanes and each is one call, so that the bits do not depend
on the number of ranks. No piece of several is a single matrix: the libraries compute the product of
one matrix on another path than those of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shards:
    """pieces: [begin, end) matrices of a stack, one per lane. rank: this process's, of `ranks`."""

    pieces: tuple[tuple[int, int], ...]
    rank: int = 0
    ranks: int = 1

    def of(self, rank: int) -> tuple[tuple[int, int], ...]:
        """The consecutive pieces of a rank."""
        each = len(self.pieces) // self.ranks
        return self.pieces[rank * each : (rank + 1) * each]

    @property
    def own(self) -> tuple[tuple[int, int], ...]:
        return tuple(piece for piece in self.of(self.rank) if piece[0] < piece[1])

    @property
    def first(self) -> int:
        """Index of the rank's first own matrix."""
        return self.of(self.rank)[0][0]

    def counts(self) -> list[int]:
        """Number of matrices of each rank."""
        return [self.of(r)[-1][1] - self.of(r)[0][0] for r in range(self.ranks)]


def cut(count: int, lanes: int) -> tuple[tuple[int, int], ...]:
    """Cut `count` matrices into `lanes` consecutive pieces; the last ones may be empty."""
    each = max(2, -(-count // lanes))
    ends = [min(count, each * (i + 1)) for i in range(lanes)]
    if count % each == 1 and count > 1:  # a last piece of one matrix joins the piece before
        ends = [count if end >= count - 1 else end for end in ends]
    begins = [0, *ends[:-1]]
    return tuple(zip(begins, ends, strict=True))
