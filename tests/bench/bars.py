"""Bars: limits of measured values. A part prints `bar: …` lines; RESULTS.md collects them."""

from __future__ import annotations

from dataclasses import dataclass

_MARK = "bar: "


@dataclass(frozen=True)
class Bar:
    """A value and its limit, in `unit`. least: the limit is a floor, not a ceiling."""

    what: str
    value: float
    limit: float
    unit: str = "x"
    least: bool = False

    @property
    def holds(self) -> bool:
        return self.value >= self.limit if self.least else self.value <= self.limit

    def line(self) -> str:
        side = "at least" if self.least else "at most"
        verdict = "holds" if self.holds else "MISSED"
        return (
            f"{_MARK}{self.what} | {self.value:,.4g} {self.unit} | {side} {self.limit:,.4g} "
            f"{self.unit} | {verdict}"
        )


def at_least(what: str, value: float, limit: float, unit: str = "x") -> None:
    print(Bar(what, value, limit, unit, least=True).line(), flush=True)


def at_most(what: str, value: float, limit: float, unit: str = "x") -> None:
    print(Bar(what, value, limit, unit).line(), flush=True)


def cells(line: str) -> list[str] | None:
    """Name, value, bar and verdict of a `bar:` line; None for any other line."""
    return line.removeprefix(_MARK).split(" | ") if line.startswith(_MARK) else None
