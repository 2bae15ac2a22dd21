"""A training step on a card: what it holds, launches, copies and waits for."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.needs("nullgpu")


def step_of_the_preset(rows: int) -> dict[str, Any]:
    import torch

    from tests.nullgpu.counting import cost
    from tests.nullgpu.steps import Bench

    bench = Bench(rows=rows)
    bench.train()
    bench.train()
    reading = []
    launch = cost(lambda: reading.append(bench.launch()))
    return {
        "launch": launch.to_json(),
        "read": cost(reading[0].values).to_json(),
        "compile_reason": bench.stepper.compiler.reason,
        "breaks": dict(torch._dynamo.utils.counters["graph_break"]),
    }


@pytest.fixture(scope="module")
def step(on_card) -> dict[str, Any]:
    """The preset the project was made for, on its card, compiled."""
    return on_card("rtx4070", step_of_the_preset, rows=8)


def test_the_host_never_waits_and_copies_from_pinned_memory_alone(step):
    assert step["launch"]["outcome"] == "done"
    assert step["launch"]["waits"] == 0
    assert step["launch"]["pageable"] == 0


def test_reading_a_step_waits_once_for_its_event(step):
    assert step["read"]["waits"] == 1
    assert step["read"]["by_name"] == {"sync cudaEventSynchronize": 1}


def test_every_compiled_function_is_one_graph(step):
    assert step["compile_reason"] is None
    assert step["breaks"] == {}
