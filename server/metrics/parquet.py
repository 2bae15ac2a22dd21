"""Minimal Parquet writer: one row group, plain encoding, no compression.

The daemon has no pyarrow (it stays small, and the control plane installs without the trainer's
packages), and a table of numbers needs little of the format: pages of plain values, definition
levels where a column has nulls, and a footer in Thrift's compact protocol.
Source: github.com/apache/parquet-format (parquet.thrift, Encodings.md).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MAGIC = b"PAR1"
_TYPES = {"int64": 2, "double": 5, "string": 6}
_PLAIN, _RLE, _UTF8, _OPTIONAL, _REQUIRED = 0, 3, 0, 1, 0
_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12


@dataclass(frozen=True)
class ParquetColumn:
    """One column; None among the values is a null."""

    name: str
    kind: Literal["int64", "double", "string"]
    values: Sequence[int | float | str | None]


def write(columns: list[ParquetColumn]) -> bytes:
    """A Parquet file of columns of equal length."""
    rows = len(columns[0].values)
    out = bytearray(MAGIC)
    chunks = []
    for column in columns:
        start, page = len(out), _page(column, rows)
        out += page
        chunks.append(_chunk(column, rows, start, len(page)))
    footer = _footer(columns, rows, chunks, len(out) - len(MAGIC))
    return bytes(out + footer + struct.pack("<i", len(footer)) + MAGIC)


def _page(column: ParquetColumn, rows: int) -> bytes:
    levels = _definition_levels(column.values)
    body = struct.pack("<i", len(levels)) + levels + _plain(column)
    header = _Thrift().i32(1, 0).i32(2, len(body)).i32(3, len(body))
    header.struct(5, _Thrift().i32(1, rows).i32(2, _PLAIN).i32(3, _RLE).i32(4, _RLE).end())
    return header.end() + body


def _plain(column: ParquetColumn) -> bytes:
    present = [value for value in column.values if value is not None]
    if column.kind == "string":
        texts = [str(value).encode() for value in present]
        return b"".join(struct.pack("<i", len(text)) + text for text in texts)
    code = "q" if column.kind == "int64" else "d"
    return struct.pack(f"<{len(present)}{code}", *present)


def _definition_levels(values: Sequence[object]) -> bytes:
    """1 where there is a value, 0 where there is a null, bit-packed by eights."""
    groups = -(-len(values) // 8)
    bits = bytearray(groups)
    for index, value in enumerate(values):
        if value is not None:
            bits[index // 8] |= 1 << (index % 8)
    return _varint(groups << 1 | 1) + bytes(bits)


def _chunk(column: ParquetColumn, rows: int, start: int, size: int) -> bytes:
    meta = _Thrift().i32(1, _TYPES[column.kind]).list_i32(2, [_PLAIN, _RLE])
    meta.list_binary(3, [column.name]).i32(4, 0).i64(5, rows).i64(6, size).i64(7, size)
    meta.i64(9, start)
    return _Thrift().i64(2, start).struct(3, meta.end()).end()


def _footer(columns: list[ParquetColumn], rows: int, chunks: list[bytes], size: int) -> bytes:
    root = _Thrift().binary(4, "schema").i32(5, len(columns)).end()
    group = _Thrift().list_struct(1, chunks).i64(2, size).i64(3, rows).end()
    footer = _Thrift().i32(1, 1).list_struct(2, [root, *map(_element, columns)])
    return footer.i64(3, rows).list_struct(4, [group]).binary(6, "traind").end()


def _element(column: ParquetColumn) -> bytes:
    element = _Thrift().i32(1, _TYPES[column.kind]).i32(3, _OPTIONAL).binary(4, column.name)
    return (element.i32(6, _UTF8) if column.kind == "string" else element).end()


class _Thrift:
    """A struct in the compact protocol: fields in ascending order, then `end`."""

    def __init__(self) -> None:
        self._out, self._last = bytearray(), 0

    def i32(self, field: int, value: int) -> _Thrift:
        return self._field(field, _I32, _zigzag(value))

    def i64(self, field: int, value: int) -> _Thrift:
        return self._field(field, _I64, _zigzag(value))

    def binary(self, field: int, text: str) -> _Thrift:
        return self._field(field, _BINARY, _text(text))

    def struct(self, field: int, content: bytes) -> _Thrift:
        return self._field(field, _STRUCT, content)

    def list_i32(self, field: int, values: list[int]) -> _Thrift:
        return self._list(field, _I32, [_zigzag(value) for value in values])

    def list_binary(self, field: int, values: list[str]) -> _Thrift:
        return self._list(field, _BINARY, [_text(value) for value in values])

    def list_struct(self, field: int, values: list[bytes]) -> _Thrift:
        return self._list(field, _STRUCT, values)

    def end(self) -> bytes:
        return bytes(self._out) + b"\0"

    def _list(self, field: int, kind: int, items: list[bytes]) -> _Thrift:
        short = len(items) < 15
        head = bytes([(len(items) if short else 15) << 4 | kind])
        head += b"" if short else _varint(len(items))
        return self._field(field, _LIST, head + b"".join(items))

    def _field(self, field: int, kind: int, content: bytes) -> _Thrift:
        self._out += bytes([(field - self._last) << 4 | kind]) + content
        self._last = field
        return self


def _text(text: str) -> bytes:
    raw = text.encode()
    return _varint(len(raw)) + raw


def _zigzag(value: int) -> bytes:
    return _varint((value << 1) ^ (value >> 63))


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
