"""Errors about imported and exported files."""

from __future__ import annotations

from pathlib import Path


class InteropError(Exception):
    """A file was refused. `str()` is one sentence for a person: the file and the reason."""

    def __init__(self, file: Path | str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = str(file)
        self.reason = reason
