"""When a run ends under its hours, and what its energy costs."""

from __future__ import annotations

import json
import time
from datetime import datetime
from datetime import time as clock
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from sqlalchemy.orm import Session

from server.database.db import Database
from server.database.tables import PlacePolicy, Run
from server.queries import eta, run_views
from server.queries import outlook as queries
from server.queries.latest import latest
from server.scheduling.hours import OpenStretch, Price, Rule
from server.scheduling.outlook import WALKED_SECONDS, Outlook, outlook
from server.schemas.progress import Progress
from server.settings import Settings
from tests.server.asgi import Asgi
from tests.server.reporting import attempt, create
from trainer.contract.reasons import Reason

BERLIN = "Europe/Berlin"
HOUR = 3600.0
NIGHTS = Rule(begin=clock(22), end=clock(6), zone=BERLIN)


def epoch(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(BERLIN)).timestamp()


class TestWalking:
    def test_without_hours_the_end_is_the_work_away(self) -> None:
        assert outlook(90.0, 1000.0, []).finish_at == 1090.0
        beyond = outlook(2 * WALKED_SECONDS, 1000.0, [])
        assert beyond.finish_at == pytest.approx(1000.0 + 2 * WALKED_SECONDS)
        assert not beyond.is_walked

    def test_twenty_hours_take_three_nights(self) -> None:
        now = epoch("2026-06-01T12:00")
        assert outlook(20 * HOUR, now, [[NIGHTS]]).finish_at == epoch("2026-06-04T02:00")

    def test_work_under_way_uses_the_rest_of_the_night(self) -> None:
        now = epoch("2026-06-02T05:00")
        assert outlook(2 * HOUR, now, [[NIGHTS]]).finish_at == epoch("2026-06-02T23:00")

    def test_the_night_in_which_clocks_go_back_is_an_hour_longer(self) -> None:
        now = epoch("2026-10-24T22:00")
        assert outlook(9 * HOUR, now, [[NIGHTS]]).finish_at == epoch("2026-10-25T06:00")

    def test_hours_of_run_and_device_hold_together(self) -> None:
        now = epoch("2026-06-01T12:00")
        late = Rule(begin=clock(0), end=clock(12), zone=BERLIN)
        assert outlook(7 * HOUR, now, [[NIGHTS], [late]]).finish_at == epoch("2026-06-03T01:00")

    def test_what_a_week_does_not_hold_continues_at_its_share(self) -> None:
        now = epoch("2026-06-01T12:00")
        found = outlook(100 * 8 * HOUR, now, [[NIGHTS]])
        assert not found.is_walked
        assert found.finish_at == pytest.approx(now + 100 * 24 * HOUR, abs=24 * HOUR)

    def test_nothing_starts_in_a_stretch_too_short_for_a_start(self) -> None:
        now = epoch("2026-06-01T12:00")
        minutes = Rule(begin=clock(13), end=clock(13, 5), zone=BERLIN)
        assert outlook(60.0, now, [[minutes]]).finish_at is None
        assert outlook(60.0, now, [[minutes, NIGHTS]]).finish_at == epoch("2026-06-01T22:01")

    def test_hours_that_never_open_together_have_no_end(self) -> None:
        noon = Rule(begin=clock(12), end=clock(13), zone=BERLIN)
        assert outlook(60.0, epoch("2026-06-01T12:00"), [[NIGHTS], [noon]]).finish_at is None


MIDNIGHT = epoch("2026-06-01T00:00")
CHEAP = Rule(price_below=0.2)
PRICES = tuple(
    Price(OpenStretch(MIDNIGHT + h * HOUR, MIDNIGHT + (h + 1) * HOUR), 0.10 if h % 24 < 6 else 0.40)
    for h in range(48)
)


class TestPrices:
    def test_the_price_is_the_mean_over_the_hours_used(self) -> None:
        found = outlook(8 * HOUR, MIDNIGHT, [], PRICES)
        assert found.price_per_kwh == pytest.approx((6 * 0.10 + 2 * 0.40) / 8)

    def test_cheap_hours_alone_are_used_and_paid(self) -> None:
        found = outlook(8 * HOUR, MIDNIGHT, [[CHEAP]], PRICES)
        assert found.finish_at == MIDNIGHT + 26 * HOUR
        assert found.price_per_kwh == pytest.approx(0.10)

    def test_beyond_the_known_prices_the_share_of_cheap_hours_continues(self) -> None:
        found = outlook(24 * HOUR, MIDNIGHT, [[CHEAP]], PRICES)
        assert not found.is_walked
        assert found.finish_at == pytest.approx(MIDNIGHT + 96 * HOUR)

    def test_unknown_prices_leave_end_and_price_unknown(self) -> None:
        found = outlook(HOUR, MIDNIGHT, [[CHEAP]])
        assert (found.finish_at, found.price_per_kwh) == (None, None)
        assert outlook(HOUR, MIDNIGHT, []).price_per_kwh is None

    def test_a_bill_needs_watts_and_a_price(self, tmp_path: Path) -> None:
        fixed = Database.open(Settings(data_dir=tmp_path, energy_price_per_kwh=0.5))
        with fixed.read() as session:
            tariff = Outlook(1.0, price_per_kwh=0.3)
            assert queries.bill(session, None, HOUR, tariff) == (None, None)
            assert queries.bill(session, 200.0, HOUR, tariff) == (720_000.0, pytest.approx(0.06))
            assert queries.bill(session, 200.0, HOUR, None) == (720_000.0, pytest.approx(0.1))
        fixed.close()


class TestProgress:
    def test_hours_of_the_device_move_the_end_everywhere(
        self, db: Database, settings: Settings
    ) -> None:
        reporter = attempt(db, settings, create(db, "night", steps=1_000))
        with db.write() as session:
            session.get_one(Run, reporter.run_id).state = "starting"
        reporter.begin()
        reporter.steps(0, 30)
        reporter.save(30)
        reporter.ingest()
        free = self._shown(db, 5000.0)
        with db.write() as session:
            run = run_views.get_run(session, "night")
            run.totals = {**run.totals, "energy_joules": 250.0 * run.totals["seconds"]}
            begin, end = (time.strftime("%H:%M", time.localtime(5000.0 + h * HOUR)) for h in (4, 8))
            hours = json.dumps([{"from": begin, "to": end}])
            device = latest(session, run.id).attempt
            assert device is not None
            session.add(PlacePolicy(place=device.device, hours=hours))
        db.lend_prices([Price(OpenStretch(0.0, 1e9), 0.5)])
        shut = self._shown(db, 5000.0)
        assert free.finish_at is not None
        assert shut.finish_at == pytest.approx(free.finish_at + 4 * HOUR, abs=60.0)
        assert shut.eta_seconds == free.eta_seconds
        assert shut.energy_left_joules == pytest.approx(250.0 * (shut.eta_seconds or 0))
        assert shut.cost_left == pytest.approx((shut.energy_left_joules or 0) / 3.6e6 * 0.5)

    def test_a_run_that_waits_for_its_hours_has_an_end(
        self, db: Database, settings: Settings
    ) -> None:
        create(db, "waits", steps=1_000)
        with db.write() as session:
            run = run_views.get_run(session, "waits")
            run.state = "queued"
            assert self._end(session, run) is None
            run.reason = Reason.outside_hours
            assert self._end(session, run) is not None

    def _shown(self, db: Database, now: float) -> Progress:
        with db.read() as session:
            return eta.progress(session, run_views.get_run(session, "night"), now=now)

    def _end(self, session: Session, run: Run) -> float | None:
        left = eta.remaining(session, run, latest(session, run.id), None)
        end = eta.expected_end(session, run, None, left, time.time())
        return end.finish_at if end else None


def test_a_plan_says_when_it_would_end_and_what_it_takes(asgi: Asgi) -> None:
    always = asgi.post("/v1/plan", {"preset": "demo"}).json()
    assert always["outlook"]["finish_at"] == pytest.approx(
        time.time() + always["plan"]["eta"]["total"], abs=60.0
    )
    assert always["outlook"]["energy_joules"] is None
    create(asgi.db, "before", steps=10)
    with asgi.db.write() as session:
        run = run_views.get_run(session, "before")
        run.last_step_at, run.totals = time.time(), {"energy_joules": 3000.0, "seconds": 10.0}
    zone = {"days": ["mon"], "from": "00:00", "to": "00:30", "zone": "UTC"}
    weekly = asgi.post("/v1/plan", {"preset": "demo", "hours": [zone]}).json()
    assert weekly["outlook"]["finish_at"] >= always["outlook"]["finish_at"]
    assert weekly["outlook"]["energy_joules"] == pytest.approx(300 * weekly["plan"]["eta"]["total"])
    assert weekly["outlook"]["energy_source"] == "300 W, the mean of run before"
