"""nanochat v2's packed shards in plain Python: each text file alone, documents cut to a row."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

Encode = Callable[[str], list[int]]  # preceded by <|bos|>
MAGIC, VERSION = 20260902, 1
BUFFER_DOCUMENTS = 1000


def pack(texts: list[str], encode: Encode, row_len: int) -> list[list[int]]:
    """Rows of row_len + 1 tokens: the longest document that fits whole, else the shortest cut."""
    waiting: Iterator[list[int]] = iter([encode(text)[: row_len + 1] for text in texts])
    buffer: list[list[int]] = []
    rows: list[list[int]] = []
    while True:
        row: list[int] = []
        while len(row) < row_len + 1:
            while len(buffer) < BUFFER_DOCUMENTS:
                document = next(waiting, None)
                if document is None:
                    break
                buffer.append(document)
            if not buffer:
                return rows  # the rest fills no row
            left = row_len + 1 - len(row)
            whole = [d for d in buffer if len(d) <= left]
            chosen = max(whole, key=len) if whole else min(buffer, key=len)
            index = next(i for i, d in enumerate(buffer) if d is chosen)
            row += buffer.pop(index)[:left]
        rows.append(row)


def write_shards(folder: Path, encode: Encode, row_len: int, vocab_size: int) -> None:
    """train_NNNNN.bin of all parquet files but the last, val_00000.bin of that one."""
    files = sorted(folder.glob("*.parquet"))
    identity = zlib.crc32((folder / "tokenizer/tokenizer.pkl").read_bytes()) & 0x7FFFFFFF
    names = [f"train_{i:05d}.bin" for i in range(len(files) - 1)] + ["val_00000.bin"]
    for file, name in zip(files, names, strict=True):
        texts = pq.read_table(file, columns=["text"]).column("text").to_pylist()
        rows = np.array(pack(texts, encode, row_len), dtype="<u2")
        header = [MAGIC, VERSION, row_len, len(rows), vocab_size, identity] + [0] * 58
        content = struct.pack("<64i", *header) + rows[:, :-1].tobytes() + rows[:, 1:].tobytes()
        (folder / name).write_bytes(content)


def read_rows(paths: list[Path]) -> np.ndarray:
    """(2, rows, row_len) int64: inputs and targets of the shards one after the other."""
    parts = []
    for path in paths:
        header = np.fromfile(path, "<i4", 64)
        numbers = np.fromfile(path, "<u2", offset=256).reshape(2, header[3], header[2])
        parts.append(numbers.astype(np.int64))
    return np.concatenate(parts, axis=1)
