"""Reading and writing parquet shards with a `text` column (RECIPE section 6)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.errors import DataError

TEXT_COLUMN = "text"
ROW_GROUP_DOCUMENTS = 1000


class TextFile:
    """One open shard. `row_group_starts[g]` is the number of documents before row group g."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        try:
            self._file = pq.ParquetFile(path)
        except FileNotFoundError:
            raise DataError("path_not_found", f"{path} does not exist", path) from None
        except PermissionError:
            raise DataError("path_unreadable", f"no permission to read {path}", path) from None
        except (pa.ArrowException, OSError) as error:
            raise _corrupt(path, error) from None
        _check_column(self._file.schema_arrow, path)
        metadata = self._file.metadata
        self.text_bytes = 0  # uncompressed
        self.row_group_starts = [0]
        for group in range(metadata.num_row_groups):
            found = metadata.row_group(group)
            self.row_group_starts.append(self.row_group_starts[-1] + found.num_rows)
            self.text_bytes += found.total_byte_size

    @property
    def num_row_groups(self) -> int:
        return len(self.row_group_starts) - 1

    @property
    def num_documents(self) -> int:
        return self.row_group_starts[-1]

    def texts(self, row_group: int) -> list[str]:
        """The documents of a row group; a null is an empty document."""
        try:
            table = self._file.read_row_group(row_group, columns=[TEXT_COLUMN])
            return [text or "" for text in table.column(TEXT_COLUMN).to_pylist()]
        except UnicodeDecodeError:
            raise DataError(
                "corrupt_shard",
                f"{self.path}: row group {row_group} holds text that is not UTF-8",
                self.path,
            ) from None
        except (pa.ArrowException, OSError) as error:
            raise _corrupt(self.path, error) from None

    def all_texts(self) -> Iterator[str]:
        for group in range(self.num_row_groups):
            yield from self.texts(group)

    def close(self) -> None:
        self._file.close()


class TextWriter:
    """One parquet shard, a row group at a time."""

    def __init__(self, path: Path) -> None:
        self.documents = self.chars = 0
        self._path = path
        self._texts: list[str] = []
        schema = pa.schema([(TEXT_COLUMN, pa.string())])
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")

    def add(self, text: str) -> None:
        self._texts.append(text)
        self.documents += 1
        self.chars += len(text)
        if len(self._texts) == ROW_GROUP_DOCUMENTS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()
        with self._path.open("rb") as file:
            os.fsync(file.fileno())

    def _flush(self) -> None:
        if self._texts:
            self._writer.write_table(pa.table({TEXT_COLUMN: self._texts}))
            self._texts = []


class ShardWriter:
    """Train shards of about `shard_chars` each."""

    def __init__(self, directory: Path, shard_chars: int) -> None:
        self.documents = 0
        self._directory, self._shard_chars = directory, shard_chars
        self._shards = 0
        self._writer: TextWriter | None = None

    def add(self, text: str) -> None:
        if self._writer is None:
            path = self._directory / f"shard_{self._shards:05d}.parquet"
            self._writer = TextWriter(path)
            self._shards += 1
        self._writer.add(text)
        self.documents += 1
        if self._writer.chars >= self._shard_chars:
            self.close()

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _check_column(schema: pa.Schema, path: str | Path) -> None:
    if TEXT_COLUMN not in schema.names:
        found = ", ".join(schema.names) or "none"
        raise DataError("no_text_column", f"{path} has no column 'text' (it has: {found})", path)
    kind = schema.field(TEXT_COLUMN).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise DataError("no_text_column", f"column 'text' of {path} is {kind}, not text", path)


def _corrupt(path: str | Path, error: Exception) -> DataError:
    why = str(error).splitlines()[0] if str(error) else type(error).__name__
    return DataError("corrupt_shard", f"{path} is not a readable parquet file: {why}", path)
