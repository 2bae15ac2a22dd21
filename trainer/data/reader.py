"""Document reader in the recipe's order: files, this rank's row groups, 128 at a time, endless.

A document's arrival number is `visit · 2^32 + its index in the file`, where visit counts the files
read since the beginning of the first epoch. Numbers grow in reading order and locate the document,
so a cursor needs no text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.data.errors import DataError
from trainer.data.shards import Shard

DOCUMENTS_PER_READ = 128
_DOCUMENT_BITS = 32
_DOCUMENT = (1 << _DOCUMENT_BITS) - 1


@dataclass(frozen=True)
class Position:
    """Position of the next document: `document` counts within the row group. Epochs from 0."""

    epoch: int = 0
    file: int = 0
    row_group: int = 0
    document: int = 0


@dataclass(frozen=True)
class LastRead:
    """Position of the newest documents of the buffer, in nanochat's terms (epochs from 1)."""

    pq_idx: int = 0
    rg_idx: int = 0
    epoch: int = 1


class DocumentReader:
    """Reads from `open_shard(file index)`; rank r of R reads row groups r, r+R, ... of each."""

    def __init__(
        self,
        open_shard: Callable[[int], Shard],
        num_files: int,
        position: Position | None = None,
        last: LastRead | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._open_shard = open_shard
        self._num_files = num_files
        self._world = world
        self._rank = rank
        self.position = position or Position(row_group=rank)
        self.last = last or LastRead()

    def read(self) -> list[tuple[int, np.ndarray]]:
        """The next 1 to 128 documents of one row group, with arrival numbers."""
        shard, first, end = self._seek()
        here = self.position
        last = min(first + DOCUMENTS_PER_READ, end)
        documents = shard.documents(here.row_group, first, last)
        base = arrival_number(here.epoch, here.file, first, self._num_files)
        self.last = LastRead(here.file, here.row_group, here.epoch + 1)
        self.position = dataclasses.replace(here, document=here.document + last - first)
        return [(base + i, ids) for i, ids in enumerate(documents)]

    def _seek(self) -> tuple[Shard, int, int]:
        """Advance to the next row group that has documents left."""
        visited = 0
        while visited <= self._num_files:
            here = self.position
            shard = self._open_shard(here.file)
            if here.row_group >= shard.num_row_groups:
                visited += 1
                self.position = self._next_file(here)
                continue
            start, end = shard.span(here.row_group)
            if start + here.document < end:
                return shard, start + here.document, end
            self.position = Position(here.epoch, here.file, here.row_group + self._world)
        raise DataError(
            "too_few_row_groups",
            f"rank {self._rank} of {self._world} finds nothing to read: every file has at most "
            f"{self._rank} row groups; use fewer processes or files with more row groups",
        )

    def _next_file(self, here: Position) -> Position:
        if here.file + 1 < self._num_files:
            return Position(here.epoch, here.file + 1, self._rank)
        return Position(here.epoch + 1, 0, self._rank)


def arrival_number(epoch: int, file: int, document: int, num_files: int) -> int:
    """Arrival number of a document: `visit · 2^32 + document`."""
    return ((epoch * num_files + file) << _DOCUMENT_BITS) | document


def origin_of(arrival: int, num_files: int) -> tuple[int, int, int]:
    """(epoch, file, document in the file) of an arrival number."""
    epoch, file = divmod(arrival >> _DOCUMENT_BITS, num_files)
    return epoch, file, arrival & _DOCUMENT


def grouped(arrivals: Sequence[int], num_files: int) -> list[tuple[int, int, list[int]]]:
    """Group consecutive arrivals of the same visit: (epoch, file, documents)."""
    groups: list[tuple[int, int, list[int]]] = []
    for arrival in arrivals:
        epoch, file, document = origin_of(arrival, num_files)
        if not groups or groups[-1][:2] != (epoch, file):
            groups.append((epoch, file, []))
        groups[-1][2].append(document)
    return groups
