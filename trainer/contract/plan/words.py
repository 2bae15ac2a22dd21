"""Formats durations, sizes and numbers for people."""

from __future__ import annotations


def hours(seconds: float) -> str:
    """A duration for people: '42.5 h', '12 min', '8 s'."""
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def number(value: float) -> str:
    """Four significant digits for people: '0.3536', '55,690', '1.16 × 10^19'."""
    if value and (abs(value) < 1e-4 or abs(value) >= 1e12):
        mantissa, power = f"{value:.2e}".split("e")
        return f"{mantissa} × 10^{int(power)}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def axis_number(value: float) -> str:
    """A number short enough for an axis label: '17.8 k', '2.74', '0.05'."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g} {letter}"
    return f"{value:.3g}"


def num_bytes(count: float) -> str:
    """Decimal bytes for people: '412 GB', '3.1 GB', '12 MB', '0 B'."""
    for size, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            scaled = count / size
            return f"{scaled:.1f} {unit}" if scaled < 10 else f"{scaled:.0f} {unit}"
    return f"{count:.0f} B"


def gigabytes(num_bytes: float) -> str:
    """Decimal gigabytes for people, megabytes when small."""
    return f"{num_bytes / 1e9:.2f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
