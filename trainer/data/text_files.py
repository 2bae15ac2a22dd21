"""Opens text files: decompression, and detection of UTF-8, UTF-16 and binary content.

The content of a file decides its kind, not its name: a `.gz` file that a download has unpacked is
read as plain text.
"""

from __future__ import annotations

import bz2
import codecs
import contextlib
import gzip
import io
import lzma
import re
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from trainer.contract.text import shown_path
from trainer.data.errors import DataError, reason

SUFFIXES = frozenset({".gz", ".zst", ".zstd", ".bz2", ".xz", ".lz4"})
SAMPLE_BYTES = 8192
BUFFER_BYTES = 1_000_000
MAX_UNASSIGNED = 0.05
MAX_STRANGE = 0.3  # of a sample's characters; Latin-1 prose stays far below
_STRANGE = re.compile(r"[\x00-\x07\x0b\x0e-\x1a\x1c-\x1f\x7f\ufffd]")
_BOMS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


@contextlib.contextmanager
def text(path: Path) -> Iterator[tuple[BinaryIO | None, Callable[[], int]]]:
    """Open a text file: (stream of UTF-8 without a byte order mark, function for the bytes read).

    The stream is None for a file without text. Raises DataError for a damaged archive, also while
    the stream is read.
    """
    with path.open("rb") as raw, _explained(path):
        plain = io.BufferedReader(_Explaining(_unpacked(raw), path), BUFFER_BYTES)
        sample = plain.peek(SAMPLE_BYTES)[:SAMPLE_BYTES]
        encoding = _encoding(sample)
        if encoding is None:
            yield None, raw.tell
        elif encoding == "utf-8":
            if sample.startswith(codecs.BOM_UTF8):
                plain.read(len(codecs.BOM_UTF8))
            yield cast(BinaryIO, plain), raw.tell
        else:
            recoded = io.BufferedReader(_Recoded(cast(BinaryIO, plain), encoding), BUFFER_BYTES)
            yield cast(BinaryIO, recoded), raw.tell


def without_compression(name: str) -> str:
    """A file's name without its compression suffix: `a.jsonl.gz` gives `a.jsonl`."""
    suffix = Path(name).suffix.lower()
    return name[: -len(suffix)] if suffix in SUFFIXES else name


# --- compression ---------------------------------------------------------------------------------


def _unpacked(raw: BinaryIO) -> BinaryIO:
    magic = raw.read(10)
    raw.seek(0)
    if magic[:3] == b"\x1f\x8b\x08":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if magic[:3] == b"BZh" and magic[4:] == b"1AY&SY":
        return cast(BinaryIO, bz2.BZ2File(raw))
    if magic[:6] == b"\xfd7zXZ\x00":
        return cast(BinaryIO, lzma.LZMAFile(raw))
    if magic[:4] == b"\x28\xb5\x2f\xfd":
        return _arrow(raw, "zstd")
    if magic[:4] == b"\x04\x22\x4d\x18":
        return _arrow(raw, "lz4")
    return raw


def _arrow(raw: BinaryIO, codec: str) -> BinaryIO:
    import pyarrow as pa

    return cast(BinaryIO, pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), codec))


class _Explaining(io.RawIOBase):
    """The unpacked bytes; an archive's own errors become a DataError that names the file."""

    def __init__(self, inner: BinaryIO, path: Path) -> None:
        self._inner, self._path = inner, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        with _explained(self._path):
            chunk = self._inner.read(len(buffer))
        buffer[: len(chunk)] = chunk
        return len(chunk)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise _damaged(path, error) from None  # bz2 and Arrow have no other kind


def _damaged(path: Path, error: Exception) -> DataError:
    return DataError(
        "corrupt_file", f"{shown_path(path)} is compressed and damaged: {reason(error)}", path
    )


# --- encodings -----------------------------------------------------------------------------------


def _encoding(sample: bytes) -> str | None:
    """The encoding of a file from its first bytes; None if it is not text."""
    for bom, name in _BOMS:
        if sample.startswith(bom):
            return name if _is_assigned(sample.decode(name, "replace")) else None
    name = _utf16_without_mark(sample) if b"\0" in sample else "utf-8"
    return name if name and _is_text(sample.decode(name, "replace")) else None


def _is_assigned(characters: str) -> bool:
    """True if the characters are assigned: of random UTF-16 every tenth is not."""
    unknown = sum(unicodedata.category(c) in ("Cn", "Co") for c in characters[:1000])
    return unknown <= MAX_UNASSIGNED * min(1000, len(characters)) and _is_text(characters)


def _is_text(characters: str) -> bool:
    cut_off = characters.endswith("\ufffd")  # the sample may end within a character
    strange = len(_STRANGE.findall(characters)) - cut_off
    return strange <= MAX_STRANGE * max(1, len(characters))


def _utf16_without_mark(sample: bytes) -> str | None:
    """Detect UTF-16 without a mark: Western text has a zero in nearly every other byte."""
    half = max(1, len(sample) // 2)
    even, odd = sample[0::2].count(0) / half, sample[1::2].count(0) / half
    for zeros, others, name in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if zeros > 0.7 and others < 0.05:
            return name
    return None


class _Recoded(io.RawIOBase):
    """Recodes another encoding to UTF-8; undecodable bytes become U+FFFD."""

    def __init__(self, inner: BinaryIO, encoding: str) -> None:
        self._inner = inner
        self._decoder = codecs.getincrementaldecoder(encoding)("replace")
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            chunk = self._inner.read(BUFFER_BYTES)
            text = self._decoder.decode(chunk, final=not chunk)
            self._ready = text.encode("utf-8", "replace")
            if not chunk and not self._ready:
                return 0
        taken = self._ready[: len(buffer)]
        self._ready = self._ready[len(taken) :]
        buffer[: len(taken)] = taken
        return len(taken)
