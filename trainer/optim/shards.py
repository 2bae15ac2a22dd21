"""Shards of the optimizer: the stacks of Muon are cut into one piece a lane, each with its rank.

The pieces depend on the number of lanes alone and each is one call, so that the bits do not depend
on how many ranks share them. No piece holds a single matrix of several: products of one matrix take
another path through the libraries than those of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shards:
    """pieces: [begin, end) of the matrices of a stack, one a lane. rank, ranks: whose are whose."""

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
        """Matrices of each rank."""
        return [self.of(r)[-1][1] - self.of(r)[0][0] for r in range(self.ranks)]


def cut(count: int, lanes: int) -> tuple[tuple[int, int], ...]:
    """`count` matrices in `lanes` consecutive pieces, the last ones perhaps empty."""
    each = max(2, -(-count // lanes))
    ends = [min(count, each * (i + 1)) for i in range(lanes)]
    if count % each == 1 and count > 1:  # the last piece would be one matrix: the one before has it
        ends = [count if end >= count - 1 else end for end in ends]
    begins = [0, *ends[:-1]]
    return tuple(zip(begins, ends, strict=True))
