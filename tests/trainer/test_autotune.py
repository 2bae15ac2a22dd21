"""Races: who is remembered, and what a compiler counts."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.runtime import autotune


@pytest.mark.filterwarnings("ignore")  # torch's compiler warns about itself
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_a_race_of_many_is_no_recompilation_of_one() -> None:
    """The compiler gives up on a code object that it did too often; in a race that would be lost
    by whoever comes late, whatever its speed."""

    def times(factor: int):
        def way(x: Tensor) -> Tensor:
            return x * factor

        return way

    x = torch.ones(3)
    with torch._dynamo.config.patch(recompile_limit=2):
        for factor in range(1, 5):
            assert torch.equal(autotune.as_called(times(factor), True)(x), x * factor)


def test_who_may_no_longer_take_part_is_not_remembered(tmp_path: Path) -> None:
    file = tmp_path / "winners.json"
    assert autotune.Memory(file).winner("key", ["a", "b"], lambda: "a") == "a"
    assert autotune.Memory(file).winner("key", ["a", "b"], lambda: "b") == "a"
    assert autotune.Memory(file).winner("key", ["b"], lambda: "b") == "b"
    assert autotune.Memory(file).winner("key", ["a", "b"], lambda: "a") == "b"


def test_a_race_that_raises_leaves_the_memory_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "winners.json"
    autotune.Memory(file).winner("one", ["a"], lambda: "a")
    before = file.read_bytes()

    def fails() -> str:
        raise RuntimeError("nobody came in")

    with pytest.raises(RuntimeError):
        autotune.Memory(file).winner("two", ["a"], fails)
    assert file.read_bytes() == before
