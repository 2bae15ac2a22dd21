"""Documents from text files, JSONL and the Python standard library.

Text is cut at blank lines into documents of bounded length, since best-fit packing throws away
what is left of a document that does not fit into a row. Nothing is lost in cutting.
"""

from __future__ import annotations

import json
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainer.data.errors import DataError

BUILTIN_CHARS = 800  # about one row of the demo's 256 tokens
TEXT_CHARS = 6000  # about one row of 2,048 tokens
READ_BYTES = 4 << 20
MAX_LINE_BYTES = 256 << 20
_NOT_BUILTIN = {"test", "tests", "site-packages", "__pycache__", "idle_test", "lib2to3"}
_JSONL = {".jsonl", ".ndjson"}


@dataclass
class Sources:
    """The files to read, with what people should know about those left out."""

    source: str
    root: Path
    files: list[Path]
    notes: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)

    def listing(self) -> list[tuple[str, int, int, int]]:
        """Name, size, time and inode of every file: the same listing is the same text."""
        stats = [(path, path.stat()) for path in self.files]
        return [(str(path), s.st_size, s.st_mtime_ns, s.st_ino) for path, s in stats]

    def total_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.files)


def builtin() -> Sources:
    """The standard library's own source on this machine, without its tests."""
    root = Path(sysconfig.get_path("stdlib"))
    files = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_BUILTIN]
        files.extend(Path(folder) / name for name in names if name.endswith(".py"))
    files.sort()
    if not files:
        raise DataError("no_text", f"this Python has no source of its standard library in {root}")
    return Sources("builtin", root, files)


def find(source: str, path: str | Path) -> Sources:
    """The text or JSONL files at a path: itself, or all in the directory, in name order.

    Raises DataError for a path that is missing, unreadable or without such files.
    """
    root = Path(path).expanduser()
    _check_exists(root)
    if not root.is_dir():
        if not root.is_file():
            raise DataError("path_not_a_file", f"{root} is neither a file nor a folder", root)
        return Sources(source, root.parent, [root])
    found = Sources(source, root, [])
    for folder, folders, names in os.walk(root, onerror=_unreadable):
        _skip_linked_folders(Path(folder), folders, found)
        for name in sorted(names):
            candidate = Path(folder) / name
            if not name.startswith(".") and _is_wanted(candidate, source, found):
                found.files.append(candidate)
    found.files.sort()
    if not found.files:
        kind = "JSONL files (*.jsonl)" if source == "jsonl" else "text files"
        raise DataError("no_text", f"no {kind} in {root}", root)
    return found


def read(sources: Sources) -> Iterator[tuple[str, int]]:
    """Every document with the number of bytes read so far."""
    done = 0
    for path in sources.files:
        reading = _read_jsonl if sources.source == "jsonl" else _read_text
        try:
            yield from ((text, done) for text in reading(path, sources))
        except OSError as error:
            raise DataError(
                "path_unreadable", f"cannot read {path}: {error.strerror or error}", path
            ) from None
        done += path.stat().st_size
    if sources.damaged:
        sources.notes.append(
            f"{len(sources.damaged)} files hold bytes that are not UTF-8, read as U+FFFD; "
            f"the first is {sources.damaged[0]}"
        )


def cut(text: str, max_chars: int) -> Iterator[str]:
    """Pieces of at most `max_chars`, ended at blank lines, else lines, else anywhere."""
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


def _read_text(path: Path, sources: Sources) -> Iterator[str]:
    """Pieces of a text file. Binary files (a NUL in the beginning) are left out."""
    max_chars = BUILTIN_CHARS if sources.source == "builtin" else TEXT_CHARS
    left = ""
    with path.open("rb") as file:
        for number, chunk in enumerate(_whole_characters(file)):
            if number == 0 and b"\0" in chunk[:8192]:
                sources.notes.append(f"{path} is left out: it is binary")
                return
            text = _decode(chunk, path, sources)
            pieces = list(cut(left + text.removeprefix("\ufeff"), max_chars))
            left = pieces.pop() if pieces else ""
            yield from (piece for piece in pieces if piece.strip())
    if left.strip():
        yield left


def _whole_characters(file) -> Iterator[bytes]:
    """Chunks that end at a line's end, or where there is none, at a character's."""
    left = b""
    while chunk := file.read(READ_BYTES):
        chunk = left + chunk
        end = chunk.rfind(b"\n") + 1 or _last_character(chunk)
        left = chunk[end:]
        yield chunk[:end]
    if left:
        yield left


def _last_character(chunk: bytes) -> int:
    """Where the last UTF-8 character that may be incomplete begins; the end if there is none."""
    for back in range(1, 4):
        if chunk[-back:][:1] >= b"\xc0":
            return len(chunk) - back or len(chunk)
    return len(chunk)


def _read_jsonl(path: Path, sources: Sources) -> Iterator[str]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES):
            number += 1
            if len(line) == MAX_LINE_BYTES:
                raise _bad_line(path, number, f"is longer than {MAX_LINE_BYTES:,} bytes")
            if not line.strip():
                continue
            try:
                record = json.loads(_decode(line, path, sources))
            except (ValueError, RecursionError):
                raise _bad_line(path, number, "is not JSON") from None
            text = record.get("text") if isinstance(record, dict) else None
            if not isinstance(text, str):
                raise _bad_line(path, number, "has no key 'text' with a text")
            if text.strip():
                # JSON can spell half a character (\ud800), which no encoding can hold
                yield text.encode("utf-8", "replace").decode("utf-8")


def _decode(chunk: bytes, path: Path, sources: Sources) -> str:
    text = chunk.decode("utf-8", "replace")
    if text.count("\ufffd") > chunk.count(b"\xef\xbf\xbd") and str(path) not in sources.damaged:
        sources.damaged.append(str(path))
    return text


def _is_wanted(path: Path, source: str, found: Sources) -> bool:
    if path.is_symlink() and not path.exists():
        raise DataError("path_not_found", f"{path} is a link to something that is not there", path)
    if source == "jsonl" and path.suffix not in _JSONL:
        return False
    if not path.is_file():
        found.notes.append(f"{path} is left out: it is no regular file")
        return False
    return path.stat().st_size > 0


def _skip_linked_folders(folder: Path, folders: list[str], found: Sources) -> None:
    """os.walk does not follow links to folders, which could lead in a circle; say so."""
    folders[:] = sorted(name for name in folders if not name.startswith("."))
    for name in folders:
        if (folder / name).is_symlink():
            found.notes.append(f"{folder / name} is left out: it is a link to a folder")


def _check_exists(path: Path) -> None:
    try:
        path.stat()
    except FileNotFoundError:
        raise DataError("path_not_found", f"{path} does not exist", path) from None
    except OSError as error:
        raise _unreadable(error, path) from None


def _unreadable(error: OSError, path: Path | None = None) -> DataError:
    where = path or error.filename
    raise DataError("path_unreadable", f"cannot read {where}: {error.strerror}", where) from None


def _bad_line(path: Path, number: int, why: str) -> DataError:
    return DataError("bad_jsonl", f"line {number} of {path} {why}", path)
