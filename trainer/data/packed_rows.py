"""Reads nanochat's packed shards, train_NNNNN.bin and val_NNNNN.bin, row by row.

A file is 256 bytes of header (64 little-endian int32: magic, version, row length, rows, vocabulary,
tokenizer id, zeros), then the inputs (rows, row length) as uint16, then the targets in the same
shape, where 65535 marks an ignored target. The rows of a split are those of its files in name
order; a run takes the first sequence_len columns of each, and wraps from the last row to the first,
also within a batch. The position in the data is one number: the row.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data import walk
from trainer.data.errors import DataChanged, DataError
from trainer.data.prepared import DataFile, PreparedData, gone, verify_file

SOURCE = "nanochat_packed"
MAGIC, FORMAT_VERSION = 20_260_902, 1
HEADER_BYTES = 256
IGNORED = 65_535
MAX_ROW_LEN = 2**20  # tokens; sequence lengths are powers of two
CURSOR_VERSION = 1
OPEN_FILES = 4
_HEADER = struct.Struct("<64i")
_NAME = re.compile(r"(train|val)_(\d{5,})\.bin")


@dataclass(frozen=True)
class ShardHeader:
    """A shard's header, checked against the file's size."""

    row_len: int
    num_rows: int
    vocab_size: int
    tokenizer_id: int

    @property
    def num_bytes(self) -> int:
        return HEADER_BYTES + 4 * self.num_rows * self.row_len


def read_header(path: str | Path) -> ShardHeader:
    """Read and check the header of a shard; the file must have exactly the size it implies.

    Raises DataError("corrupt_shard", "path_not_found", "path_unreadable") with the file's name.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            block, size = file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise DataError("path_not_found", f"{path} does not exist", path) from None
    except OSError as error:
        raise DataError("path_unreadable", f"cannot read {path}: {error.strerror}", path) from None
    if len(block) < HEADER_BYTES:
        raise _corrupt(path, f"it has {size:,} bytes, and its header alone needs {HEADER_BYTES}")
    magic, version, row_len, num_rows, vocab_size, tokenizer_id, *rest = _HEADER.unpack(block)
    if magic != MAGIC:
        raise _corrupt(path, "it does not begin as nanochat's packed shards do")
    if version != FORMAT_VERSION:
        raise _corrupt(path, f"its format version is {version}, and {FORMAT_VERSION} can be read")
    if not 1 <= row_len <= MAX_ROW_LEN:
        raise _corrupt(path, f"its header names rows of {row_len:,} tokens")
    if num_rows < 1:
        raise _corrupt(path, f"its header names {num_rows:,} rows")
    if not 1 <= vocab_size < IGNORED:
        raise _corrupt(path, f"its header names a vocabulary of {vocab_size:,} tokens")
    if tokenizer_id < 0 or any(rest):
        raise _corrupt(path, "its header holds numbers where zeros belong")
    header = ShardHeader(row_len, num_rows, vocab_size, tokenizer_id)
    if size != header.num_bytes:
        whole = "cut short" if size < header.num_bytes else "too long"
        raise _corrupt(
            path,
            f"it is {whole}: {num_rows:,} rows of {row_len:,} tokens take {header.num_bytes:,} "
            f"bytes, and it has {size:,}",
        )
    return header


def check_row_len(path: str | Path, row_len: int, sequence_len: int) -> None:
    """Raise DataError if rows are shorter than the model's sequences."""
    if sequence_len > row_len:
        raise DataError(
            "rows_too_short",
            f"the rows of {path} have {row_len:,} tokens and model.sequence_len is "
            f"{sequence_len:,}: set it to at most {row_len:,}",
            path,
        )


def paths(directory: str | Path, split: str) -> list[Path]:
    """The shards of a split in name order. Raises DataError for a folder that cannot be listed,
    and if a shard between others is missing, which would shift all rows after it.
    """
    root = walk.expanded(directory)
    try:
        found = [(m, path) for path in root.iterdir() if (m := _NAME.fullmatch(path.name))]
    except FileNotFoundError:
        raise DataError("path_not_found", f"{root} does not exist", root) from None
    except OSError as error:
        raise DataError("path_unreadable", f"cannot read {root}: {error.strerror}", root) from None
    numbered = sorted((int(m[2]), path.name, path) for m, path in found if m[1] == split)
    for place, (number, _, path) in enumerate(numbered):
        if number != place:
            missing = root / f"{split}_{place:05d}.bin"
            raise DataError(
                "incomplete_corpus",
                f"{missing} is missing, while {path.name} is there: rows are counted through all "
                "shards in order, so every row behind it would be another one",
                missing,
            )
    return [path for _, _, path in numbered]


def _corrupt(path: Path, why: str) -> DataError:
    return DataError("corrupt_shard", f"{path} is not a readable packed shard: {why}", path)


# --- cursor --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowSnapshot:
    """Position after a batch: the next row, counted on past the end of the data."""

    row: int

    def cursor(self) -> dict[str, Any]:
        return cursor_at(self.row)


def cursor_at(row: int) -> dict[str, Any]:
    """The cursor at nanochat's `dataloader_row`. Raises DataError for a negative row."""
    if isinstance(row, bool) or not isinstance(row, int) or row < 0:
        raise DataError("bad_cursor", f"{row!r} is not a row of packed shards")
    return {"version": CURSOR_VERSION, "packing": SOURCE, "row": row}


# --- reading -------------------------------------------------------------------------------------


class PackedRows:
    """The rows of a split for the loader: see `loader.RowSource`."""

    def __init__(
        self,
        prepared: PreparedData,
        split: str,
        sequence_len: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._files = [_OpenShard(file, prepared.corpora_dir) for file in prepared.files(split)]
        self._recent: list[_OpenShard] = []
        self._rank, self._world = rank, world
        self._vocab_size = prepared.vocab_size
        self._ends = list(accumulate(file.header.num_rows for file in self._files))
        for file, known in zip(self._files, prepared.files(split), strict=True):
            check_row_len(known.path, file.header.row_len, sequence_len)

    @property
    def num_rows(self) -> int:
        return self._ends[-1]

    def first_cursor(self) -> dict[str, Any]:
        return cursor_at(0)

    def check(self, cursor: dict[str, Any]) -> None:
        if cursor.get("packing") != SOURCE or cursor.get("version") != CURSOR_VERSION:
            raise DataError("bad_cursor", "the data cursor is not one of packed shards")
        cursor_at(cursor["row"])

    def begin(self, cursor: dict[str, Any]) -> _RowReader:
        return _RowReader(self, cursor["row"])

    def cancel(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def close(self) -> None:
        for file in self._files:
            file.close()

    def fetch(self, row: int, tokens_2BT: np.ndarray) -> int:
        """Fill inputs and targets with the rows from `row` on; returns the next batch's row."""
        rows, done = tokens_2BT.shape[1], 0
        first = row + self._rank * rows
        while done < rows:
            file, local = self._find((first + done) % self.num_rows)
            count = min(rows - done, file.header.num_rows - local)
            file.read(local, tokens_2BT[:, done : done + count], self._vocab_size)
            self._keep_few_open(file)
            done += count
        return row + rows * self._world

    def _keep_few_open(self, used: _OpenShard) -> None:
        """Close the least recently used shards: thousands of shards must not stay open."""
        self._recent = [used, *(file for file in self._recent if file is not used)]
        for file in self._recent[OPEN_FILES:]:
            file.close()
        del self._recent[OPEN_FILES:]

    def _find(self, row: int) -> tuple[_OpenShard, int]:
        """The file of a row, and the row's index in it."""
        index = bisect_right(self._ends, row)
        return self._files[index], row - (self._ends[index - 1] if index else 0)


class _RowReader:
    """Reads batches from a row on."""

    def __init__(self, source: PackedRows, row: int) -> None:
        self._source, self._row = source, row

    def fill(self, tokens_2BT: np.ndarray) -> tuple[str, RowSnapshot]:
        self._row = self._source.fetch(self._row, tokens_2BT)
        content = tokens_2BT.astype("<u4")
        return hashlib.sha256(content.data).hexdigest(), RowSnapshot(self._row)


class _OpenShard:
    """One open file. Each read compares its stat, so that an edit pauses the run where it is read.

    Read, not mapped: a file that is truncated while mapped kills the process (SIGBUS).
    """

    def __init__(self, file: DataFile, corpora_dir: Path) -> None:
        self._corpora_dir = corpora_dir
        verify_file(file, corpora_dir=corpora_dir)
        self.header = read_header(file.path)
        self._file = file
        self._seen: tuple[int, ...] | None = None
        self._descriptor: int | None = None

    def read(self, first: int, tokens_2bT: np.ndarray, vocab_size: int) -> None:
        """Fill inputs and targets with b rows from `first` on; ignored targets become -1."""
        self._keep_open()
        _, count, columns = tokens_2bT.shape
        for part in (0, 1):
            ids_bT = self._read_part(part, first, count)[:, :columns]
            ignored = ids_bT == IGNORED if part else np.zeros(1, dtype=bool)
            _refuse_foreign_ids(self._file.path, first, ids_bT, ignored, vocab_size)
            tokens_2bT[part] = ids_bT
            if part and ignored.any():
                tokens_2bT[part][ignored] = -1

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _read_part(self, part: int, first: int, count: int) -> np.ndarray:
        """Rows of the inputs (part 0) or the targets (part 1), (count, row_len) uint16."""
        assert self._descriptor is not None
        width = 2 * self.header.row_len
        size, at = count * width, HEADER_BYTES + (part * self.header.num_rows + first) * width
        path = self._file.path
        try:
            content = os.pread(self._descriptor, size, at)
        except OSError as error:
            why = f"cannot read {path}: {error.strerror}"
            raise DataError("path_unreadable", why, path) from None
        if len(content) < size:
            raise DataChanged(path, "was cut short while it was read")
        return np.frombuffer(content, dtype="<u2").reshape(count, self.header.row_len)

    def _keep_open(self) -> None:
        stat = self._stat()
        if self._descriptor is None or stat != self._seen:
            verify_file(self._file, corpora_dir=self._corpora_dir)
            self.close()
            self._descriptor, self._seen = os.open(self._file.path, os.O_RDONLY), stat

    def _stat(self) -> tuple[int, ...]:
        try:
            stat = os.stat(self._file.path)
        except OSError as error:
            raise gone(error, self._file.path, "found") from None
        return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def _refuse_foreign_ids(
    path: str, first: int, ids_bT: np.ndarray, ignored_bT: np.ndarray, vocab_size: int
) -> None:
    foreign_bT = (ids_bT >= vocab_size) & ~ignored_bT
    if foreign_bT.any():
        row, column = (int(places[0]) for places in np.nonzero(foreign_bT))
        raise DataError(
            "corrupt_shard",
            f"row {first + row:,} of {path} holds the token id {int(ids_bT[row, column]):,}, and "
            f"its vocabulary has {vocab_size:,} tokens",
            path,
        )
