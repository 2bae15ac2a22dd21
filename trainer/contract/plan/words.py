"""Durations and sizes for people."""

from __future__ import annotations


def hours(seconds: float) -> str:
    """A duration for people: '42.5 h', '12 min', '8 s'."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def gigabytes(num_bytes: float) -> str:
    """Decimal gigabytes for people, megabytes when small."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
