"""GPU memory and pinned host memory of an attempt when its session is built."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.needs("nullgpu"), pytest.mark.timeout(300)]

GIGABYTE = 1 << 30


def start(folder: str) -> dict[str, int]:
    """Bytes that the allocator holds after autotuning left 1 GB, and before the first step; bytes
    of a checkpoint and of pinned memory then."""
    import torch

    from tests.nullgpu.counting import driver
    from tests.nullgpu.small_run import attempt, prepared
    from trainer.model import attention

    choose, found = attention.choose, {}

    def raced(*args: Any, **kwargs: Any) -> dict[int | None, str]:
        torch.empty(GIGABYTE, dtype=torch.uint8, device="cuda")
        found["raced"] = torch.cuda.memory_reserved()
        return choose(*args, **kwargs)

    def look(session: Any) -> None:
        found["built"] = torch.cuda.memory_reserved()
        found["checkpoint"] = session.checkpoint_bytes
        buffers = session.saver._buffers
        found["refused"] = buffers is None or not buffers.take()
        found["pinned"] = driver().nullgpu_pinned_peak()

    attention.choose = raced
    attempt(prepared(Path(folder)), look)
    return found


@pytest.fixture(scope="module")
def started(on_card: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return on_card("rtx4070", start, folder=str(tmp_path_factory.mktemp("start")))


def test_what_races_held_is_given_back_before_the_first_step(started: dict[str, Any]) -> None:
    assert started["raced"] >= GIGABYTE
    assert started["built"] < GIGABYTE / 4


def test_the_memory_of_saves_is_pinned_before_the_first_step(started: dict[str, Any]) -> None:
    """Otherwise the first save would block the step while the host pins the memory."""
    assert not started["refused"]
    assert started["pinned"] >= started["checkpoint"]
