"""Memory of the preset: 4 rows fit beside a desktop, 16 on the whole GPU, as planned."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.contract.plan import PlanContext, make_plan
from trainer.contract.plan.memory import cannot_fit
from trainer.contract.spec import resolve

pytestmark = [pytest.mark.needs("nullgpu"), pytest.mark.timeout(900)]  # cold compilations

RTX_4070 = 12_878_610_432


def step_and_loss(rows: int, tokens: int) -> dict[str, Any]:
    from tests.nullgpu.counting import cost
    from tests.nullgpu.steps import Bench

    bench = Bench(rows=rows, batch={"tokens": tokens})
    first = cost(bench.train)
    if first.outcome != "done":
        return {"outcome": first.outcome}
    return {
        "outcome": "done",
        "step": cost(bench.train).peak_bytes,
        "loss_only": cost(bench.loss_only).peak_bytes,
        "planned": bench.plan.memory.total - bench.plan.memory.overhead,
    }


@pytest.mark.parametrize(("rows", "bar"), [(4, 5.5e9), (16, 11.0e9)])
def test_the_plan_lets_through_what_fits(on_card, rows: int, bar: float) -> None:
    batch = {"tokens": 65_536, "device_batch_size": rows}
    body = {"name": "x", "preset": "rtx4070-d12", "batch": batch}
    context = PlanContext(device_type="cuda", device_memory_bytes=RTX_4070)
    assert not cannot_fit(make_plan(resolve(body), context).memory)
    found = on_card("rtx4070", step_and_loss, seconds=900, rows=rows, tokens=65_536)
    assert found["outcome"] == "done"
    assert found["loss_only"] <= found["step"] <= bar
    assert found["planned"] == pytest.approx(found["step"], rel=0.05)


def test_the_plan_refuses_what_does_not_fit(on_card) -> None:
    """32 rows: out of memory in the forward pass, before the backward pass is compiled."""
    batch = {"tokens": 65_536, "device_batch_size": 32}
    body = {"name": "x", "preset": "rtx4070-d12", "batch": batch}
    context = PlanContext(device_type="cuda", device_memory_bytes=RTX_4070)
    assert cannot_fit(make_plan(resolve(body), context).memory)
    found = on_card("rtx4070", step_and_loss, seconds=900, rows=32, tokens=65_536)
    assert found["outcome"] == "OutOfMemoryError"
