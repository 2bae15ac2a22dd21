"""Functions compiled by the shapes of their arguments: what they return, and when they compile."""

from __future__ import annotations

import shutil
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from trainer.runtime.by_shape import ByShape
from trainer.runtime.compiler import Compiler

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler"),
    pytest.mark.filterwarnings("ignore"),  # torch's compiler warns about itself
]


class Pair(NamedTuple):
    a: Tensor
    b: Tensor | None


def mix(x: Tensor, pair: Pair) -> tuple[Tensor, Pair]:
    b = torch.zeros(()) if pair.b is None else pair.b
    return x + 2 * pair.a, Pair(x * b, None)


def test_nested_arguments_and_results_keep_their_shape_and_are_compiled_once_for_each_kind() -> (
    None
):
    traced: list[tuple[int, ...]] = []

    def counted(x: Tensor, pair: Pair) -> tuple[Tensor, Pair]:
        traced.append(tuple(x.shape))
        return mix(x, pair)

    function = ByShape(counted)
    for size, b in ((3, None), (3, torch.tensor(2.0)), (3, torch.tensor(3.0)), (4, None)):
        x, pair = torch.randn(size), Pair(torch.randn(size), b)
        run, expected = function.prepared((size, b is None), (x, pair)), mix(x, pair)
        run((x, pair))  # the first time by way of torch's wrappers
        found = run((x, pair))
        assert type(found[1]) is Pair
        assert found[1].b is None
        torch.testing.assert_close(found[0], expected[0])
        torch.testing.assert_close(found[1].a, expected[1].a)
    assert traced == [(3,), (3,), (4,)]


def test_another_dtype_or_layout_is_another_kind() -> None:
    function = ByShape(lambda x: x + 1)
    square = torch.arange(9.0).view(3, 3)
    for x in (square, square.T, square.double()):
        torch.testing.assert_close(function.prepared((x.dtype, x.stride()), (x,))((x,)), x + 1)


def test_a_tensor_that_is_passed_twice_at_first_stays_two_arguments() -> None:
    """As a trunk's first layer passes x as x0, and no later one does."""
    function = ByShape(lambda x, x0: x + 2 * x0)
    a, b = torch.ones(3), torch.full((3,), 5.0)
    assert function.prepared("", (a, a))((a, a)).tolist() == [3.0] * 3
    assert function.prepared("", (a, b))((a, b)).tolist() == [11.0] * 3


def test_a_kind_that_is_named_wrongly_raises() -> None:
    function, two, three = ByShape(lambda x: x + 1), torch.ones(2), torch.ones(3)
    for _ in range(2):
        function.prepared("", (two,))((two,))
    with pytest.raises(AssertionError):
        function.prepared("", (three,))((three,))


def test_what_cannot_be_traced_runs_uncompiled_and_says_why() -> None:
    compiler = Compiler(True, torch.device("cpu"))
    by_value = compiler.pure(lambda x: x + 1 if x.sum() > 0 else x - 1)
    assert by_value("", torch.ones(2)).tolist() == [2.0, 2.0]
    assert compiler.reason
    assert by_value("", -torch.ones(2)).tolist() == [-2.0, -2.0]


def test_running_out_of_memory_while_tracing_is_no_fault_of_the_compiler() -> None:
    def full(_: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    compiler = Compiler(True, torch.device("cpu"))
    with pytest.raises(torch.OutOfMemoryError):
        compiler.pure(full)("", torch.ones(2))
    assert compiler.reason is None
