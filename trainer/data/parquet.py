"""Reading and describing parquet shards with a `text` column (RECIPE section 6)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from trainer.data.errors import DataError

TEXT_COLUMN = "text"


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
