"""Shards as token arrays, from the cache or tokenized on demand.

Cache file: a 4,096-byte block (magic, version, sha256 of the header, header as JSON), then token
ids, padded to 8 bytes, then document offsets (N+1) and row group starts (G+1), both uint64. Every
document has `<|bos|>` in front. The header holds the sizes and the sha256 of all that follows it.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from trainer.contract import durable
from trainer.data.parquet import TEXT_COLUMN, TextFile
from trainer.data.tokenizer import Tokenizer

MAGIC = b"TRNDTOKS"
VERSION = 1
HEADER_BYTES = 4_096  # a page: the mapped tokens after it are aligned
_FIXED = struct.Struct("<8sII32s")  # magic, version, length of the JSON, its sha256


class BadCache(Exception):
    """The cache file is incomplete, or of another tokenizer or text; it can be rebuilt."""


class Shard(Protocol):
    """Interface of a shard for the reader."""

    @property
    def num_row_groups(self) -> int: ...

    def span(self, row_group: int) -> tuple[int, int]:
        """First document of a row group and the one after its last."""
        ...

    def documents(self, row_group: int, first: int, last: int) -> list[np.ndarray]:
        """Token ids of documents [first, last) of the file, all in this row group."""
        ...

    def pick(self, documents: Sequence[int]) -> list[np.ndarray]:
        """Token ids of any documents of the file, in the given order."""
        ...


class CachedShard:
    """A memory-mapped cache file: documents are views, nothing is copied."""

    def __init__(self, path: Path, tokenizer_sha256: str, file_sha256: str, check: bool = True):
        header, content = _map(path)
        expected = (tokenizer_sha256, file_sha256)
        if (header["tokenizer_sha256"], header["file_sha256"]) != expected:
            raise BadCache(f"{path} belongs to another text or tokenizer")
        if check and hashlib.sha256(content[HEADER_BYTES:]).hexdigest() != header["payload_sha256"]:
            raise BadCache(f"{path} is damaged")
        tokens_bytes = header["num_tokens"] * np.dtype(header["dtype"]).itemsize
        at = HEADER_BYTES + _padded(tokens_bytes)
        self.num_tokens: int = header["num_tokens"]
        self.tokens = np.frombuffer(
            content, dtype=header["dtype"], count=self.num_tokens, offset=HEADER_BYTES
        )
        documents = header["num_documents"] + 1
        self.offsets = np.frombuffer(content, dtype="<u8", count=documents, offset=at)
        groups = np.frombuffer(content, dtype="<u8", offset=at + 8 * documents)
        self._row_group_starts: list[int] = groups.tolist()

    @property
    def num_row_groups(self) -> int:
        return len(self._row_group_starts) - 1

    @property
    def num_documents(self) -> int:
        return len(self.offsets) - 1

    def span(self, row_group: int) -> tuple[int, int]:
        return self._row_group_starts[row_group], self._row_group_starts[row_group + 1]

    def documents(self, row_group: int, first: int, last: int) -> list[np.ndarray]:
        ends = self.offsets[first : last + 1].tolist()
        tokens = self.tokens
        return [tokens[ends[i] : ends[i + 1]] for i in range(last - first)]

    def pick(self, documents: Sequence[int]) -> list[np.ndarray]:
        return [
            self.tokens[int(self.offsets[number]) : int(self.offsets[number + 1])]
            for number in documents
        ]


class LiveShard:
    """A shard tokenized as it is read, with the same documents as its cache file."""

    def __init__(
        self,
        path: str,
        tokenizer: Tokenizer,
        threads: int | None = None,
        column: str = TEXT_COLUMN,
    ) -> None:
        self._file = TextFile(path, column)
        self._tokenizer = tokenizer
        self._threads = threads
        self._held: tuple[int, list[np.ndarray]] = (-1, [])

    @property
    def num_row_groups(self) -> int:
        return self._file.num_row_groups

    def span(self, row_group: int) -> tuple[int, int]:
        starts = self._file.row_group_starts
        return starts[row_group], starts[row_group + 1]

    def documents(self, row_group: int, first: int, last: int) -> list[np.ndarray]:
        if self._held[0] != row_group:
            batches = self._file.batches(row_group)
            self._held = (row_group, [ids for texts in batches for ids in self._encode(texts)])
        start, _ = self.span(row_group)
        return self._held[1][first - start : last - start]

    def pick(self, documents: Sequence[int]) -> list[np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for group in range(self.num_row_groups):
            start, end = self.span(group)
            wanted = [number for number in set(documents) if start <= number < end]
            if wanted:
                texts = self._file.texts(group)
                encoded = self._encode([texts[number - start] for number in wanted])
                found.update(zip(wanted, encoded, strict=True))
        return [found[number] for number in documents]

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        return self._tokenizer.encode_batch(texts, bos=True, threads=self._threads)


def write_shard(
    path: Path, source: TextFile, tokenizer: Tokenizer, file_sha256: str, encode
) -> int:
    """Tokenize a text file into a cache file, with part of a row group in memory at a time.

    `encode(texts) -> list of arrays` tokenizes. Returns the number of tokens.
    """
    lengths, groups = [0], [0]
    digest = hashlib.sha256()
    with durable.replacing(path, durable.BY_UMASK) as file:
        file.write(bytes(HEADER_BYTES))
        for group in range(source.num_row_groups):
            for texts in source.batches(group):
                encoded = encode(texts)
                lengths.extend(len(ids) for ids in encoded)
                _write(file, digest, np.concatenate(encoded).tobytes() if encoded else b"")
            groups.append(len(lengths) - 1)
        offsets = np.cumsum(np.array(lengths, dtype="<u8"), dtype="<u8")
        num_tokens = int(offsets[-1])
        size = num_tokens * np.dtype(tokenizer.dtype).itemsize
        _write(file, digest, bytes(_padded(size) - size))
        _write(file, digest, offsets.tobytes())
        _write(file, digest, np.array(groups, dtype="<u8").tobytes())
        header = {
            "tokenizer_sha256": tokenizer.sha256,
            "file_sha256": file_sha256,
            "dtype": np.dtype(tokenizer.dtype).newbyteorder("<").str,
            "num_tokens": num_tokens,
            "num_documents": len(lengths) - 1,
            "num_row_groups": source.num_row_groups,
            "payload_bytes": file.tell() - HEADER_BYTES,
            "payload_sha256": digest.hexdigest(),
        }
        file.seek(0)
        file.write(_packed_header(header))
    return num_tokens


def read_header(path: Path) -> dict[str, Any]:
    """The verified header of a cache file. Raises BadCache, OSError."""
    with path.open("rb") as file:
        block = file.read(HEADER_BYTES)
    if len(block) < HEADER_BYTES:
        raise BadCache(f"{path} is too short")
    magic, version, length, digest = _FIXED.unpack_from(block)
    if magic != MAGIC or version != VERSION or length > HEADER_BYTES - _FIXED.size:
        raise BadCache(f"{path} is not a token cache of this version")
    content = block[_FIXED.size : _FIXED.size + length]
    if hashlib.sha256(content).digest() != digest:
        raise BadCache(f"the header of {path} is damaged")
    header = json.loads(content)
    if path.stat().st_size != HEADER_BYTES + header["payload_bytes"]:
        raise BadCache(f"{path} is not complete")
    return header


def _map(path: Path) -> tuple[dict[str, Any], memoryview]:
    header = read_header(path)
    with path.open("rb") as file:
        return header, memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def _packed_header(header: dict[str, Any]) -> bytes:
    content = json.dumps(header).encode()
    block = _FIXED.pack(MAGIC, VERSION, len(content), hashlib.sha256(content).digest()) + content
    assert len(block) <= HEADER_BYTES
    return block.ljust(HEADER_BYTES, b"\0")


def _write(file: BinaryIO, digest: Any, content: bytes) -> None:
    digest.update(content)
    file.write(content)


def _padded(size: int) -> int:
    return -(-size // 8) * 8
