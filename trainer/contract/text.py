"""Escapes untrusted strings for terminals, logs, error messages, Markdown, HTML and SVG.

Names, titles, log lines and model samples may contain any character. Those that would move the
cursor, set a title, change the reading direction or hide text are shown as escapes.
"""

from __future__ import annotations

import html
import json
import os
import re
from pathlib import PurePath
from typing import Any

PATH_CHARS = 300

# DEL, C1 (0x9B is a CSI of its own), line and paragraph separators, bidirectional controls,
# zero-width characters, the byte-order mark, annotations and tags.
_ALWAYS_UNSAFE = (
    "\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202f\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f"
)
_UNSAFE = re.compile(f"[\x00-\x1f{_ALWAYS_UNSAFE}]")
_UNSAFE_IN_LINES = re.compile(f"[\x00-\x08\x0b-\x1f{_ALWAYS_UNSAFE}]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|])")
_NAMED = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def clean(value: object) -> str:
    """`value` on one line, every control character as a visible escape."""
    return _UNSAFE.sub(_escape, str(value))


def clean_lines(value: object) -> str:
    """Escape control characters except line feeds and tabs."""
    return _UNSAFE_IN_LINES.sub(_escape, str(value).replace("\r\n", "\n"))


def printable(value: object, limit: int = 80) -> str:
    """`value` in an error message: one line of at most `limit` characters before escaping."""
    return clean(shorten(value if isinstance(value, str) else repr(value), limit))


def log_line(line: str) -> str:
    """A line of a log: control bytes escaped, and only the last state of a progress bar."""
    line = line.rpartition("\r")[2] if not line.endswith("\r") else line.rstrip("\r")
    return clean_lines(line)


def shown_path(where: str | PurePath) -> str:
    """A path in a message or in JSON: printable UTF-8 on one line, the end of a long one."""
    path = clean(os.fsencode(where).decode("utf-8", "backslashreplace"))
    return path if len(path) <= PATH_CHARS else f"…{path[-PATH_CHARS + 1 :]}"


def markup(value: str) -> str:
    """`value` on one line of HTML or SVG, or in an attribute."""
    return html.escape(_spaced(value))


def markup_lines(value: str) -> str:
    """`value` in an HTML <pre>: line feeds and tabs stay."""
    return html.escape(_printable_lines(value))


def markdown(value: str) -> str:
    """`value` on one line of Markdown or in a cell of a table, as plain text."""
    return _MARKDOWN.sub(r"\\\1", " ".join(_spaced(value).split()))


def markdown_lines(value: str) -> list[str]:
    """`value` as a code block, whose fence is longer than any in it."""
    longest = max((len(run) for run in re.findall(r"`+", value)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence, *_printable_lines(value).split("\n"), fence]


def to_json(value: Any) -> str:
    """JSON for a script: plain ASCII, so that it is harmless on a terminal as well."""
    return json.dumps(value, indent=2, ensure_ascii=True, allow_nan=False)


def shorten(value: str, width: int) -> str:
    return value if len(value) <= width else value[: max(0, width - 1)] + "…"


def _spaced(value: str) -> str:
    """Every unprintable character, line feeds included, becomes a space: prose has no escapes."""
    return "".join(char if char.isprintable() else " " for char in value)


def _printable_lines(value: str) -> str:
    return "".join(char for char in value if char in "\n\t" or char.isprintable())


def _escape(match: re.Match[str]) -> str:
    char = match.group()
    code = ord(char)
    if code >= 0x10000:
        return f"\\U{code:08x}"
    return _NAMED.get(char) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
