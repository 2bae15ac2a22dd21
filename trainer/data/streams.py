"""Streams: documents of a split packed by independent streams (docs/recipe.md, Text to batches).

Stream r of R reads row groups r, r+R, ... of each file and packs them with a buffer of its own, as
process r of a nanochat run does. Rows come from the streams in turn, so a step of S rows takes S/R
of each, however many rows make a micro-batch.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from trainer.data import cursor as cursors
from trainer.data.cursor import CursorSnapshot
from trainer.data.packing import Packer, Packing, Remainder
from trainer.data.prepared import PreparedData
from trainer.data.reader import DocumentReader, LastRead, Position, arrival_number
from trainer.data.shardset import ShardSet


@dataclass(frozen=True)
class StreamsSnapshot:
    """Position after a batch: of each stream, and the total number of rows taken."""

    packing: str
    streams: tuple[CursorSnapshot, ...]
    rows: int

    @property
    def last(self) -> LastRead:
        """Position of the newest documents of the first stream."""
        return self.streams[0].last

    def cursor(self) -> dict[str, Any]:
        return cursors.joined(self.packing, [s.cursor() for s in self.streams], self.rows)


class PackedDocuments:
    """The rows of a split for the loader: see `loader.RowSource`.

    One stream may stand for `rank` of `world` processes, each with a loader of its own.
    """

    def __init__(
        self,
        prepared: PreparedData,
        split: Literal["train", "val"],
        packing: Packing,
        streams: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        assert streams == 1 or world == 1, "several processes have one stream each"
        self.packing: Packing = packing
        self._streams = streams
        self._ranks = range(streams) if streams > 1 else range(rank, rank + 1)
        self.world = max(streams, world)
        self.shards = ShardSet(prepared, split)

    def first_cursor(self) -> dict[str, Any]:
        parts = [cursors.first_cursor(self.packing, r, self.world) for r in self._ranks]
        return cursors.joined(self.packing, parts, 0)

    def check(self, cursor: dict[str, Any]) -> None:
        for part in cursors.parts_of(cursor, self._streams):
            cursors.check(part, self.packing, self.world, len(self.shards.files))

    def begin(self, cursor: dict[str, Any]) -> _RowMaker:
        return _RowMaker(self, cursor, self._ranks)

    def cancel(self) -> None:
        self.shards.cancel()

    def resume(self) -> None:
        self.shards.resume()

    def close(self) -> None:
        self.shards.close()


class _RowMaker:
    """Takes rows from the streams in turn, from a cursor on."""

    def __init__(self, source: PackedDocuments, cursor: dict[str, Any], ranks: range) -> None:
        parts = cursors.parts_of(cursor, len(ranks))
        self._packing, self._rows = source.packing, cursor["rows"]
        self._streams = [_Stream(source, p, r) for p, r in zip(parts, ranks, strict=True)]

    def fill(self, tokens_2BT: np.ndarray) -> tuple[str, StreamsSnapshot]:
        _, rows, columns = tokens_2BT.shape
        rows_BT1 = np.empty((rows, columns + 1), dtype=np.uint32)
        for row in rows_BT1:
            self._streams[self._rows % len(self._streams)].fill(row)
            self._rows += 1
        tokens_2BT[0] = rows_BT1[:, :-1]
        tokens_2BT[1] = rows_BT1[:, 1:]
        digest = hashlib.sha256(rows_BT1.astype("<u4", copy=False).data).hexdigest()
        snapshots = tuple(stream.snapshot() for stream in self._streams)
        return digest, StreamsSnapshot(self._packing, snapshots, self._rows)


class _Stream:
    """One stream: a packer with its reader."""

    def __init__(self, source: PackedDocuments, cursor: dict[str, Any], rank: int) -> None:
        self._source, self._cursor = source, cursor
        self._shards = source.shards
        self._num_files = len(source.shards.files)
        position, last = Position(**cursor["position"]), LastRead(**cursor["last"])
        opened = partial(source.shards.open, stream=rank)
        self._reader = DocumentReader(opened, self._num_files, position, last, rank, source.world)
        self._packer = Packer(self._reader.read, source.packing)
        self._rows = cursor["rows"]
        self._restored = False

    def fill(self, row: np.ndarray) -> None:
        """Fill one row (T+1,) completely."""
        if not self._restored:  # here, not in the constructor: it may have to tokenize
            self._restore()
        self._packer.fill(row)
        self._rows += 1

    def snapshot(self) -> CursorSnapshot:
        if not self._restored:
            self._restore()
        remainder: Remainder | None = self._packer.remainder
        return CursorSnapshot(
            packing=self._source.packing,
            world=self._source.world,
            num_files=self._num_files,
            position=self._reader.position,
            last=self._reader.last,
            keys=self._packer.buffered(),
            remainder=remainder,
            rows=self._rows,
        )

    def _restore(self) -> None:
        for epoch, file, documents in self._cursor["buffer"]:
            numbers = [arrival_number(epoch, file, n, self._num_files) for n in documents]
            self._packer.add(zip(numbers, self._shards.pick(file, documents), strict=True))
        if self._cursor["remainder"] is not None:
            epoch, file, document, offset = self._cursor["remainder"]
            ids = self._shards.pick(file, [document])[0][offset:]
            number = arrival_number(epoch, file, document, self._num_files)
            self._packer.remainder = (number, offset, ids)
        self._restored = True
