"""Opening hours: windows of a week in a time zone, and prices, as stretches of real time.

A window names days, a start and an end on the wall clock; one that ends at or before its start runs
past midnight and belongs to the day on which it starts. Clocks that change (daylight saving time)
make such a stretch an hour shorter or longer, no more. A rule may also set a price limit: it is
open while electricity costs less. All times here are seconds since the epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from typing import get_args
from zoneinfo import ZoneInfo

from server.scheduling.decide import ALWAYS, Opening
from trainer.contract.spec import HoursRule
from trainer.contract.spec.scheduling import Day

DAYS: tuple[str, ...] = get_args(Day)  # in the order of datetime's weekday()
HORIZON_DAYS = 8  # every weekly window begins once within it


@dataclass(frozen=True, order=True)
class OpenStretch:
    """A stretch of real time, [begin, end) in seconds since the epoch."""

    begin: float
    end: float


@dataclass(frozen=True)
class Price:
    """Price of a kWh during an interval, in the tariff's currency."""

    stretch: OpenStretch
    per_kwh: float


@dataclass(frozen=True)
class Rule:
    """A weekly window, with an optional price limit.

    days: names from DAYS on which it begins. begin, end: on the clock of `zone` (None: the
    machine's); equal ones are a whole day. price_below: open only while a kWh is known to cost
    less; None for any price.
    """

    days: frozenset[str] = frozenset(DAYS)
    begin: time = time(0)
    end: time = time(0)
    zone: str | None = None
    price_below: float | None = None

    def stretches(self, at: float, prices: Sequence[Price] = ()) -> Iterable[OpenStretch]:
        """From the day before `at` until HORIZON_DAYS after it, in order. An unknown price
        counts as closed."""
        weekly = list(self._weekly(at))
        if self.price_below is None:
            return weekly
        cheap = [price.stretch for price in prices if price.per_kwh < self.price_below]
        return sorted(overlaps(weekly, cheap))

    def _weekly(self, at: float) -> Iterable[OpenStretch]:
        zone = ZoneInfo(self.zone) if self.zone else None
        today = datetime.fromtimestamp(at, zone).date()
        for offset in range(-1, HORIZON_DAYS + 1):
            day = today + timedelta(days=offset)
            if DAYS[day.weekday()] in self.days:
                last = day if self.end > self.begin else day + timedelta(days=1)
                yield OpenStretch(_epoch(day, self.begin, zone), _epoch(last, self.end, zone))


def rules(asked: Sequence[HoursRule] | None) -> list[Rule] | None:
    """Parse the hours of a spec or policy as rules."""
    if asked is None:
        return None
    clock = time.fromisoformat
    return [
        Rule(frozenset(r.days), clock(r.begin), clock(r.end), r.zone, r.price_below) for r in asked
    ]


def opening(rules: Sequence[Rule] | None, at: float, prices: Sequence[Price] = ()) -> Opening:
    """Opening state of the union of the rules at `at`; None is always open."""
    if rules is None:
        return ALWAYS
    stretches = open_stretches(rules, at, prices)
    here = next((s for s in stretches if s.begin <= at < s.end), None)
    following = next((s.begin for s in stretches if s.begin > at), None)
    if here is None:
        return Opening(False, opens_at=following)
    is_endless = here.end - at > (HORIZON_DAYS - 1) * 86_400
    return Opening(True, None if is_endless else here.end, following)


def open_stretches(
    rules: Sequence[Rule], at: float, prices: Sequence[Price] = ()
) -> list[OpenStretch]:
    """The union of all rules around `at`, in order; adjacent stretches are merged.

    The last one is cut off at the horizon, a week later.
    """
    merged: list[OpenStretch] = []
    for stretch in sorted(s for rule in rules for s in rule.stretches(at, prices)):
        if merged and stretch.begin <= merged[-1].end:
            merged[-1] = OpenStretch(merged[-1].begin, max(merged[-1].end, stretch.end))
        elif stretch.end > stretch.begin:
            merged.append(stretch)
    return merged


def overlaps(some: Iterable[OpenStretch], others: Sequence[OpenStretch]) -> Iterable[OpenStretch]:
    """Intersection of two lists of stretches."""
    for one in some:
        for other in others:
            begin, end = max(one.begin, other.begin), min(one.end, other.end)
            if begin < end:
                yield OpenStretch(begin, end)


def _epoch(day: date, clock: time, zone: ZoneInfo | None) -> float:
    """A wall-clock time of a day, in seconds since the epoch. A skipped time counts from
    midnight; of a repeated one the first applies."""
    return datetime.combine(day, clock, zone).timestamp()
