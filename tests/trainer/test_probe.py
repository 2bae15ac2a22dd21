"""A probe runs real steps and says what they cost; no memory is an answer."""

from __future__ import annotations

import pytest
import torch

from tests.trainer.shapes import Kind
from trainer import probe
from trainer.probe import ProbeResult, fastest, probe_step


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

    monkeypatch.setattr(probe, "GPT", too_much)
    assert run(64) == ProbeResult(64, False, 0.0, 0, False)


def test_the_fastest_that_fits_wins() -> None:
    small = ProbeResult(1, True, 3e-6, 100, True)
    large = ProbeResult(2, True, 2e-6, 200, True)
    too_large = ProbeResult(4, False, 0.0, 0, False)
    assert fastest([small, large, too_large]) == large
    assert fastest([small, large, too_large], memory_bytes=150) == small
    assert fastest([too_large]) is None
