"""Schedules: nanochat's numbers, continuity where it is claimed, and what a joint does."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trainer.contract.extend import ExtendRequest, preview
from trainer.contract.plan import PlanContext, make_plan
from trainer.contract.schedule import (
    ExtendSchedule,
    PhaseSchedule,
    extend_schedule,
    initial_schedule,
    lr_multiplier,
    muon_momentum,
    weight_decay_multiplier,
)
from trainer.contract.spec import resolve

FIXTURE_SPEC = {
    "name": "d4",
    "model": {
        "depth": 4,
        "aspect_ratio": 16,
        "head_dim": 16,
        "sequence_len": 128,
        "vocab_size": 768,
    },
    "horizon": {"steps": 60},
    "batch": {"tokens": 1024, "device_batch_size": 4},
}


@pytest.fixture(scope="module")
def reference(request):
    path = request.path.parent.parent / "fixtures/nanochat-d4/reference.json"
    return json.loads(path.read_text())


@pytest.mark.parametrize("part", ["first_run_schedule", "extension"])
def test_equals_nanochat_to_1e9(reference, part):
    plan = make_plan(resolve(FIXTURE_SPEC), PlanContext(device_type="cpu"))
    schedule = plan.schedule
    if part == "extension":
        ask = ExtendSchedule(rewarm_steps=0)
        schedule = extend_schedule(schedule, 60, 120, ask, warmup_steps=40, warmdown_ratio=0.65)
    peak = plan.hyperparameters.weight_decay
    assert reference[part]
    for row in reference[part]:
        step = row["step"]
        assert lr_multiplier(schedule, step) == pytest.approx(row["lrm"], abs=1e-9)
        assert muon_momentum(schedule, step) == pytest.approx(row["momentum"], abs=1e-9)
        decay = peak * weight_decay_multiplier(schedule, step)
        assert decay == pytest.approx(row["wd"], abs=1e-9)


@pytest.mark.parametrize(("shape", "after"), [("linear", 0.5615), ("cosine", 0.5822)])
def test_the_reference_run_extended_from_its_end(shape, after):
    """The joint at 130,000 that nothing showed: LR x 11, weight decay from 0, momentum up."""
    first = initial_schedule(130_000, 40, 0.65, shape, 0.05)
    ask = ExtendRequest(to_step=200_000, schedule=ExtendSchedule(rewarm_steps=0))
    answer = _preview(ask, [first], 130_000, 200_000)
    assert answer.warmdown_start == 70_000
    assert answer.joint.lr_multiplier == pytest.approx((0.05, after), abs=1e-4)
    assert answer.joint.weight_decay == pytest.approx((0.0, 0.1 * 0.273), abs=5e-5)
    assert answer.joint.momentum == pytest.approx((0.90, 0.938), abs=5e-4)
    factor = "11.2" if shape == "linear" else "11.6"
    assert any(f"LR × {factor} in one step" in warning for warning in answer.warnings)
    assert any("70,000" in w and "inside it" in w for w in answer.warnings)
    assert {a.mode for a in answer.alternatives} == {"hold", "rewarm", "decay"}
    ramped = _preview(ExtendRequest(to_step=200_000), [first], 130_000, 200_000)
    assert ramped.joint.lr_multiplier[1] < 0.07
    assert any(
        f"{100 * after:.0f} % of peak" in w and f"{factor} × today's rate" in w
        for w in ramped.warnings
    )


def test_replan_from_before_the_warmdown_continues_without_a_jump():
    first = initial_schedule(130_000, 40, 0.65, "cosine", 0.05)
    ask = ExtendRequest(to_step=200_000, schedule=ExtendSchedule(rewarm_steps=0))
    answer = _preview(ask, [first], 40_000, 200_000, reached=130_000)
    assert answer.joint.lr_multiplier == (1.0, 1.0)
    assert answer.joint.momentum == pytest.approx((0.97, 0.97))
    assert answer.joint.weight_decay == pytest.approx((0.0784, 0.0905), abs=5e-5)
    assert answer.discarded_steps == 90_000
    assert any("Weight decay jumps from 78 % to 90 % of its peak" in w for w in answer.warnings)


runs = st.tuples(
    st.integers(20, 5000),  # horizon
    st.integers(0, 60),  # warm-up
    st.floats(0, 1),  # warmdown ratio
    st.sampled_from(["linear", "cosine"]),
    st.floats(0, 1),  # final fraction
)
modes = st.sampled_from(["replan", "hold", "rewarm", "decay"])


@given(runs, modes, st.floats(0.05, 1.0), st.integers(1, 5000), st.integers(1, 300))
def test_curves_are_continuous_where_they_claim_to_be(run, mode, at, more, rewarm):
    """With a ramp (replan, rewarm) or without one of its own (hold, decay), no mode jumps."""
    horizon, warmup, ratio, shape, final = run
    before = initial_schedule(horizon, warmup, ratio, shape, final)
    joint = max(1, int(horizon * at))
    ask = ExtendSchedule(mode=mode, rewarm_steps=rewarm)
    after = extend_schedule(
        before, joint, joint + more, ask, warmup_steps=warmup, warmdown_ratio=ratio
    )
    low, high = lr_multiplier(before, joint), lr_multiplier(after, joint)
    ramp = max(1, after.rewarm_steps)
    if mode in ("hold", "decay"):
        assert high == pytest.approx(low, abs=1e-9)
    else:
        assert abs(high - low) <= 1.0 / ramp + 1e-9


@given(runs, modes, st.integers(2, 400), st.integers(1, 300))
def test_within_a_phase_no_step_is_steeper_than_its_ramps(run, mode, more, rewarm):
    """Warm-up, ramp and warmdown say how steep; a cosine is at most pi/2 times as steep."""
    horizon, warmup, ratio, shape, final = run
    before = initial_schedule(horizon, warmup, ratio, shape, final)
    ask = ExtendSchedule(mode=mode, rewarm_steps=rewarm)
    after = extend_schedule(
        before, horizon, horizon + more, ask, warmup_steps=warmup, warmdown_ratio=ratio
    )
    # nanochat's curve jumps where a warm-up that reaches into the warmdown ends; plans warn of it
    assume(mode != "replan" or not after.start_step < warmup > after.warmdown_start)
    lengths = (after.warmup_steps, after.rewarm_steps, after.warmdown_steps, after.decay_steps)
    steepest = math.pi / 2 * sum(1 / length for length in lengths if length)
    values = [lr_multiplier(after, s) for s in range(after.start_step, after.end_step + 1)]
    assert all(abs(b - a) <= steepest + 1e-9 for a, b in pairwise(values))


@given(runs, modes, st.integers(1, 3000))
def test_every_value_of_a_chain_stays_in_its_range(run, mode, more):
    horizon, warmup, ratio, shape, final = run
    schedule: PhaseSchedule = initial_schedule(horizon, warmup, ratio, shape, final)
    for _ in range(3):
        end = schedule.end_step + more
        schedule = extend_schedule(
            schedule,
            schedule.end_step,
            end,
            ExtendSchedule(mode=mode),
            warmup_steps=warmup,
            warmdown_ratio=ratio,
        )
        for step in {schedule.start_step, (schedule.start_step + end) // 2, end - 1, end}:
            assert 0.0 <= lr_multiplier(schedule, step) <= 1.0 + 1e-9
            assert 0.85 - 1e-9 <= muon_momentum(schedule, step) <= 0.97 + 1e-9
            assert 0.0 <= weight_decay_multiplier(schedule, step) <= 1.0


def test_keep_holds_the_weight_decay_of_the_joint():
    before = initial_schedule(1000, 0, 0.5, "linear", 0.1)
    ask = ExtendSchedule(mode="hold", weight_decay="keep")
    after = extend_schedule(before, 500, 2000, ask, warmup_steps=0, warmdown_ratio=0.5)
    assert weight_decay_multiplier(after, 1999) == weight_decay_multiplier(before, 500)
    assert lr_multiplier(after, 1999) == lr_multiplier(before, 500)
    assert muon_momentum(after, 1999) == 0.97


def test_weight_decay_has_one_unit_in_the_step_record_the_joint_and_the_curve():
    """The value Muon applies, everywhere: a multiplier beside it breaks the line at "now"."""
    first = initial_schedule(130_000, 40, 0.65, "cosine", 0.05)
    answer = _preview(ExtendRequest(to_step=200_000), [first], 40_000, 200_000, reached=130_000)
    reported = 0.1 * weight_decay_multiplier(first, 40_000)  # as the training loop scales it
    assert answer.joint.weight_decay[0] == pytest.approx(reported)
    before = [p for p in answer.present_curve if p.step <= 40_000][-1]
    assert before.weight_decay == pytest.approx(reported, rel=0.02)
    assert answer.curve[0].weight_decay == pytest.approx(answer.joint.weight_decay[1])


def _preview(ask, phases, joint_step, end_step, reached=None):
    return preview(
        ask,
        phases,
        joint_step=joint_step,
        reached_step=joint_step if reached is None else reached,
        end_step=end_step,
        batch_tokens=65_536,
        flops_per_token=887_098_032,
        warmup_steps=40,
        warmdown_ratio=0.65,
        peak_weight_decay=0.1,
    )
