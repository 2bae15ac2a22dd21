"""nanochat's base_prepare of September 2026, rewritten from its description: text to .bin."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

MAGIC, VERSION, BUFFER_DOCUMENTS = 20_260_902, 1, 1000


def pack(documents: Sequence[Sequence[int]], row_len: int) -> np.ndarray:
    """Rows (N, row_len + 1) of one file's documents: longest that fits first, shortest is cut."""
    capacity = row_len + 1
    waiting = iter([list(document[:capacity]) for document in documents])
    buffer: list[list[int]] = []
    rows: list[list[int]] = []
    while True:
        row: list[int] = []
        while len(row) < capacity:
            _refill(buffer, waiting)
            if not buffer:
                shape = (len(rows), capacity)
                return np.array(rows, dtype=np.uint16).reshape(shape)  # the last row is not full
            row.extend(_take(buffer, capacity - len(row)))
        rows.append(row)


def _refill(buffer: list[list[int]], waiting: Iterator[list[int]]) -> None:
    while len(buffer) < BUFFER_DOCUMENTS:
        document = next(waiting, None)
        if document is None:
            return
        buffer.append(document)


def _take(buffer: list[list[int]], room: int) -> list[int]:
    fitting = [index for index, document in enumerate(buffer) if len(document) <= room]
    if fitting:
        return buffer.pop(max(fitting, key=lambda index: (len(buffer[index]), -index)))
    shortest = min(range(len(buffer)), key=lambda index: (len(buffer[index]), index))
    return buffer.pop(shortest)[:room]


def shard_bytes(rows: np.ndarray, vocab_size: int, tokenizer_id: int) -> bytes:
    """Bytes of a complete file: header, inputs, targets."""
    num_rows, row_len = rows.shape[0], rows.shape[1] - 1
    header = struct.pack(
        "<64i", MAGIC, VERSION, row_len, num_rows, vocab_size, tokenizer_id, *[0] * 58
    )
    rows = rows.astype("<u2")
    return header + rows[:, :-1].tobytes() + rows[:, 1:].tobytes()


def write_shard(path: Path, rows: np.ndarray, vocab_size: int, tokenizer_id: int) -> Path:
    path.write_bytes(shard_bytes(rows, vocab_size, tokenizer_id))
    return path
