"""The callback by which preparing a corpus reports its progress."""

from __future__ import annotations

from collections.abc import Callable

ReportProgress = Callable[[float | None, str], None]  # fraction (None: unknown), words
