"""Reads a JSON array record by record, so that a corpus of gigabytes is never in memory at once."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

READ_BYTES = 4_000_000
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class BadArray:
    """The record at this position cannot be read, and nothing after it can."""

    why: str


def records(stream: BinaryIO, max_chars: int) -> Iterator[Any]:
    """The elements of the array in the stream, in order; ends with a BadArray if it is damaged.

    max_chars: maximum length of one record.
    """
    text = _Text(stream)
    text.skip("[")
    while not text.is_next("]"):
        record = _next(text, max_chars)
        yield record
        if isinstance(record, BadArray):
            return
        if not text.skip(",") and not text.is_next("]"):
            yield BadArray("is not JSON: a comma or ] is missing before it")
            return


def _next(text: _Text, max_chars: int) -> Any:
    """Decode the next record, doubling the amount read while it is incomplete."""
    decode = json.JSONDecoder().raw_decode
    wanted = READ_BYTES
    while True:
        try:
            record, end = decode(text.read, text.at)
        except RecursionError:
            return BadArray("is nested too deeply")
        except ValueError:
            record, end = None, -1
        if 0 <= end < len(text.read) or (end >= 0 and text.is_over):
            text.at = end
            return record
        if text.is_over:
            return BadArray("is not JSON, or the file ends within it")
        if len(text.read) - text.at > max_chars:
            return BadArray(f"is not JSON, or longer than {max_chars:,} characters")
        text.more(wanted)
        wanted *= 2


class _Text:
    """Text buffer. read: decoded text. at: offset of the part not yet consumed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.read, self.at, self.is_over = "", 0, False

    def more(self, num_bytes: int) -> None:
        chunk = self._stream.read(num_bytes)
        self.is_over = not chunk
        self.read = self.read[self.at :] + self._decoder.decode(chunk, final=not chunk)
        self.at = 0

    def is_next(self, mark: str) -> bool:
        """True if this is the next character other than white space; False at the end."""
        self._skip_space()
        while self.at == len(self.read) and not self.is_over:
            self.more(READ_BYTES)
            self._skip_space()
        return self.read.startswith(mark, self.at)

    def skip(self, mark: str) -> bool:
        found = self.is_next(mark)
        if found:
            self.at += len(mark)
            self.is_next(mark)
        return found

    def _skip_space(self) -> None:
        found = _SPACE.match(self.read, self.at)
        self.at = found.end() if found else self.at
