"""Reference best-fit packing, exactly by the recipe, in plain Python lists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq

Encode = Callable[[list[str]], list[list[int]]]
BUFFER_DOCUMENTS = 1000
ENCODE_BATCH = 128


def document_batches(
    shards: list[Path], pq_idx: int = 0, rg_idx: int = 0, epoch: int = 1
) -> Iterator[tuple[list[str], tuple[int, int, int]]]:
    """(up to 128 texts of one row group, (shard, row group, epoch)) forever."""
    first_group = rg_idx
    while True:
        for shard in range(pq_idx, len(shards)):
            parquet = pq.ParquetFile(shards[shard])
            for group in range(first_group, parquet.num_row_groups):
                texts = parquet.read_row_group(group, columns=["text"]).column("text").to_pylist()
                for start in range(0, len(texts), ENCODE_BATCH):
                    yield texts[start : start + ENCODE_BATCH], (shard, group, epoch)
            first_group = 0
        pq_idx, first_group, epoch = 0, 0, epoch + 1


def packed_rows(
    batches: Iterator[tuple[list[str], tuple[int, int, int]]], encode: Encode, row_slots: int
) -> Iterator[tuple[list[int], tuple[int, int, int]]]:
    """(row of `row_slots` tokens, cursor of the last row group read), best fit."""
    buffer: list[list[int]] = []
    cursor = (0, 0, 1)
    while True:
        row: list[int] = []
        while len(row) < row_slots:
            while len(buffer) < BUFFER_DOCUMENTS:
                texts, cursor = next(batches)
                buffer.extend(encode(texts))
            left = row_slots - len(row)
            whole = [d for d in buffer if len(d) <= left]
            # max and min take the first of equals
            chosen = max(whole, key=len) if whole else min(buffer, key=len)
            index = next(i for i, d in enumerate(buffer) if d is chosen)
            row.extend(buffer.pop(index)[:left])
        yield row, cursor
