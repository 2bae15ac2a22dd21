"""Units for people: one table for the programs and for the page."""

from __future__ import annotations

import math
import re
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.contract import units

NOW = 1_764_400_000.0
# (name here, name in format.js, arguments, text)
ALIKE: tuple[tuple[str, str, tuple[Any, ...], str], ...] = (
    ("integer", "integer", (130_000,), "130,000"),
    ("fixed", "fixed", (3.21014, 4), "3.2101"),
    ("fixed", "fixed", (0.0000123, 4), "1.23 × 10⁻⁵"),
    ("fixed", "fixed", (0.0, 4), "0.0000"),
    ("fixed", "fixed", (2, 0), "2"),
    ("significant", "significant", (0.353553,), "0.3536"),
    ("significant", "significant", (55_690.4,), "55,690"),
    ("significant", "significant", (7.56e18,), "7.56 × 10¹⁸"),
    ("significant", "significant", (-0.00001,), "-1.00 × 10⁻⁵"),
    ("exponent", "exponent", (1.16e19,), "1.16 × 10¹⁹"),
    ("count", "count", (13_107_000_000,), "13.1 B"),
    ("count", "count", (286_261_730,), "286 M"),
    ("count", "count", (999_950,), "1 M"),
    ("count", "count", (999_400,), "999 k"),
    ("count", "count", (812,), "812"),
    ("count", "count", (0.05,), "0.05"),
    ("count", "count", (0,), "0"),
    ("percent", "percent", (0.123,), "12 %"),
    ("percent", "percent", (0.123, 1), "12.3 %"),
    ("progress", "progress", (0.99996,), "99.9 %"),
    ("progress", "progress", (1.0,), "100 %"),
    ("num_bytes", "bytes", (0,), "0 B"),
    ("num_bytes", "bytes", (812,), "812 B"),
    ("num_bytes", "bytes", (793e6,), "793 MB"),
    ("num_bytes", "bytes", (1.25e9,), "1.25 GB"),
    ("num_bytes", "bytes", (999_950,), "1 MB"),
    ("num_bytes", "bytes", (1_048_576,), "1.05 MB"),
    ("num_bytes", "bytes", (4.1e12,), "4.1 TB"),
    ("flops", "flops", (887e6,), "887 MFLOP"),
    ("flops", "flops", (58.3e12,), "58.3 TFLOP"),
    ("flops", "flops", (1.979e15,), "1.98 PFLOP"),
    ("flops", "flops", (7.56e18,), "7.56 × 10¹⁸ FLOP"),
    ("rate", "rate", (55_700.2,), "55,700 tok/s"),
    ("rate", "rate", (2.3456,), "2.35 tok/s"),
    ("energy", "energy", (2_220_000,), "0.62 kWh"),
    ("kwh", "kwh", (1204.5,), "1,204.50 kWh"),
    ("watts", "watts", (187.4,), "187 W"),
    ("celsius", "celsius", (61.2,), "61 °C"),
    ("cost", "cost", (1204.5,), "1,204.50"),
    ("duration", "duration", (0,), "0 s"),
    ("duration", "duration", (0.000312,), "0.312 ms"),
    ("duration", "duration", (0.118,), "118 ms"),
    ("duration", "duration", (0.9996,), "1 s"),
    ("duration", "duration", (8.144,), "8.14 s"),
    ("duration", "duration", (59.96,), "1 min"),
    ("duration", "duration", (252,), "4 min 12 s"),
    ("duration", "duration", (3599.4,), "59 min 59 s"),
    ("duration", "duration", (3599.6,), "1 h"),
    ("duration", "duration", (82_800,), "23 h"),
    ("duration", "duration", (152_992,), "42 h 30 min"),
    ("duration", "duration", (48 * 3600 - 20,), "2 d"),
    ("duration", "duration", (7 * 86_400 + 3600,), "7 d 1 h"),
    ("ago", "ago", (NOW - 2, NOW), "just now"),
    ("ago", "ago", (NOW + 9, NOW), "just now"),
    ("ago", "ago", (NOW - 89, NOW), "89 s ago"),
    ("ago", "ago", (NOW - 150, NOW), "3 min ago"),
    ("ago", "ago", (NOW - 3 * 3600, NOW), "3 h ago"),
    ("ago", "ago", (NOW - 3 * 86_400, NOW), "3 d ago"),
)  # fmt: skip


@pytest.mark.parametrize(("name", "_", "arguments", "text"), ALIKE)
def test_a_quantity_is_written_for_people(
    name: str, _: str, arguments: tuple[Any, ...], text: str
) -> None:
    assert getattr(units, name)(*arguments) == text


@pytest.mark.parametrize("name", sorted({name for name, *_ in ALIKE}))
def test_what_is_unknown_is_a_dash(name: str) -> None:
    assert getattr(units, name)(None) == units.DASH


def test_a_duration_that_is_not_finite_is_a_dash() -> None:
    assert units.duration(math.inf) == units.DASH


def test_clock_times() -> None:
    midnight = time.mktime((2026, 11, 21, 0, 0, 0, 0, 0, -1))
    assert units.when(midnight + 14 * 3600 + 309, now=midnight + 80_000) == "14:05:09"
    assert units.when(midnight + 14 * 3600, now=midnight + 90_000) == "2026-11-21 14:00"
    assert units.exactly(midnight + 9) == "2026-11-21 00:00:09"
    assert re.fullmatch(r"2026-11-21 00:00 UTC[+-]\d{4}", units.zoned(midnight))
    assert units.utc(1_764_400_000) == "2025-11-29 07:06 UTC"
    assert units.stamp(1_764_400_000) == "20251129T070640Z"
    for write in (units.when, units.exactly, units.zoned, units.utc):
        assert write(None) == units.DASH


@given(st.floats(0, 1e17))
def test_no_quantity_is_off_by_more_than_its_third_digit(value: float) -> None:
    scale = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}
    number, unit = units.num_bytes(value).split()
    assert abs(float(number) * scale[unit] - value) <= max(0.5, 0.0051 * value)


@given(st.floats(1e-6, 1e9), st.floats(1e-6, 1e9))
def test_a_longer_duration_never_reads_as_a_shorter_one(one: float, other: float) -> None:
    size = {"ms": 1e-3, "s": 1, "min": 60, "h": 3600, "d": 86_400}

    def read(text: str) -> float:
        parts = text.split()
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return sum(float(number) * size[unit] for number, unit in pairs)

    low, high = sorted((one, other))
    assert read(units.duration(low)) <= read(units.duration(high)) * (1 + 1e-9)
