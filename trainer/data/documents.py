"""Documents from text files, JSONL and the Python standard library.

Text is cut at blank lines into documents of bounded length, since best-fit packing discards the
rest of a document that does not fit into a row. Cutting loses nothing; skipped input is counted.
"""

from __future__ import annotations

import io
import json
import os
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

from trainer.contract.spec import DataSpec
from trainer.contract.text import shown_path
from trainer.data import json_array, splits, text_files, walk
from trainer.data.errors import DataError
from trainer.data.skipped import Account

BUILTIN_CHARS = 800  # about one row of the demo's 256 tokens
TEXT_CHARS = 6000  # about one row of 2,048 tokens
READ_BYTES = 4_000_000
MAX_LINE_BYTES = 256_000_000
SHOWN_KEYS = 20
_NOT_BUILTIN = {"test", "tests", "site-packages", "__pycache__", "idle_test", "lib2to3"}
_JSONL = (".jsonl", ".ndjson")
_JSON = (".json",)
_NO_DATA = frozenset({"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"})


@dataclass
class Sources:
    """The files to read. validation: files of a validation split, None without one."""

    source: str
    root: Path
    files: list[Path]
    validation: frozenset[Path] | None = None
    column: str = "text"
    notes: list[str] = field(default_factory=list)
    left: Account = field(default_factory=Account)
    split_rule: str | None = None

    def listing(self) -> list[Any]:
        """Name, size, time and inode of every file: an equal listing means the same text."""
        stats = [(path, path.stat()) for path in self.files]
        files = [
            (str(path), s.st_size, s.st_mtime_ns, s.st_ino, path in (self.validation or ()))
            for path, s in stats
        ]
        return [self.column, files]

    def total_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


@dataclass(frozen=True)
class TextDocument:
    """One document. is_validation: None if no name decides; then every n-th document validates."""

    text: str
    is_validation: bool | None


def builtin() -> Sources:
    """The demo corpus: source of this machine's Python standard library, without tests."""
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_BUILTIN]
        files.extend(Path(folder) / name for name in names if name.endswith(".py"))
    files.sort()
    if not files:
        raise DataError("no_text", f"this Python has no source of its standard library in {root}")
    return Sources("builtin", root, files)


def find(spec: DataSpec) -> Sources:
    """The text or JSONL files at the spec's path: itself, or all below the folder, in name order.

    Raises DataError for a path that is missing, unreadable or without such files, and for a data
    set whose names leave a choice.
    """
    found = _files(spec)
    sources = Sources(
        spec.source, found.root, found.files, column=spec.column or "text", left=found.left
    )
    sources.notes += splits.notes_on(walk.expanded(spec.path or ""))
    if not found.named_itself:
        _split(sources, spec, found)
    return sources


def read(
    sources: Sources, progress: Callable[[int], None] = lambda done: None
) -> Iterator[TextDocument]:
    """Every document, in order. Calls progress often, with the file bytes read so far."""
    before = 0
    for path in sources.files:
        is_validation = None if sources.validation is None else path in sources.validation
        try:
            with text_files.text(path) as (stream, position):
                for text in _documents(stream, path, sources):
                    yield TextDocument(text, is_validation)
                    progress(before + position())
        except OSError as error:
            raise DataError(
                "path_unreadable",
                f"cannot read {shown_path(path)}: {error.strerror or error}",
                path,
            ) from None
        before += path.stat().st_size
        progress(before)


def cut(text: str, max_chars: int) -> Iterator[str]:
    """Cut text into pieces of at most `max_chars`, at blank lines, else lines, else anywhere."""
    start = 0
    while len(text) - start > max_chars:
        end = start + max_chars
        for separator in ("\n\n", "\n"):
            found = text.rfind(separator, start, end)
            if found > start:
                end = found + len(separator)
                break
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _files(spec: DataSpec) -> walk.FoundFile:
    """C4 and Dolma, for example, call their JSONL `.json.gz`; beside *.jsonl a .json holds
    settings.
    """
    if spec.source != "jsonl":
        return walk.find(spec.path or "", lambda name: True, "text files")
    kind = "JSONL files (*.jsonl, *.json)"
    try:
        return walk.find(spec.path or "", lambda name: _ends(name, _JSONL), kind)
    except DataError as error:
        if error.code != "no_text":
            raise
    return walk.find(spec.path or "", lambda name: _ends(name, _JSON), kind)


def _ends(name: str, endings: tuple[str, ...]) -> bool:
    plain = text_files.without_compression(name).lower()
    return plain.endswith(endings) and plain not in _NO_DATA


def _split(sources: Sources, spec: DataSpec, found: walk.FoundFile) -> None:
    """Keep the files of the splits that the run uses; the others are skipped and counted."""
    choice = splits.choose_found(found, spec)
    for index in choice.left:
        sources.left.add("other_split", found.files[index])
    sources.files = [found.files[i] for i in sorted([*choice.train, *choice.validation])]
    if choice.validation:
        sources.validation = frozenset(found.files[i] for i in choice.validation)
        sources.split_rule = choice.rule
    sources.notes += choice.notes


def _documents(stream: BinaryIO | None, path: Path, sources: Sources) -> Iterator[str]:
    if sources.source == "jsonl":
        if stream is None:
            raise DataError(
                "bad_jsonl", f"line 1 of {shown_path(path)} is not text in UTF-8 or UTF-16", path
            )
        yield from _read_json(stream, path, sources)
    elif stream is None:
        sources.left.add("binary", path)
    else:
        yield from _read_text(stream, path, sources)


# --- text ----------------------------------------------------------------------------------------


def _read_text(stream: BinaryIO, path: Path, sources: Sources) -> Iterator[str]:
    max_chars = BUILTIN_CHARS if sources.source == "builtin" else TEXT_CHARS
    decode = _Decoder(path, sources)
    left = ""
    for chunk in _whole_characters(stream):
        pieces = list(cut(left + decode(chunk), max_chars))
        left = pieces.pop() if pieces else ""
        yield from (piece for piece in pieces if piece.strip())
    if left.strip():
        yield left


def _whole_characters(stream: BinaryIO) -> Iterator[bytes]:
    """Chunks that end at the end of a line, or without one, of a UTF-8 character."""
    left = b""
    while chunk := stream.read(READ_BYTES):
        chunk = left + chunk
        end = chunk.rfind(b"\n") + 1 or _last_character(chunk)
        left = chunk[end:]
        yield chunk[:end]
    if left:
        yield left


def _last_character(chunk: bytes) -> int:
    """Offset of a last, possibly incomplete UTF-8 character; the length if there is none."""
    for back in range(1, 4):
        if chunk[-back:][:1] >= b"\xc0":
            return len(chunk) - back or len(chunk)
    return len(chunk)


class _Decoder:
    """Decodes UTF-8; counts the first line of a file that does not decode, with its number."""

    def __init__(self, path: Path, sources: Sources) -> None:
        self._path, self._left = path, sources.left
        self._lines = 0
        self._is_damaged = False

    def __call__(self, chunk: bytes) -> str:
        if self._is_damaged:
            return chunk.decode("utf-8", "replace")
        try:
            text = chunk.decode("utf-8")
        except UnicodeDecodeError as error:
            self._is_damaged = True
            line = self._lines + chunk.count(b"\n", 0, error.start) + 1
            self._left.add("replaced_bytes", f"line {line:,} of {shown_path(self._path)}")
            return chunk.decode("utf-8", "replace")
        self._lines += chunk.count(b"\n")
        return text


# --- JSONL ---------------------------------------------------------------------------------------


def _read_json(stream: BinaryIO, path: Path, sources: Sources) -> Iterator[str]:
    """JSONL, or one array of such records: the first character decides."""
    sample = cast(io.BufferedReader, stream).peek(READ_BYTES)
    if sample.lstrip()[:1] == b"[":
        yield from _read_array(stream, path, sources)
    else:
        yield from _read_jsonl(stream, path, sources)


def _read_array(stream: BinaryIO, path: Path, sources: Sources) -> Iterator[str]:
    """The records of a JSON array, one in memory at a time. Raises DataError."""
    for number, record in enumerate(json_array.records(stream, MAX_LINE_BYTES), 1):
        if isinstance(record, json_array.BadArray):
            raise _bad_record(path, f"record {number:,}", record.why)
        text = _text_of(record, path, f"record {number:,}", sources)
        if text is not None:
            yield text


def _read_jsonl(stream: BinaryIO, path: Path, sources: Sources) -> Iterator[str]:
    decode = _Decoder(path, sources)
    number = 0
    while line := stream.readline(MAX_LINE_BYTES):
        number += 1
        if len(line) == MAX_LINE_BYTES:
            raise _bad_line(path, number, f"is longer than {MAX_LINE_BYTES:,} bytes")
        if not line.strip():
            decode(line)
            continue
        try:
            record = json.loads(decode(line))
        except (ValueError, RecursionError):
            raise _bad_line(path, number, "is not JSON") from None
        text = _text_of(record, path, f"line {number:,}", sources)
        if text is not None:
            yield text


def _text_of(record: Any, path: Path, where: str, sources: Sources) -> str | None:
    """The record's text; None if it is null or blank, which is counted. Raises DataError."""
    if not isinstance(record, dict):
        raise _bad_record(path, where, "is not a JSON object")
    if sources.column not in record:
        keys = ", ".join(map(str, list(record)[:SHOWN_KEYS])) or "none"
        advice = "name the one with the text as data.column"
        raise _bad_record(path, where, f"has no key '{sources.column}' (it has: {keys}); {advice}")
    text = record[sources.column]
    if text is not None and not isinstance(text, str):
        kind = type(text).__name__
        raise _bad_record(path, where, f"has a key '{sources.column}' that is {kind}, not text")
    if text is None or not text.strip():
        reason = "null_text" if text is None else "blank"
        sources.left.add(reason, f"{where} of {shown_path(path)}")
        return None
    if text.isascii():
        return text
    # JSON can contain a lone surrogate (\ud800), which no encoding can represent
    whole = text.encode("utf-8", "replace").decode("utf-8")
    if whole != text:
        sources.left.add("half_characters", f"{where} of {shown_path(path)}")
    return whole


def _bad_line(path: Path, number: int, why: str) -> DataError:
    return _bad_record(path, f"line {number:,}", why)


def _bad_record(path: Path, where: str, why: str) -> DataError:
    return DataError("bad_jsonl", f"{where} of {shown_path(path)} {why}", path)
