"""The host's time for a step, against the plain reference's in the same process, in turns."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bench import host

pytestmark = [pytest.mark.needs("nullgpu"), pytest.mark.timeout(900)]  # cold compilations


def test_a_step_takes_less_of_the_host_than_the_plain_one(on_card: Any) -> None:
    """Depth 4, where the plain reference compiles in a third of depth 12's time; the ratio there is
    lower. Processor time, so that a busy machine does not count."""
    both = {"NULLGPU_MEMORY_MB": "40000"}  # the two steps beside each other need more than 12 GB
    found = on_card("rtx4070", host.measure, seconds=850, variables=both, depth=4, pairs=40)
    assert found["ratio"] <= 1.0, found
