"""Configures glibc's malloc to keep freed memory.

A training step frees and reallocates the same hundreds of megabytes. By default glibc returns large
blocks to the kernel at once, and each step pays for fresh zeroed pages: 71,000 page faults per step
at depth 4, width 256, against 1,500, and 6 % of its CPU time.
"""

from __future__ import annotations

import ctypes
import ctypes.util

M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4
KEEP_BYTES = 1_000_000_000
TOP_PAD_BYTES = 64_000_000


def keep_freed_memory() -> bool:
    """Set malloc's thresholds; call once per process. Returns False without glibc."""
    return (
        _ask(M_MMAP_MAX, 0)
        and _ask(M_TRIM_THRESHOLD, KEEP_BYTES)
        and _ask(M_TOP_PAD, TOP_PAD_BYTES)
    )


def _ask(parameter: int, value: int) -> bool:
    try:
        return bool(ctypes.CDLL(None).mallopt(parameter, value))
    except (OSError, AttributeError):
        return False
