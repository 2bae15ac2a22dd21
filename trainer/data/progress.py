"""Type of the callback that reports progress while a corpus is prepared."""

from __future__ import annotations

from collections.abc import Callable

ReportProgress = Callable[[float | None, str], None]  # fraction (None: unknown), words
