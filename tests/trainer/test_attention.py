"""Every attention backend that runs here equals the mask, forward and backward."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor

from tests.trainer.shapes import KINDS, Kind
from trainer.contract.spec import AttentionBackend
from trainer.model import attention

CPU = torch.device("cpu")


def operands(length: int, heads: int, kv_heads: int, channels: int = 16) -> list[Tensor]:
    draw = torch.Generator().manual_seed(length)
    return [
        torch.randn(2, length, h, channels, generator=draw, requires_grad=True)
        for h in (heads, kv_heads, kv_heads)
    ]


@pytest.mark.parametrize("name", ["sdpa", "blocked"])
@pytest.mark.parametrize("window", [None, 1, 60, 128, 300, 1000])
@pytest.mark.parametrize("length", [1, 100, 128, 300, 512])
def test_a_backend_equals_the_mask(name: str, window: int | None, length: int) -> None:
    q, k, v = operands(length, 4, 2)
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1))
    found, expected = [], []
    for backend, results in ((name, found), ("masked", expected)):
        y = attention.bind(backend, window)(q, k, v)
        results += [y, *torch.autograd.grad((y * weight).sum(), (q, k, v))]
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-5)


def test_the_mask_sees_exactly_the_window() -> None:
    """With keys all alike the output is the mean of the visible values."""
    q, k, v = operands(8, 1, 1)
    y = attention.masked(q, torch.zeros_like(k), v, 3)
    for i in range(8):
        torch.testing.assert_close(y[:, i], v[:, max(0, i - 3) : i + 1].mean(dim=1))


def test_the_operator_keeps_torchs_rules() -> None:
    from trainer.model.blocked_attention import blocked_attention

    q, k, v = (torch.randn(2, 130, 8, requires_grad=True) for _ in range(3))
    torch.library.opcheck(blocked_attention, (q, k, v, 130))


def test_the_cpu_follows_a_rule_and_needs_no_race(tmp_path: Path) -> None:
    shape = KINDS["windows"].plan()[0]
    chosen = attention.choose(shape, 2, torch.float32, CPU, tmp_path / "choices.json")
    assert chosen == {128: "blocked", 512: "blocked"}
    assert attention.choose(Kind().plan()[0], 2, torch.float32, CPU) == {64: "sdpa"}


def test_every_backend_has_a_name_in_the_contract() -> None:
    assert set(get_args(AttentionBackend)) == set(attention.BACKENDS)


def test_what_is_settled_is_not_raced_and_what_is_not_there_is_replaced() -> None:
    shape = KINDS["windows"].plan()[0]
    fixed = {"128": "masked", "512": "varlen"}
    chosen = attention.choose(shape, 2, torch.float32, CPU, fixed=fixed)
    assert chosen == {128: "masked", 512: "blocked"}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # the compiler's own
def test_a_race_can_be_run_as_a_compiled_block_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that only works outside a compiled graph must lose, not fail the training."""

    def breaks_the_graph(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        torch._dynamo.graph_break()
        return q

    shape = Kind().plan()[0]
    monkeypatch.setitem(attention.BACKENDS, "blocked", breaks_the_graph)
    monkeypatch.setattr(attention, "candidates", lambda *_: ["blocked", "masked"])
    (window,) = set(shape.windows)
    assert attention.race(shape, 1, torch.float32, CPU, window, compiled=True) == "masked"


def test_a_winner_is_remembered_and_a_torn_file_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "machine" / "choices.json"
    shape = KINDS["windows"].plan()[0]
    monkeypatch.setattr(attention, "candidates", lambda *_: ["masked", "sdpa", "blocked"])
    first = attention.choose(shape, 1, torch.float32, CPU, memory)
    assert sorted(json.loads(memory.read_text()).values()) == sorted(first.values())

    def no_second_race(*_: object) -> str:
        raise AssertionError("raced again")

    monkeypatch.setattr(attention, "race", no_second_race)
    assert attention.choose(shape, 1, torch.float32, CPU, memory) == first
    monkeypatch.undo()
    memory.write_text('{"torn')
    assert attention.choose(shape, 1, torch.float32, CPU, memory).keys() == first.keys()


def test_a_wrong_backend_loses_however_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """On operands all alike it could not be told from a right one."""
    masked = attention.masked

    def slow(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        time.sleep(0.02)
        return masked(q, k, v, window)

    def one_key_too_many(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        return masked(q, k, v, None if window is None else window + 1)

    shape = KINDS["windows"].plan()[0]
    (window,) = {w for w in shape.windows if w is not None and w < shape.sequence_len}
    monkeypatch.setitem(attention.BACKENDS, "varlen", one_key_too_many)
    monkeypatch.setitem(attention.BACKENDS, "masked", slow)
    monkeypatch.setattr(attention, "candidates", lambda *_: ["varlen", "masked"])
    assert attention.race(shape, 1, torch.float32, CPU, window) == "masked"


def test_varlen_of_a_torch_without_grouped_queries_runs_where_none_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """torch 2.11's has no `enable_gqa`; one without `window_size` takes no part."""
    seen: list[tuple[int, int]] = []

    def of_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1)):
        seen.append(window_size)
        return query

    def older(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False):
        """Its text speaks of window_size all the same."""

    module = "torch.nn.attention.varlen.varlen_attn"
    q = torch.randn(2, 8, 2, 4)
    monkeypatch.setattr(module, of_2_11)
    assert torch.equal(attention.varlen(q, q, q, 3), q)
    assert seen == [(3, 0)]
    assert attention._has_varlen()
    monkeypatch.setattr(module, older)
    assert not attention._has_varlen()


def test_where_no_backend_runs_the_plain_one_is_taken_and_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broken compiler fails them all; the step finds that out, and runs without."""

    def fails(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        raise RuntimeError("no Python.h")

    shape, memory = Kind().plan()[0], tmp_path / "choices.json"
    masked = attention.masked
    monkeypatch.setattr(attention, "candidates", lambda *_: ["sdpa", "varlen"])
    for name in ("sdpa", "varlen"):
        monkeypatch.setitem(attention.BACKENDS, name, fails)
    chosen = attention.choose(shape, 1, torch.float32, CPU, memory)
    assert set(chosen.values()) == {"sdpa"}
    assert not memory.exists()
    monkeypatch.setitem(attention.BACKENDS, "varlen", masked)
    assert set(attention.choose(shape, 1, torch.float32, CPU, memory).values()) == {"varlen"}


def test_a_full_card_is_no_loss_of_a_race(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(attention.BACKENDS, "sdpa", full)
    monkeypatch.setattr(attention, "candidates", lambda *_: ["sdpa", "masked"])
    with pytest.raises(torch.OutOfMemoryError):
        attention.choose(Kind().plan()[0], 1, torch.float32, CPU)
