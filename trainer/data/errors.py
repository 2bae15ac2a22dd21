"""Errors about data, with sentences for people.

DataError            the input cannot be used (code, message, path)
└── DataChanged      a file is not what the run was prepared with (path, why)
"""

from __future__ import annotations

import re
from pathlib import Path

REASON_CHARS = 600
_NOISE = re.compile(r"\(Request ID: [^)]*\)|For more information check: \S+", re.IGNORECASE)


class DataError(Exception):
    """`code` is for programs, `message` is one plain sentence, `path` the file or folder meant."""

    def __init__(self, code: str, message: str, path: str | Path | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.path = None if path is None else str(path)


class DataChanged(DataError):
    """A file changed since the run was prepared; training on it would train on other data."""

    def __init__(self, path: str | Path, why: str) -> None:
        super().__init__("data_changed", f"{path} {why}", path)
        self.why = why


def reason(error: BaseException) -> str:
    """Another program's error message on one line.

    The cause is often at the end, so a long one is cut in its middle.
    """
    message = " ".join(_NOISE.sub("", str(error)).split())
    if len(message) > REASON_CHARS:
        message = f"{message[: REASON_CHARS // 2]} … {message[-REASON_CHARS // 2 :]}"
    return message or type(error).__name__
