"""Memory traffic of a call in bytes, between the GPU's memory and its cores: counted, not measured.

The compiler's kernels: inductor's count for each (`kernel_num_gb`, which it records if
TORCHINDUCTOR_BENCHMARK_KERNEL is set: environment.py). Products: operands
and result, the result twice if it is accumulated. traind's own kernels: reads and writes by their
arguments. torch's operators: every operand and result once. Assumes no caches.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.nullgpu.counting import cost

PRODUCTS = ("aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm")
VIEWS = ("view", "detach", "transpose", "slice", "select", "as_strided", "expand", "unsqueeze",
         "split", "alias", "permute", "aten.t.", "unbind", "empty", "diagonal")  # fmt: skip
BFLOAT16, FLOAT32 = 14, 0


@dataclass
class Traffic:
    """Bytes by who moves them."""

    compiled: float = 0
    products: float = 0
    own_kernels: float = 0
    operators: float = 0

    @property
    def total(self) -> float:
        return self.compiled + self.products + self.own_kernels + self.operators

    def to_json(self) -> dict[str, float]:
        return {**vars(self), "total": self.total}


def traffic(call: Callable[[], object]) -> Traffic:
    """Traffic of one call, which has been called before and no longer compiles."""
    found = Traffic()
    found.products = sum(map(_product_bytes, *zip(*cost(call).by_name.items(), strict=True)))
    with _compiled_into(found), _own_kernels_into(found), _Operators(found):
        call()
    return found


def _product_bytes(name: str, count: int) -> float:
    """name: as driver/cublas.c writes it."""
    match = re.match(r"gemm (\w+) (\d+) x (\d+)x(\d+)x(\d+), type (\d+)(, added)?", name)
    if match is None:
        return 0
    how, batch, m, n, k, kind = match[1], *map(int, match.groups()[1:6])
    factor = 4 if how.endswith("S") else 2
    result = (4 if kind == FLOAT32 else 2) * (2 if match[7] else 1)
    return count * max(1, batch) * (factor * (m * k + k * n) + result * m * n)


class _compiled_into:
    def __init__(self, found: Traffic) -> None:
        self.found = found

    def __enter__(self) -> None:
        from torch._inductor.runtime.triton_heuristics import CachingAutotuner

        self.kind: Any = CachingAutotuner
        self.run: Any = CachingAutotuner.run

        def run(kernel: Any, *arguments: Any, **options: Any) -> Any:
            self.found.compiled += 1e9 * (kernel.inductor_meta.get("kernel_num_gb") or 0)
            return self.run(kernel, *arguments, **options)

        self.kind.run = run

    def __exit__(self, *_: Any) -> None:
        self.kind.run = self.run


class _own_kernels_into:
    """The head's kernel reads the logits and writes their gradient (its second reading finds them
    in the cache); the tables' reads gradients and reads and writes the rows that they touch."""

    def __init__(self, found: Traffic) -> None:
        self.found = found

    def __enter__(self) -> None:
        from trainer.model import embedding_kernel, head_kernel

        self.modules: tuple[Any, Any] = (embedding_kernel, head_kernel)
        self.before = (embedding_kernel.add_rows, head_kernel.loss_and_gradient_in_place)

        def add_rows(total: Tensor, gradient: Tensor, slots: Tensor, order: Tensor) -> None:
            # values are meaningless here: assume as many touched slots as there are tokens,
            # or half of them, which is nearer to text
            touched = 8 * gradient.numel() // 2
            self.found.own_kernels += gradient.numel() * gradient.element_size() + touched
            self.before[0](total, gradient, slots, order)

        def in_place(z: Tensor, targets: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
            self.found.own_kernels += 2 * z.numel() * z.element_size()
            return self.before[1](z, targets, factor)

        self.modules[0].add_rows, self.modules[1].loss_and_gradient_in_place = add_rows, in_place

    def __exit__(self, *_: Any) -> None:
        self.modules[0].add_rows, self.modules[1].loss_and_gradient_in_place = self.before


class _Operators(TorchDispatchMode):
    def __init__(self, found: Traffic) -> None:
        super().__init__()
        self.found = found

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # compiled functions run as they are

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        name = str(function)
        is_view = any(v in name for v in VIEWS) and "_copy" not in name and "backward" not in name
        if not is_view and not name.startswith(PRODUCTS):
            self.found.operators += _operator_bytes(name, args, result)
        return result


def _operator_bytes(name: str, args: tuple[Any, ...], result: Any) -> int:
    if name.startswith(("aten.zero_", "aten.fill_")):
        return _bytes(args[0])
    if name.startswith("aten.embedding."):
        return 2 * _bytes(result)  # the rows that are read, not the table
    if name.startswith("aten.copy_"):
        return _bytes(args[:2])
    return _bytes(args) + _bytes(result)


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size() if value.device.type == "cuda" else 0
    if isinstance(value, (list, tuple)):
        return sum(map(_bytes, value))
    return 0
