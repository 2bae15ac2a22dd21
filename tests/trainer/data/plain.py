"""Packing as the recipe tells it, with lists and a scan: slow and obviously right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

Document = list[int]
Origin = tuple[int, int, int]  # file, row group, epoch from 1
BUFFER_DOCUMENTS = 1000


def document_batches(
    files: Sequence[Sequence[Sequence[Document]]], rank: int = 0, world: int = 1
) -> Iterator[tuple[list[Document], Origin]]:
    """Up to 128 documents of one row group, forever; rank r reads row groups r, r+R, ..."""
    epoch = 1
    while True:
        for file, groups in enumerate(files):
            for group in range(rank, len(groups), world):
                for start in range(0, len(groups[group]), 128):
                    yield list(groups[group][start : start + 128]), (file, group, epoch)
        epoch += 1


def packed_rows(
    batches: Iterator[tuple[list[Document], Origin]], row_slots: int, lossless: bool = False
) -> Iterator[tuple[Document, Origin]]:
    """Rows of `row_slots` tokens, each with where the newest documents came from."""
    buffer: list[Document] = []
    rest: Document = []
    origin: Origin = (0, 0, 1)
    while True:
        row, rest = rest[:row_slots], rest[row_slots:]
        while len(row) < row_slots:
            while len(buffer) < BUFFER_DOCUMENTS:
                documents, origin = next(batches)
                buffer.extend(documents)
            room = row_slots - len(row)
            best = -1
            for index, document in enumerate(buffer):
                if len(document) <= room and (best < 0 or len(document) > len(buffer[best])):
                    best = index
            if best >= 0:
                row.extend(buffer.pop(best))
                continue
            shortest = min(range(len(buffer)), key=lambda i: len(buffer[i]))
            document = buffer.pop(shortest)
            row.extend(document[:room])
            rest = document[room:] if lossless else []
        yield row, origin
