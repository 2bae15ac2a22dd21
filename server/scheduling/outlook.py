"""Outlook of work that is limited to certain hours: its end and the price of its energy. Pure.

The open hours of the next week are walked; hours that depend on prices only as far as these are
known. Work beyond them continues at the same share of open time. A pause between two stretches is
free here, because it takes minutes and the work takes hours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from server.scheduling.decide import START_LEAD_SECONDS
from server.scheduling.hours import OpenStretch, Price, Rule, open_stretches, overlaps

WALKED_SECONDS = 7 * 86_400.0


@dataclass(frozen=True)
class Outlook:
    """Expected end and price. finish_at: seconds since the epoch; None if the hours never open.
    is_walked: True if it lies within the walked hours. price_per_kwh: mean over the hours of the
    work, in the tariff's currency; None if no price of them is known."""

    finish_at: float | None
    is_walked: bool = True
    price_per_kwh: float | None = None


def outlook(
    seconds: float, now: float, hours: Sequence[Sequence[Rule]], prices: Sequence[Price] = ()
) -> Outlook:
    """Expected end of `seconds` of work from `now` on, done while all of `hours` are open."""
    until = _walked_until(now, hours, prices)
    stretches = _open(hours, now, until, prices)
    used = _spent(stretches, seconds)
    left = seconds - _length(used)
    if left <= 1e-6:
        finish = used[-1].end if used else now
        return Outlook(finish, price_per_kwh=_mean_price(used, prices))
    share = _length(stretches) / (until - now) if until > now else 0.0
    finish = until + left / share if share else None
    return Outlook(finish, is_walked=False, price_per_kwh=_mean_price(used, prices))


def _walked_until(now: float, hours: Sequence[Sequence[Rule]], prices: Sequence[Price]) -> float:
    week = now + WALKED_SECONDS
    if all(rule.price_below is None for rules in hours for rule in rules):
        return week
    return min(week, max((price.stretch.end for price in prices), default=now))


def _open(
    hours: Sequence[Sequence[Rule]], now: float, until: float, prices: Sequence[Price]
) -> list[OpenStretch]:
    """Stretches between `now` and `until` in which all are open and a start is possible."""
    whole = [OpenStretch(now, until)] if until > now else []
    found = reduce(
        lambda open_ones, rules: list(overlaps(open_ones, open_stretches(rules, now, prices))),
        hours,
        whole,
    )
    return [s for s in found if s.begin <= now or s.end - s.begin >= START_LEAD_SECONDS]


def _spent(stretches: Sequence[OpenStretch], seconds: float) -> list[OpenStretch]:
    """The first `seconds` of the stretches."""
    used: list[OpenStretch] = []
    for stretch in stretches:
        take = min(seconds, stretch.end - stretch.begin)
        if take <= 0:
            break
        used.append(OpenStretch(stretch.begin, stretch.begin + take))
        seconds -= take
    return used


def _mean_price(used: Sequence[OpenStretch], prices: Sequence[Price]) -> float | None:
    paid = [
        (both.end - both.begin, price.per_kwh)
        for price in prices
        for both in overlaps(used, [price.stretch])
    ]
    seconds = sum(length for length, _ in paid)
    return sum(length * price for length, price in paid) / seconds if seconds else None


def _length(stretches: Sequence[OpenStretch]) -> float:
    return sum(stretch.end - stretch.begin for stretch in stretches)
