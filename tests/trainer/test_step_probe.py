"""A probe runs real steps and says what they cost; no memory is an answer."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.trainer.shapes import Kind
from trainer.train import step_probe
from trainer.train.batch_size_probe import fastest_rows
from trainer.train.step_probe import ProbeResult, probe_step


def run(rows: int) -> ProbeResult:
    shape, hyper = Kind().plan()
    return probe_step(
        shape,
        rows,
        hyper=hyper,
        compute_dtype=torch.float32,
        device="cpu",
        accumulation=2,
        steps=3,
        compile=False,
    )


def test_a_probe_measures_time_and_memory() -> None:
    found = run(2)
    assert found.fits
    assert 0 < found.seconds_per_token < 1
    assert found.peak_bytes > 50_000_000  # torch alone takes more
    assert found.compiled is False


def test_no_memory_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much(*_: object, **__: object):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(step_probe, "GPT", too_much)
    assert run(64) == ProbeResult(64, False, 0.0, 0, False)


def tried(
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[int, float],
    candidates: list[int],
    device: str = "cpu",
) -> tuple[int, list[int]]:
    """The rows taken and the rows measured, where a pass of so many rows takes so long a token."""

    def step(_shape: object, rows: int, **_: object) -> ProbeResult:
        return ProbeResult(rows, rows in seconds, seconds.get(rows, 0.0), 1, False)

    monkeypatch.setattr(step_probe, "probe_step", step)
    shape, hyper = Kind().plan()
    found, seen = fastest_rows(
        shape, candidates, 64, torch.device(device), torch.float32, False, hyper
    )
    return found, [each.rows for each in seen]


def test_the_fastest_rows_that_fit_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tried(monkeypatch, {1: 3e-6, 2: 2e-6}, [1, 2, 4, 8]) == (2, [1, 2])
    assert tried(monkeypatch, {1: 3e-6, 2: 2.99e-6, 4: 2.98e-6}, [1, 2, 4]) == (1, [1, 2, 4])
    assert tried(monkeypatch, {1: 3e-6, 2: 4e-6, 4: 1e-6}, [1, 2, 4]) == (1, [1, 2])
    with pytest.raises(torch.OutOfMemoryError, match="not even 4 rows"):
        tried(monkeypatch, {}, [4, 8])


def test_a_gpu_begins_at_four_rows_and_takes_fewer_only_where_those_do_not_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    each = {1: 3e-6, 2: 2e-6, 4: 1.5e-6, 8: 1e-6}
    assert tried(monkeypatch, each, [1, 2, 4, 8, 16], "cuda") == (8, [4, 8])
    assert tried(monkeypatch, {1: 3e-6, 2: 2e-6}, [1, 2, 4, 8], "cuda") == (2, [2])
    with pytest.raises(torch.OutOfMemoryError, match="not even 1 rows"):
        tried(monkeypatch, {}, [1, 2, 4], "cuda")


def test_a_step_of_several_micro_batches_is_probed_with_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: dict[int, int] = {}

    def step(_shape: object, rows: int, *, accumulation: int, **_: object) -> ProbeResult:
        asked[rows] = accumulation
        return ProbeResult(rows, True, 1e-6 / rows, 1, False)

    monkeypatch.setattr(step_probe, "probe_step", step)
    shape, hyper = Kind().plan()
    fastest_rows(shape, [4, 8, 16], 16, torch.device("cuda"), torch.float32, False, hyper)
    assert asked == {4: 2, 8: 2, 16: 1}


def test_a_step_without_a_compiler_loads_none() -> None:
    """torch would load the compiler and sympy by the way: three seconds of every start."""
    program = (
        "import sys, torch\n"
        "from tests.trainer.test_step_probe import run\n"
        "from trainer.runtime import device\n"
        "device.configure(torch.device('cpu'), threads=1, deterministic=True)\n"
        "assert run(1).fits and torch.are_deterministic_algorithms_enabled()\n"
        "print(sorted({'sympy', 'torch._dynamo', 'torch._inductor'} & set(sys.modules)))\n"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert told.stdout == "[]\n", told.stdout + told.stderr
