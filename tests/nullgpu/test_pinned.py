"""Saves on a host that pins little memory. GPU memory of a run: test_life.py."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.nullgpu.lives import save

pytestmark = [pytest.mark.needs("nullgpu"), pytest.mark.timeout(300)]


def save_untrained() -> dict[str, Any]:
    from tests.nullgpu.counting import cost
    from tests.nullgpu.steps import Bench

    bench, kept = Bench(compile=False), []
    with tempfile.TemporaryDirectory() as folder:
        found = cost(lambda: kept.append(save(bench, Path(folder)))).to_json()
    ((saved, saver),) = kept
    return {**found, "error": str(saved.error), "size": saved.bytes,
            "refused": saver.pinning_refused}  # fmt: skip


def test_a_checkpoint_pins_its_own_size(on_card):
    found = on_card("rtx4070", save_untrained)
    assert (found["error"], found["refused"]) == ("None", None)
    assert found["size"] < found["pinned_peak_bytes"] < 1.01 * found["size"]
    assert found["pageable"] == 0


def test_a_host_that_pins_too_little_slows_a_save_and_fails_none(on_card):
    found = on_card("rtx4070", save_untrained, variables={"NULLGPU_PINNED_MB": "1000"})
    assert found["error"] == "None"
    assert "cannot be pinned" in found["refused"]
    assert found["pageable"] > 100
