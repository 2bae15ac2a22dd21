"""Formats durations, sizes, rates and times; `None` becomes a dash."""

from __future__ import annotations

import time

from trainer.contract.metrics import JOULES_PER_KWH

DASH = "–"


def steps(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f}"


def count(value: float | None) -> str:
    """A count as text: '286.3 M', '8.52 B', '812' (three digits and a prefix)."""
    return (
        DASH
        if value is None
        else _prefixed(value, (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)))
    )


def num_bytes(value: float | None) -> str:
    """A size as text, with decimal units: '793 MB', '1.25 GB'."""
    if value is None:
        return DASH
    if abs(value) < 1000:
        return f"{value:.0f} B"
    return _prefixed(value, (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)))


def flops(value: float | None) -> str:
    if value is None:
        return DASH
    if value >= 1e17:
        return f"{value:.2e} FLOP"
    return _prefixed(value, (("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)))


def seconds(value: float | None) -> str:
    """A duration as text, in its two largest units: '1 d 18 h', '3 min 20 s', '8.1 s'."""
    if value is None:
        return DASH
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(value / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(value / 3600)
    return f"{hours // 24} d {hours % 24} h"


def rate(tokens_per_second: float | None) -> str:
    return DASH if tokens_per_second is None else f"{count(tokens_per_second)} tok/s"


def percent(fraction: float | None, digits: int = 1) -> str:
    return DASH if fraction is None else f"{100 * fraction:.{digits}f} %"


def number(value: float | None, digits: int = 4) -> str:
    """A loss or learning rate as text: fixed digits, or scientific if they would all be zero."""
    if value is None:
        return DASH
    if value and abs(value) < 10 ** (1 - digits):
        return f"{value:.2e}"
    return f"{value:.{digits}f}"


def moment(unix_seconds: float | None) -> str:
    """Local time as text; with the date unless it is today."""
    if unix_seconds is None:
        return DASH
    then, now = time.localtime(unix_seconds), time.localtime()
    form = "%H:%M:%S" if then[:3] == now[:3] else "%Y-%m-%d %H:%M"
    return time.strftime(form, then)


def ago(unix_seconds: float | None, now: float | None = None) -> str:
    if unix_seconds is None:
        return DASH
    since = (time.time() if now is None else now) - unix_seconds
    return "just now" if since < 1 else f"{seconds(since)} ago"


def kilowatt_hours(joules: float) -> float:
    return joules / JOULES_PER_KWH


def _prefixed(value: float, prefixes: tuple[tuple[str, float], ...]) -> str:
    for prefix, scale in prefixes:
        if abs(value) >= scale * 0.9995:  # 999,950 is 1 M and not 1,000 k
            scaled = value / scale
            digits = 2 if abs(scaled) < 9.995 else 1 if abs(scaled) < 99.95 else 0
            return f"{scaled:.{digits}f} {prefix}"
    return f"{value:.0f}" if float(value).is_integer() or abs(value) >= 100 else f"{value:.1f}"
