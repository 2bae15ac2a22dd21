"""The plan's memory against peaks of the caching allocator, counted on null cards."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.contract.plan import PlanContext, make_plan
from trainer.contract.plan.memory import cannot_fit
from trainer.contract.spec import resolve

D12: dict[str, Any] = {"preset": "rtx4070-d12"}
# bytes at the peak of a step of text-like tokens, compiled, torch 2.14: GB
PEAKS = {
    "the preset": ({**D12, "batch": {"tokens": 65_536, "device_batch_size": 8}}, 6.846),
    "4 rows": ({**D12, "batch": {"tokens": 65_536, "device_batch_size": 4}}, 5.041),
    "grouped queries and windows": (
        {
            "model": {
                "depth": 16,
                "sequence_len": 2048,
                "n_kv_head": 2,
                "window_pattern": "SSSL",
                "vocab_size": 50_304,
            },
            "batch": {"tokens": 16_384, "device_batch_size": 4},
        },
        1.725,
    ),
    "20 layers": (
        {
            "model": {"depth": 20, "sequence_len": 2048},
            "batch": {"tokens": 65_536, "device_batch_size": 16},
        },
        5.716,
    ),
    "narrow": (
        {
            "model": {"depth": 6, "sequence_len": 1024},
            "batch": {"tokens": 32_768, "device_batch_size": 16},
        },
        0.370,
    ),
}


def planned(body: dict[str, Any], available: int | None = None):
    context = PlanContext(device_type="cuda", device_memory_bytes=available)
    return make_plan(resolve({"name": "x", **body}), context).memory


@pytest.mark.parametrize(("body", "peak"), PEAKS.values(), ids=PEAKS)
def test_the_plan_is_within_5_percent_of_the_allocators_peak(body: dict, peak: float) -> None:
    memory = planned({**body, "numerics": {"precision": "bf16"}})
    assert (memory.total - memory.overhead) / 1e9 == pytest.approx(peak, rel=0.05)


@pytest.mark.parametrize(("rows", "refused"), [(8, False), (16, False), (32, True)])
def test_a_12_gb_card_is_refused_what_does_not_fit_and_given_what_does(rows, refused) -> None:
    """16 rows: 10.5 GB; 32: 17.8."""
    body = {**D12, "batch": {"tokens": 65_536, "device_batch_size": rows}}
    assert cannot_fit(planned(body, 12_878_610_432)) is refused


@pytest.mark.parametrize("numerics", [{"precision": "fp8"}, {"compile": False}])
def test_what_is_not_counted_has_a_wider_margin(numerics: dict[str, Any]) -> None:
    assert planned({**D12, "numerics": numerics}).error == 1.25
    assert planned(D12).error == 1.05
