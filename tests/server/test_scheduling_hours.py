"""Weekly hours as stretches of real time: over midnight, over both changes of the clock, merged."""

from __future__ import annotations

import time as clock
from datetime import datetime, time
from zoneinfo import ZoneInfo

import pytest

from server.scheduling.decide import ALWAYS, Opening
from server.scheduling.hours import DAYS, OpenStretch, Price, Rule, open_stretches, opening, rules
from trainer.contract.spec import HoursRule

BERLIN = "Europe/Berlin"
EVERY_DAY = frozenset(DAYS)


def epoch(text: str, zone: str = BERLIN, fold: int = 0) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()


def window(begin: str, end: str, *days: str, zone: str = BERLIN) -> Rule:
    chosen = frozenset(days) or EVERY_DAY
    return Rule(chosen, time.fromisoformat(begin), time.fromisoformat(end), zone)


def test_a_window_over_midnight_belongs_to_the_day_it_starts_on() -> None:
    friday = window("22:00", "07:00", "fri")
    saturday = epoch("2026-11-28T03:00")
    assert open_stretches([friday], saturday)[0].begin == epoch("2026-11-27T22:00")
    next_friday = epoch("2026-12-04T22:00")
    assert opening([friday], saturday) == Opening(True, epoch("2026-11-28T07:00"), next_friday)
    later = opening([friday], epoch("2026-11-28T22:30"))
    assert later == Opening(False, opens_at=next_friday)


def test_the_end_is_shut_and_the_begin_is_open() -> None:
    morning = window("08:00", "09:00")
    assert opening([morning], epoch("2026-11-28T08:00")).is_open
    assert not opening([morning], epoch("2026-11-28T09:00")).is_open


@pytest.mark.parametrize(
    ("night", "hours"),
    [("2026-03-27T22:30", 9.5), ("2026-03-28T22:30", 8.5), ("2026-10-24T22:30", 10.5)],
    ids=["an ordinary night", "the clock goes forward", "the clock goes back"],
)
def test_a_night_is_as_long_as_the_clock_makes_it(night: str, hours: float) -> None:
    stretches = open_stretches([window("22:00", "07:30")], epoch(night))
    here = next(s for s in stretches if s.begin <= epoch(night) < s.end)
    assert (here.end - here.begin) / 3_600 == hours


def test_a_time_that_the_clock_skips_begins_after_the_gap() -> None:
    begin = opening([window("02:30", "05:00")], epoch("2026-03-29T00:00")).opens_at
    assert begin is not None
    assert (
        datetime.fromtimestamp(begin, ZoneInfo(BERLIN)).isoformat() == "2026-03-29T03:30:00+02:00"
    )


def test_windows_that_touch_or_overlap_are_one() -> None:
    windows = [window("22:00", "00:00"), window("00:00", "06:00"), window("05:00", "07:00")]
    at = epoch("2026-11-28T23:00")
    assert opening(windows, at).closes_at == epoch("2026-11-29T07:00")


def test_the_same_begin_and_end_are_a_whole_day() -> None:
    weekend = window("00:00", "00:00", "sat", "sun")
    at = epoch("2026-11-28T12:00")
    assert opening([weekend], at).closes_at == epoch("2026-11-30T00:00")
    monday = epoch("2026-11-30T12:00")
    assert opening([weekend], monday).opens_at == epoch("2026-12-05T00:00")


def test_a_window_counts_in_its_own_zone() -> None:
    at = epoch("2026-11-28T21:00", "UTC")
    tokyo = opening([window("06:00", "07:00", zone="Asia/Tokyo")], at)
    assert tokyo.closes_at == epoch("2026-11-28T22:00", "UTC")


def test_without_a_zone_the_machines_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    clock.tzset()
    try:
        at = epoch("2026-11-28T21:00", "UTC")
        found = opening(rules([HoursRule.model_validate({"from": "06:00", "to": "07:00"})]), at)
    finally:
        monkeypatch.undo()
        clock.tzset()
    assert found.closes_at == epoch("2026-11-28T22:00", "UTC")


def test_no_rules_are_always_open_and_an_empty_list_never() -> None:
    at = epoch("2026-11-28T12:00")
    assert opening(None, at) == ALWAYS
    assert opening([], at) == Opening(False)


def test_a_rule_for_all_the_time_has_no_end() -> None:
    assert opening([Rule()], epoch("2026-11-28T12:00")).closes_at is None


class TestPrices:
    @staticmethod
    def prices(*per_kwh: float) -> list[Price]:
        """One for each hour from noon on."""
        noon = epoch("2026-11-28T12:00", "UTC")
        hours = range(len(per_kwh))
        return [
            Price(OpenStretch(noon + i * 3_600, noon + (i + 1) * 3_600), per_kwh[i]) for i in hours
        ]

    def test_cheap_hours_that_touch_are_one_stretch(self) -> None:
        at = epoch("2026-11-28T12:30", "UTC")
        found = opening([Rule(price_below=0.2)], at, self.prices(0.1, 0.19, 0.2, 0.1))
        assert found == Opening(
            True, epoch("2026-11-28T14:00", "UTC"), epoch("2026-11-28T15:00", "UTC")
        )

    def test_an_unknown_price_is_shut(self) -> None:
        at = epoch("2026-11-28T18:00", "UTC")
        assert not opening([Rule(price_below=0.2)], at, self.prices(0.1)).is_open
        assert not opening([Rule(price_below=0.2)], at).is_open

    def test_a_window_with_a_price_needs_both(self) -> None:
        rule = Rule(begin=time(13), end=time(14), price_below=0.2)
        prices = self.prices(0.1, 0.1, 0.1)
        assert not opening([rule], epoch("2026-11-28T12:30", "UTC"), prices).is_open
        assert opening([rule], epoch("2026-11-28T13:30", "UTC"), prices).is_open


def test_the_next_begin_is_found_from_any_day_of_the_week() -> None:
    for day in range(22, 29):
        at = epoch(f"2026-11-{day}T12:00")
        found = opening([window("10:00", "11:00", "mon")], at).opens_at
        assert found is not None
        assert 0 < found - at <= 7 * 86_400
