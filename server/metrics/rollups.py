"""Rollups: bins of powers of four beside the raw points, maintained by ingestion.

A bin holds for each key the count, sum, min and max of its points, so a spike of one step shows at
every zoom and a mean over several bins is exact. A query takes whole bins in the middle of a range
and finer ones, down to the points, at its edges; so a range that ends where an attempt was
superseded takes nothing from beyond.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sqlalchemy import Connection

from trainer.contract.metrics import BINNED_KEYS, METRICS

KEYS = BINNED_KEYS
# Columns of a point; the other metrics are kept by key in its JSON column `more`.
COLUMNS = tuple(metric.key for metric in METRICS if metric.has_column)
SIZES = tuple(4**k for k in range(1, 11))

# One block a key, in the order of KEYS, which only ever grows at its end.
_BLOCK = struct.Struct("<Iddd")
_ROW = struct.Struct("<" + "Iddd" * len(KEYS))
_NOTHING = [0, 0.0, 0.0, 0.0] * len(KEYS)


@dataclass(slots=True)
class Bin:
    """Points `[first_step, last_step]`; stats: count, sum, min, max of each key, flat."""

    first_step: int
    last_step: int
    unix_seconds: float
    stats: list[float]


class BinRange(NamedTuple):
    """Whole bins `[low, high)` of one size; size 1 is the points themselves."""

    size: int
    low: int
    high: int


# --- writing -------------------------------------------------------------------------------------


def add(
    connection: Connection,
    attempt_id: int,
    points: Sequence[tuple[int, float, Sequence[float | None]]],
) -> None:
    """Merge points (step, unix seconds, values in the order of KEYS) into every size of bin."""
    level = [_single(step, seconds, values) for step, seconds, values in points]
    changed: dict[tuple[int, int], Bin] = {}
    for size in SIZES:
        binned: dict[int, Bin] = {}
        for part in level:
            index = part.last_step // size
            there = binned.get(index)
            if there is None:
                binned[index] = Bin(part.first_step, part.last_step, part.unix_seconds, part.stats)
            else:
                binned[index] = _merged(there, part)
        changed.update({(size, index): b for index, b in binned.items()})
        level = list(binned.values())
    for place, there in _stored(connection, attempt_id, points[0][0], points[-1][0]):
        if place in changed:
            changed[place] = _merged(there, changed[place])
    connection.exec_driver_sql(
        "INSERT OR REPLACE INTO rollups "
        '(attempt_id, size, bin, first_step, last_step, unix_seconds, "values") '
        "VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (attempt_id, size, index, b.first_step, b.last_step, b.unix_seconds, _pack(b.stats))
            for (size, index), b in changed.items()
        ],
    )


def _single(step: int, seconds: float, values: Sequence[float | None]) -> Bin:
    stats: list[float] = []
    for value in values:
        stats += (0, 0.0, 0.0, 0.0) if value is None else (1, value, value, value)
    return Bin(step, step, seconds, stats)


def _merged(one: Bin, two: Bin) -> Bin:
    a, b = one.stats, two.stats
    stats = list(a)
    for i in range(0, len(a), 4):
        if b[i]:
            if a[i]:
                stats[i] += b[i]
                stats[i + 1] += b[i + 1]
                if b[i + 2] < a[i + 2]:
                    stats[i + 2] = b[i + 2]
                if b[i + 3] > a[i + 3]:
                    stats[i + 3] = b[i + 3]
            else:
                stats[i : i + 4] = b[i : i + 4]
    return Bin(one.first_step, two.last_step, two.unix_seconds, stats)


def _stored(
    connection: Connection, attempt_id: int, first: int, last: int
) -> Iterator[tuple[tuple[int, int], Bin]]:
    """Bins already there that new points may fall into: at most one of each size."""
    places = ", ".join(f"({size}, {first // size})" for size in SIZES)
    rows = connection.exec_driver_sql(
        f'SELECT size, bin, first_step, last_step, unix_seconds, "values" FROM rollups '
        f"WHERE attempt_id = ? AND (size, bin) IN (VALUES {places})",
        (attempt_id,),
    )
    for size, index, first_step, last_step, seconds, values in rows:
        yield (size, index), Bin(first_step, last_step, seconds, _unpack(values))


def _pack(stats: list[float]) -> bytes:
    return _ROW.pack(*stats)


def _unpack(values: bytes) -> list[float]:
    count = len(values) // _BLOCK.size * 4
    stats = list(struct.unpack("<" + "Iddd" * (count // 4), values))
    return stats + _NOTHING[count:]


# --- reading -------------------------------------------------------------------------------------


def read(
    connection: Connection, attempt_id: int, low: int, high: int, size: int, keys: Sequence[str]
) -> Iterator[Bin]:
    """Everything of one attempt in steps `[low, high)`, in order, in bins of at most `size`.

    Their stats are those of `keys`, in that order.
    """
    for piece in cover(low, high, size):
        if piece.size == 1:
            yield from _points(connection, attempt_id, piece, keys)
        else:
            yield from _bins(connection, attempt_id, piece, keys)


def binned(bins: Iterable[Bin], bin_steps: int) -> list[Bin]:
    """Neighbours merged into bins of `bin_steps` aligned to step 0."""
    merged: list[Bin] = []
    place = -1
    for part in bins:
        if part.last_step // bin_steps == place:
            merged[-1] = _merged(merged[-1], part)
        else:
            merged.append(part)
            place = part.last_step // bin_steps
    return merged


def bin_steps_for(low: int, high: int, max_points: int) -> int:
    """The smallest power of two whose bins over steps `[low, high)` are at most `max_points`."""
    size = 1
    while high > low and (high - 1) // size - low // size + 1 > max(1, max_points):
        size *= 2
    return size


def cover(low: int, high: int, size: int) -> list[BinRange]:
    """`[low, high)` exactly, in order: the largest stored bins up to `size`, finer at the edges."""
    if high <= low:
        return []
    stored = max((s for s in SIZES if s <= size), default=1)
    if stored == 1:
        return [BinRange(1, low, high)]
    first, last = -(-low // stored), high // stored
    if first >= last:
        return cover(low, high, stored // 4)
    return [
        *cover(low, first * stored, stored // 4),
        BinRange(stored, first, last),
        *cover(last * stored, high, stored // 4),
    ]


def _points(
    connection: Connection, attempt_id: int, piece: BinRange, keys: Sequence[str]
) -> Iterator[Bin]:
    columns = "".join(f", {_column(key)}" for key in keys if key in KEYS)
    rows = connection.exec_driver_sql(
        f"SELECT step, unix_seconds{columns} FROM points "
        "WHERE attempt_id = ? AND step >= ? AND step < ? ORDER BY step",
        (attempt_id, piece.low, piece.high),
    )
    for step, seconds, *values in rows:
        yield _single(step, seconds, values)


def _column(key: str) -> str:
    return key if key in COLUMNS else f"json_extract(more, '$.{key}')"


def _bins(
    connection: Connection, attempt_id: int, piece: BinRange, keys: Sequence[str]
) -> Iterator[Bin]:
    rows = connection.exec_driver_sql(
        'SELECT first_step, last_step, unix_seconds, "values" FROM rollups '
        "WHERE attempt_id = ? AND size = ? AND bin >= ? AND bin < ? ORDER BY bin",
        (attempt_id, piece.size, piece.low, piece.high),
    )
    places = [KEYS.index(key) for key in keys]
    for first, last, seconds, values in rows:
        if len(values) != _ROW.size or len(places) > len(KEYS) // 2:
            flat = _unpack(values)
            stats = [x for at in places for x in flat[4 * at : 4 * at + 4]]
        else:
            stats = [x for at in places for x in _BLOCK.unpack_from(values, at * _BLOCK.size)]
        yield Bin(first, last, seconds, stats)
