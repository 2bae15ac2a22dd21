"""Priorities, hours and policies under the supervisor: runs yield and come back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from server.database.tables import PlacePolicy, Run
from server.domain import runs
from server.events import webhooks
from server.scheduling import decide, rows
from server.schemas.runs import PatchRun
from tests.server.house import House


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[House]:
    monkeypatch.setattr(decide, "MINIMUM_RUN_SECONDS", 0.0)
    built = House(tmp_path)
    yield built
    built.close()


def hours(begin: timedelta, end: timedelta) -> list[dict[str, Any]]:
    """A window around now, in UTC."""
    now = datetime.now(UTC)
    clock = "%H:%M"
    return [
        {
            "from": (now + begin).strftime(clock),
            "to": (now + end).strftime(clock),
            "zone": "UTC",
        }
    ]


LATER = (timedelta(hours=2), timedelta(hours=5))


def patch(house: House, run_id: str, **change: Any) -> None:
    with house.db.write() as session:
        run = session.get_one(Run, run_id)
        runs.patch(session, run, PatchRun.model_validate(change), time.time())


def set_policy(house: House, place: str, hours_text: str) -> None:
    with house.db.write() as session:
        session.merge(PlacePolicy(place=place, hours=hours_text))


def test_what_is_waited_for_is_named_in_a_sentence() -> None:
    names = {"a": "long", "b": "short", "c": "third"}

    def said(*by: str) -> str:
        return rows.in_words(decide.SchedulingVerdict(decide.WaitCause.queue, by), names, "cuda:0")[
            1
        ]

    assert said("a") == "long comes first on cuda:0."
    assert said("a", "b") == "long and short come first on cuda:0."
    assert said("a", "b", "c") == "long, short and third come first on cuda:0."


def test_a_yield_names_the_runs_and_programs_that_need_the_place() -> None:
    def named(cause: decide.WaitCause, *by: str) -> tuple[str, ...]:
        return rows.makes_way_for(decide.SchedulingVerdict(cause, by), {"a": "long"})

    assert named(decide.WaitCause.displaced, "a") == ("long",)
    assert named(decide.WaitCause.neighbour, "steam", "obs") == ("steam", "obs")
    assert named(decide.WaitCause.heat, "85 °C, ceiling 80 °C") == ()
    assert named(decide.WaitCause.hours) == ()


def test_an_experiment_of_higher_priority_gets_the_device_and_gives_it_back(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, a1={"hold_at": 20})
    long = house.create("long")
    with house.daemon():
        house.reaches(long, 5)
        short = house.create("short", steps=20, priority=5)
        house.until(lambda: house.run(long).state == "queued")
        assert house.run(long).reason == "preempted"
        assert "short has a higher priority" in house.run(long).reason_message
        assert house.run(long).desired_state == "running"
        house.becomes(short, "completed")
        house.becomes(long, "completed")
    assert house.states(long)[-6:] == [
        "running", "pausing", "queued", "starting", "running", "completed",
    ]  # fmt: skip
    house.check(long)
    with house.db.read() as session:
        counted = session.execute(
            text("SELECT label, value FROM counters WHERE name = 'yields_total'")
        )
        assert [tuple(row) for row in counted] == [("preempted", 1.0)]
        waited = session.execute(
            text("SELECT label, value FROM counters WHERE name = 'yield_waiting_seconds_total'")
        )
        [(reason, seconds)] = [tuple(row) for row in waited]
    assert (reason, seconds > 0) == ("preempted", True)
    [left] = [e for e in house.events(long, "state") if e.data["after"] == "pausing"]
    assert (left.data["is_yield"], left.data["by"]) == (True, ["short"])
    [back] = [e for e in house.events(long, "state") if "made_way_at" in e.data]
    assert back.data["made_way_for"] == "preempted"
    assert back.message.startswith("It yielded at 20")
    assert "short has a higher priority" in back.message
    assert [what for e in house.events(long, "state") if (what := webhooks._what(e))] == [
        "made_way", "back", "completed",
    ]  # fmt: skip


def test_a_run_that_made_way_comes_before_those_that_came_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, a1={"hold_at": 20})
    long = house.create("long")
    with house.daemon():
        house.reaches(long, 5)
        later = house.create("later", steps=20)
        house.create("short", steps=20, priority=5)
        house.becomes(long, "completed")
        assert house.run(later).state != "completed"


def test_a_run_outside_its_hours_waits_for_them(house: House) -> None:
    run_id = house.create(hours=hours(*LATER))
    other = house.create("other", steps=20)
    with house.daemon():
        house.until(lambda: house.run(run_id).reason == "outside_hours")
        assert "It may resume from 20" in house.run(run_id).reason_message
        house.becomes(other, "completed")  # it keeps nobody waiting
        assert house.run(run_id).state == "queued"
        patch(house, run_id, hours=None)
        house.becomes(run_id, "completed")
    house.check(run_id)


def test_many_runs_outside_their_hours_hide_no_run_behind_them(house: House) -> None:
    for number in range(8):
        house.create(f"shut-{number}", hours=hours(*LATER))
    other = house.create("other", steps=20)
    with house.daemon():
        house.becomes(other, "completed")


def test_hours_that_end_pause_the_run(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.behave(monkeypatch, a1={"hold_at": 20})
    run_id = house.create()
    with house.daemon():
        house.reaches(run_id, 5)
        patch(house, run_id, hours=hours(*LATER))
        house.until(lambda: house.run(run_id).state == "queued")
        assert house.run(run_id).reason == "outside_hours"
        patch(house, run_id, hours=[])  # never
        house.ask(runs.request_pause, run_id)
        house.becomes(run_id, "paused")
        patch(house, run_id, hours=None)
        house.ask(runs.resume, run_id)
        house.becomes(run_id, "completed")
    house.check(run_id)


def test_a_pause_that_is_asked_for_while_it_makes_way_holds(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, all={"linger": 0.4}, a1={"hold_at": 20})
    run_id = house.create()
    with house.daemon():
        house.reaches(run_id, 5)
        patch(house, run_id, hours=hours(*LATER))
        house.becomes(run_id, "pausing")
        house.ask(runs.request_pause, run_id)
        assert house.becomes(run_id, "paused").reason == "requested"


def test_a_device_has_hours_as_well(house: House) -> None:
    set_policy(house, "cpu", json.dumps(hours(*LATER)))
    run_id = house.create(steps=20)
    with house.daemon():
        house.until(lambda: house.run(run_id).reason == "outside_hours")
        set_policy(house, "cpu", "")
        house.becomes(run_id, "completed")


def test_priority_can_be_changed_while_it_waits(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.behave(monkeypatch, a1={"hold_at": 20})
    first, second, third = (house.create(n) for n in ("first", "second", "third"))
    with house.daemon():
        house.reaches(first, 5)
        patch(house, third, priority=-1)
        patch(house, second, priority=-2)
        house.ask(runs.request_pause, first)
        house.reaches(third, 5)
        assert house.run(second).state == "queued"


def test_a_run_leaves_as_early_as_its_own_saves_ask_for() -> None:
    run = Run(batch_tokens=2048, progress={})
    assert rows.save_seconds(run) == rows.LEAST_SAVE_SECONDS
    run.progress = {"tokens_per_second": 1024.0}
    assert rows.save_seconds(run) == rows.LEAST_SAVE_SECONDS + 6.0
    run.progress = {"tokens_per_second": 1024.0, "slowest_save_seconds": 90.0}
    assert rows.save_seconds(run) == rows.END_SECONDS + 180.0 + 6.0
    run.progress = {"slowest_save_seconds": 0.5}
    assert rows.save_seconds(run) == rows.END_SECONDS + 1.0


def test_the_slowest_save_of_a_run_is_remembered(house: House) -> None:
    run_id = house.create(steps=40)
    with house.daemon():
        house.becomes(run_id, "completed")
    assert house.run(run_id).progress["slowest_save_seconds"] > 0
