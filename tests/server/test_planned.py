"""The schedule ahead, as charts get it: the curve of each phase, in units of the history."""

from __future__ import annotations

import random

import pytest

from server.database import tables
from server.queries import planned, run_views
from tests.server.asgi import Asgi
from trainer.contract.schedule import (
    ExtendSchedule,
    PhaseSchedule,
    curve,
    extend_schedule,
    initial_schedule,
    lr_multiplier,
    weight_decay_multiplier,
)

PEAK = 0.2


def extended(rng: random.Random) -> list[PhaseSchedule]:
    schedules = [initial_schedule(rng.randint(50, 9000), 20, 0.65, "cosine", 0.05)]
    for mode in rng.sample(["replan", "hold", "rewarm", "decay"], rng.randint(0, 3)):
        before = schedules[-1]
        joint = rng.randint(before.start_step + 1, before.end_step)
        ask = ExtendSchedule.model_validate({"mode": mode})
        end = before.end_step + rng.randint(1, 9000)
        more = extend_schedule(before, joint, end, ask, warmup_steps=20, warmdown_ratio=0.65)
        schedules.append(more)
    return schedules


def test_each_step_ahead_has_the_value_of_its_phase() -> None:
    rng = random.Random(8)
    for _ in range(60):
        schedules = extended(rng)
        end = schedules[-1].end_step
        begin = rng.randint(0, end - 1)
        found = planned.along(schedules, PEAK, begin, None, 97)
        assert found.steps == sorted(set(found.steps))
        assert (found.steps[0], found.steps[-1]) == (begin, end)
        for i, step in enumerate(found.steps):
            joints = [s for s in schedules if s.start_step < step or s.start_step == step == begin]
            of = joints[-1] if joints else schedules[0]
            assert found.lr_multiplier[i] == pytest.approx(lr_multiplier(of, step), rel=1e-5)
            decay = PEAK * weight_decay_multiplier(of, step)
            assert found.weight_decay[i] == pytest.approx(decay, rel=1e-5, abs=1e-9)


def test_metrics_and_plans_carry_it_where_it_is_wanted(asgi: Asgi) -> None:
    made = asgi.create("demo")
    asked = "/v1/runs/demo/metrics?columns=true&keys=loss"
    assert asgi.get(asked).json()["planned"] is None
    with asgi.db.write() as session:
        session.get_one(tables.Run, run_views.get_run(session, "demo").id).step = 30
    ahead = asgi.get(f"{asked}&planned=50&to_step=120").json()["planned"]
    schedule = PhaseSchedule.model_validate(made["plan"]["schedule"])
    points = curve(schedule, 30, 120, 50)
    assert ahead["steps"] == [point[0] for point in points]
    assert ahead["lr_multiplier"] == pytest.approx([point[1] for point in points], rel=1e-5)
    plan = asgi.post("/v1/plan", {"name": "x"}).json()["planned"]
    assert (plan["steps"][0], plan["steps"][-1]) == (0, made["end_step"])
