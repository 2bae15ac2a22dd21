"""The peak that MFU refers to: from the table for a card in it, measured for all else."""

from __future__ import annotations

import time

import pytest
import torch

from trainer.contract.peaks import known_peak
from trainer.runtime import device

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def product_rate(size: int = 1024) -> float:
    """FLOP/s of the best of some float32 products."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def test_what_is_in_no_table_is_measured_and_says_so():
    found = device.peak(CPU, torch.float32)
    assert found.source.startswith("measured: float32 matrix product on ")
    assert device.name_of(CPU) in found.source
    assert found.source.endswith(f"threads: {torch.get_num_threads()}")
    assert 0.2 < found.value / product_rate() < 5  # machines are noisy


def test_a_card_in_the_table_has_the_tables_peak_for_bf16_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA GeForce RTX 4070")
    found = device.peak(CUDA, torch.bfloat16)
    assert found == known_peak("NVIDIA GeForce RTX 4070")
    assert found.value == pytest.approx(46 * 512 * 2.475e9)
    assert "white paper" in found.source
    for dtype in (torch.float32, torch.float16):
        assert device.tabled_peak("NVIDIA GeForce RTX 4070", dtype) is None


@pytest.mark.needs("gpu")
def test_on_request_a_card_in_the_table_is_measured_too():
    found = device.peak(CUDA, torch.bfloat16, measured=True)
    assert found.source.startswith("measured: bfloat16 matrix product on ")
    tabled = known_peak(torch.cuda.get_device_name())
    assert tabled is None or 0.3 < found.value / tabled.value < 1.2
