"""Formats sizes, durations, clock times, counts and rates for people; `None` becomes a dash.

The only module that scales a number or chooses its unit: three significant digits, decimal prefixes
(1 kB = 1,000 B), a unit chosen by size. server/web/format.js does the same for the page, and
tests/contract/test_units.py holds the two to one table.

Written in place: an exact whole number (`f"{step:,}"`), a loss with its decimals, and a setting as
it was given (`f"{watts:g} W"`).
"""

from __future__ import annotations

import math
import time
from datetime import UTC, datetime

from trainer.contract.metrics import JOULES_PER_KWH

DASH = "–"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_COUNTS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))  # B as in "7 B parameters"
_NEXT = 0.9995  # of a unit: 999,950 is 1 M and not 1,000 k


# --- numbers -------------------------------------------------------------------------------------


def integer(value: float | None) -> str:
    """'130,000'"""
    return DASH if value is None else f"{value:,.0f}"


def fixed(value: float | None, digits: int = 4) -> str:
    """A loss or a learning rate: fixed decimals, or a power of ten if they would all be zeros."""
    if value is None:
        return DASH
    is_lost = value and abs(value) < min(0.01, 10 ** (1 - digits))
    return exponent(value) if is_lost else f"{value:.{digits}f}"


def significant(value: float | None, digits: int = 4) -> str:
    """'0.3536', '55,690', '1.16 × 10¹⁹'"""
    if value is None:
        return DASH
    if value and (abs(value) < 1e-4 or abs(value) >= 1e15):
        return exponent(value, min(digits, 3))
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.{digits}g}"


def exponent(value: float | None, digits: int = 3) -> str:
    """'1.16 × 10¹⁹'"""
    if value is None:
        return DASH
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa} × 10{str(int(power)).translate(_SUPERSCRIPTS)}"


def count(value: float | None) -> str:
    """Parameters, tokens, or a label of an axis: '13.1 B', '17.8 k', '812', '0.05'."""
    return DASH if value is None else _scaled(value, _COUNTS) or significant(value, 3)


def percent(fraction: float | None, digits: int = 0) -> str:
    """0.12 -> '12 %'"""
    return DASH if fraction is None else f"{100 * fraction:.{digits}f} %"


def progress(fraction: float | None) -> str:
    """The share done, never rounded up to done: 0.9999 -> '99.9 %'."""
    if fraction is None:
        return DASH
    return "100 %" if fraction >= 1 else f"{int(fraction * 1000) / 10:.1f} %"


# --- quantities with a unit ----------------------------------------------------------------------


def num_bytes(value: float | None) -> str:
    """'793 MB', '1.25 GB', '12 B'"""
    if value is None:
        return DASH
    return f"{_scaled(value, _PREFIXES) or f'{value:.0f} '}B"


def flops(value: float | None) -> str:
    """'887 MFLOP', '7.56 × 10¹⁸ FLOP'"""
    if value is None:
        return DASH
    if value >= 1e17:
        return f"{exponent(value)} FLOP"
    return f"{_scaled(value, ((1e15, 'P'), *_PREFIXES)) or f'{value:.0f} '}FLOP"


def rate(tokens_per_second: float | None) -> str:
    """'55,700 tok/s', '2.35 tok/s'"""
    if tokens_per_second is None:
        return DASH
    value = tokens_per_second
    return f"{integer(value) if abs(value) >= 100 else significant(value, 3)} tok/s"


def energy(joules: float | None) -> str:
    """'0.62 kWh'"""
    return DASH if joules is None else kwh(joules / JOULES_PER_KWH)


def kwh(kilowatt_hours: float | None) -> str:
    return DASH if kilowatt_hours is None else f"{kilowatt_hours:,.2f} kWh"


def watts(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f} W"


def joules(value: float | None) -> str:
    return DASH if value is None else f"{value:,.0f} J"


def celsius(value: float | None) -> str:
    return DASH if value is None else f"{value:.0f} °C"


def cost(value: float | None) -> str:
    """A sum of money, whose currency the settings do not name: '1,204.50'."""
    return DASH if value is None else f"{value:,.2f}"


# --- time ----------------------------------------------------------------------------------------


def duration(seconds: float | None) -> str:
    """In its two largest units: '4 d 6 h', '42 h 30 min', '3 min 20 s', '8.14 s', '118 ms'."""
    if seconds is None or not math.isfinite(seconds):
        return DASH
    if 0 < seconds < 0.9995:
        return f"{significant(seconds * 1000, 3)} ms"
    if seconds < 59.95:
        return f"{seconds:.3g} s"
    if seconds < 3599.5:
        return _two(int(seconds + 0.5), 60, "min", "s")
    if seconds < 48 * 3600 - 30:
        return _two(int(seconds / 60 + 0.5), 60, "h", "min")
    return _two(int(seconds / 3600 + 0.5), 24, "d", "h")


def minutes(seconds: float | None) -> str:
    """'2,549.86 min': in minutes whatever the size, as nanochat's report has it."""
    return DASH if seconds is None else f"{seconds / 60:,.2f} min"


def ago(unix_seconds: float | None, now: float | None = None) -> str:
    """'12 s ago', '3 h ago'"""
    if unix_seconds is None:
        return DASH
    since = max(0.0, (time.time() if now is None else now) - unix_seconds)
    if since < 5:
        return "just now"
    for most, size, unit in ((90, 1, "s"), (5400, 60, "min"), (129_600, 3600, "h")):
        if since < most:
            return f"{int(since / size + 0.5)} {unit} ago"
    return f"{int(since / 86_400 + 0.5)} d ago"


def when(unix_seconds: float | None, now: float | None = None) -> str:
    """Local time: '14:05:09' today, else '2026-11-21 14:05'."""
    if unix_seconds is None:
        return DASH
    then, today = time.localtime(unix_seconds), time.localtime(now)
    form = "%H:%M:%S" if then[:3] == today[:3] else "%Y-%m-%d %H:%M"
    return time.strftime(form, then)


def exactly(unix_seconds: float | None) -> str:
    """Local time for a record: '2026-11-21 14:05:09'."""
    if unix_seconds is None:
        return DASH
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_seconds))


def zoned(unix_seconds: float | None) -> str:
    """The machine's time, for a reader who may be elsewhere: '2026-11-21 14:05 UTC+0100'."""
    if unix_seconds is None:
        return DASH
    return datetime.fromtimestamp(unix_seconds).astimezone().strftime("%Y-%m-%d %H:%M UTC%z")


def utc(unix_seconds: float | None) -> str:
    """'2026-11-21 14:05 UTC', for documents that leave the machine."""
    if unix_seconds is None:
        return DASH
    return datetime.fromtimestamp(unix_seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def stamp(unix_seconds: float | None = None) -> str:
    """UTC in the name of a file or a folder, which sorts by time: '20261121T140509Z'. None: now."""
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(unix_seconds))


def _scaled(value: float, prefixes: tuple[tuple[float, str], ...]) -> str | None:
    for size, prefix in prefixes:
        if abs(value) >= size * _NEXT:
            return f"{value / size:.3g} {prefix}"
    return None


def _two(count: int, base: int, large: str, small: str) -> str:
    first, rest = divmod(count, base)
    return f"{first} {large} {rest} {small}" if rest else f"{first} {large}"
