"""Errors about imported and exported files."""

from __future__ import annotations

from pathlib import Path


class InteropError(Exception):
    """A file that was not taken, and why. `str()` is one sentence for a person."""

    def __init__(self, file: Path | str, reason: str) -> None:
        super().__init__(f"{file}: {reason}")
        self.file = str(file)
        self.reason = reason
