"""The data cursor: the exact position after a batch, as small JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from trainer.data.errors import DataError
from trainer.data.packing import Remainder, arrivals_of
from trainer.data.reader import LastRead, Position, grouped, origin_of

VERSION = 1
STREAMS_VERSION = 2  # version of a cursor with a version 1 cursor for each stream


@dataclass(frozen=True)
class CursorSnapshot:
    """Snapshot of the data position, cheap to take; `cursor()` converts it to JSON."""

    packing: str
    world: int
    num_files: int
    position: Position
    last: LastRead
    keys: tuple[int, ...]
    remainder: Remainder | None
    rows: int

    def cursor(self) -> dict[str, Any]:
        """The JSON form: the buffer as references, [epoch, file, [document, ...]] by arrival."""
        return {
            "version": VERSION,
            "packing": self.packing,
            "world": self.world,
            "rows": self.rows,
            "position": asdict(self.position),
            "last": asdict(self.last),
            "buffer": [list(group) for group in grouped(arrivals_of(self.keys), self.num_files)],
            "remainder": self._remainder(),
        }

    def _remainder(self) -> list[int] | None:
        if self.remainder is None:
            return None
        number, offset, _ = self.remainder
        return [*origin_of(number, self.num_files), offset]


def first_cursor(packing: str = "best_fit", rank: int = 0, world: int = 1) -> dict[str, Any]:
    """The cursor at the beginning of the data."""
    return CursorSnapshot(
        packing=packing,
        world=world,
        num_files=1,
        position=Position(row_group=rank),
        last=LastRead(),
        keys=(),
        remainder=None,
        rows=0,
    ).cursor()


def joined(packing: str, parts: list[dict[str, Any]], rows: int) -> dict[str, Any]:
    """Join the cursors of several streams; one stream keeps its own. rows: total taken."""
    if len(parts) == 1:
        return parts[0]
    return {"version": STREAMS_VERSION, "packing": packing, "rows": rows, "streams": parts}


def parts_of(cursor: dict[str, Any], streams: int) -> list[dict[str, Any]]:
    """The cursor of each stream. Raises DataError for a cursor of another number of streams."""
    found = cursor["streams"] if cursor.get("version") == STREAMS_VERSION else [cursor]
    if len(found) != streams:
        raise DataError(
            "bad_cursor",
            f"the data cursor is of {len(found)} streams, and data.streams is {streams}: each "
            "packs its own row groups, so their number cannot change within a run",
        )
    return found


def skip_to_row_group(
    position: dict[str, int],
    *,
    packing: str = "best_fit",
    rank: int = 0,
    world: int = 1,
    streams: int = 1,
) -> dict[str, Any]:
    """traind cursor for nanochat's `{pq_idx, rg_idx, epoch}`: the next row group, empty buffer.

    Stream r of R continues at its first row group after that of the first stream; if a file has
    none left, at its first one of the next file. nanochat saves neither the buffers nor the
    positions of its other processes, so this is how its own resume continues, not what an
    uninterrupted run would have read.
    """
    if streams > 1:
        each = [
            skip_to_row_group(position, packing=packing, rank=r, world=streams)
            for r in range(streams)
        ]
        return joined(packing, each, 0)
    file, group, epoch = (position[key] for key in ("pq_idx", "rg_idx", "epoch"))
    if file < 0 or group < 0 or epoch < 1:
        raise DataError("bad_cursor", f"{position} is not a position in a data set")
    cursor = first_cursor(packing, rank, world)
    following = (group // world + 1) * world + rank
    cursor["position"] = asdict(Position(epoch - 1, file, following))
    cursor["last"] = asdict(LastRead(file, group, epoch))
    return cursor


def check(cursor: dict[str, Any], packing: str, world: int, num_files: int) -> None:
    """Raise DataError if these settings cannot continue from a cursor."""
    if cursor.get("version") != VERSION:
        raise DataError("bad_cursor", f"a data cursor of version {cursor.get('version')!r}")
    if cursor["packing"] != packing:
        raise DataError(
            "bad_cursor", f"the data cursor is of packing {cursor['packing']}, not {packing}"
        )
    if cursor["world"] != world:
        raise DataError(
            "bad_cursor",
            f"the data cursor is of {cursor['world']} processes, not {world}: each reads its own "
            "row groups, so their number cannot change within a run",
        )
    files = [group[1] for group in cursor["buffer"]] + [cursor["position"]["file"]]
    if max(files) >= num_files:
        raise DataError(
            "bad_cursor", f"the data cursor is in file {max(files)} of {num_files} files"
        )
