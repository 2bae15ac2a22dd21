"""Reads and writes parquet shards with a text column (docs/recipe.md, Text to batches)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.contract.text import shown_path
from trainer.data.errors import DataError, reason

TEXT_COLUMN = "text"
ROW_GROUP_DOCUMENTS = 1000
ROW_GROUP_CHARS = 32 * 2**20  # decides the layout of a shard: copying.LAYOUT
BATCH_BYTES = 32_000_000  # bytes of text in memory at once while a row group is read
_BATCH_ROWS = 8192


class TextFile:
    """One open shard. `row_group_starts[g]` is the number of documents before row group g."""

    def __init__(self, path: str | Path, column: str = TEXT_COLUMN) -> None:
        self.path, self.column = str(path), column
        try:
            self._file = pq.ParquetFile(path)
        except FileNotFoundError:
            raise DataError("path_not_found", f"{path} does not exist", path) from None
        except PermissionError:
            raise DataError("path_unreadable", f"no permission to read {path}", path) from None
        except (pa.ArrowException, OSError) as error:
            raise _corrupt(path, error) from None
        _check_column(self._file.schema_arrow, column, path)
        self._read_metadata()

    def _read_metadata(self) -> None:
        metadata = self._file.metadata
        at = _column_index(self._file.schema, self.column)
        self.text_bytes = 0  # uncompressed
        self.num_nulls = 0  # if the file has statistics
        self.row_group_starts = [0]
        for group in range(metadata.num_row_groups):
            found = metadata.row_group(group)
            self.row_group_starts.append(self.row_group_starts[-1] + found.num_rows)
            column = found.column(at)
            self.text_bytes += column.total_uncompressed_size
            statistics = column.statistics
            self.num_nulls += (statistics.null_count or 0) if statistics else 0

    @property
    def num_row_groups(self) -> int:
        return len(self.row_group_starts) - 1

    @property
    def num_documents(self) -> int:
        return self.row_group_starts[-1]

    def texts(self, row_group: int) -> list[str]:
        """The documents of a row group; a null is an empty document."""
        return [text for batch in self.batches(row_group) for text in batch]

    def batches(self, row_group: int) -> Iterator[list[str]]:
        """The documents of a row group in batches of about `BATCH_BYTES`: it may be very large."""
        first, last = self.row_group_starts[row_group : row_group + 2]
        mean = self._file.metadata.row_group(row_group).total_byte_size // max(1, last - first)
        rows = max(1, min(_BATCH_ROWS, BATCH_BYTES // max(1, mean)))
        try:
            for batch in self._file.iter_batches(rows, [row_group], columns=[self.column]):
                yield [text or "" for text in batch.column(0).to_pylist()]
        except UnicodeDecodeError:
            raise DataError(
                "corrupt_shard",
                f"{self.path}: row group {row_group} holds text that is not UTF-8",
                self.path,
            ) from None
        except (pa.ArrowException, OSError) as error:
            raise _corrupt(self.path, error, f"row group {row_group} of ") from None

    def all_texts(self) -> Iterator[str]:
        for group in range(self.num_row_groups):
            yield from self.texts(group)

    def close(self) -> None:
        self._file.close()


class TextWriter:
    """Writes one parquet shard, a row group at a time."""

    def __init__(self, path: Path) -> None:
        self.documents = self.chars = 0
        self._path = path
        self._texts: list[str] = []
        self._held = 0
        schema = pa.schema([(TEXT_COLUMN, pa.string())])
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")

    def add(self, text: str) -> None:
        """Append a document; writes a row group when it is full."""
        self._texts.append(text)
        self.documents += 1
        self.chars += len(text)
        self._held += len(text)
        if len(self._texts) == ROW_GROUP_DOCUMENTS or self._held >= ROW_GROUP_CHARS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

    def _flush(self) -> None:
        if self._texts:
            self._writer.write_table(pa.table({TEXT_COLUMN: self._texts}))
            self._texts, self._held = [], 0


class ShardWriter:
    """Writes train shards of about `shard_chars` characters each."""

    def __init__(self, directory: Path, shard_chars: int) -> None:
        self.documents = self.chars = 0
        self._directory, self._shard_chars = directory, shard_chars
        self._shards = 0
        self._writer: TextWriter | None = None

    def add(self, text: str) -> None:
        """Append a document; starts a new shard when the current one is full."""
        if self._writer is None:
            path = self._directory / f"shard_{self._shards:05d}.parquet"
            self._writer = TextWriter(path)
            self._shards += 1
        self._writer.add(text)
        self.documents += 1
        self.chars += len(text)
        if self._writer.chars >= self._shard_chars:
            self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _check_column(schema: pa.Schema, column: str, path: str | Path) -> None:
    if column not in schema.names:
        found = ", ".join(schema.names) or "none"
        raise DataError(
            "no_text_column",
            f"{path} has no column '{column}' (it has: {found}); name the one with the text as "
            "data.column",
            path,
        )
    kind = schema.field(column).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if not any(is_text(kind) for is_text in _IS_TEXT):
        raise DataError("no_text_column", f"column '{column}' of {path} is {kind}, not text", path)


_IS_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


def _column_index(schema: pq.ParquetSchema, column: str) -> int:
    return next(i for i in range(len(schema)) if schema.column(i).path == column)


def _corrupt(path: str | Path, error: Exception, part: str = "") -> DataError:
    return DataError(
        "corrupt_shard",
        f"{part}{shown_path(str(path))} is not readable parquet: {reason(error)}",
        path,
    )
