"""Data position of an imported run, and a check that the corpus contains it.

nanochat records only a position, not what it read. A position outside the corpus, or a missing
shard between others, means another or an incomplete corpus.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data import packed_rows
from trainer.data.cursor import first_cursor, joined, skip_to_row_group
from trainer.data.prepared import PreparedData
from trainer.interop.errors import InteropError
from trainer.interop.nanochat_meta import Cursor, NanochatMeta

_NUMBERED = re.compile(r"shard_(\d{5,})\.parquet")


@dataclass(frozen=True)
class DataPosition:
    """The loader's cursor. doubts: sentences on why nanochat might continue elsewhere."""

    cursor: dict[str, Any]
    doubts: tuple[str, ...] = ()


def find(
    meta: NanochatMeta, data: PreparedData, *, packing: str, streams: int, was_named: bool
) -> DataPosition:
    """Data position of an import: at the row, after the row group, or at the beginning.

    was_named: the user named this corpus. Raises InteropError if the corpus was found beside the
    run and cannot be complete; a corpus that was named is then read from its beginning.
    """
    start = joined(packing, [first_cursor(packing, r, streams) for r in range(streams)], 0)
    if data.source == packed_rows.SOURCE:
        return DataPosition(packed_rows.cursor_at(meta.dataloader_row or 0))
    position = meta.dataloader_state_dict
    if position is None:
        return DataPosition(start)
    why = _not_in(position, data)
    if why is None:
        cursor = skip_to_row_group(position.model_dump(), packing=packing, streams=streams)
        return DataPosition(cursor, tuple(_gaps(data)))
    if not was_named:
        folder = Path(data.train_files[0].path).parent
        raise InteropError(
            folder,
            f"is not the whole corpus of this run: {why}. Name the corpus (corpus, --corpus); the "
            "same folder named so is read from its beginning",
        )
    return DataPosition(start, (f"the data starts from the beginning: {why}",))


def _not_in(position: Cursor, data: PreparedData) -> str | None:
    """Why this position cannot be in this corpus; None if it can."""
    files = data.train_files
    at = f"its cursor is at file {position.pq_idx}, row group {position.rg_idx}"
    if position.pq_idx >= len(files):
        return f"{at}, and there are {len(files):,} files to train on, counted from 0"
    groups = files[position.pq_idx].num_row_groups
    if groups is not None and position.rg_idx >= groups:
        name = Path(files[position.pq_idx].path).name
        return f"{at}, and {name} has {groups:,} row groups, counted from 0"
    return None


def _gaps(data: PreparedData) -> list[str]:
    """Missing shards: nanochat numbers them without gaps; the last of its data set validates."""
    names = [Path(file.path).name for file in data.train_files]
    numbers = [int(match[1]) for name in names if (match := _NUMBERED.fullmatch(name))]
    missing = sorted(set(range(max(numbers, default=-1) + 1)) - set(numbers))
    if len(numbers) != len(names) or not missing:
        return []
    return [
        f"shard_{missing[0]:05d}.parquet is missing between others ({len(missing):,} in all), so "
        "the files behind it are counted as others were"
    ]
