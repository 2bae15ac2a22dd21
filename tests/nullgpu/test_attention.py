"""Attention's explicit gradient is autograd's: the same operators on the same layouts."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.needs("nullgpu"), pytest.mark.timeout(300)]


def operators() -> dict[str, Any]:
    """Dispatcher calls of each variant: operator, shapes, strides and numbers."""
    from functools import partial

    import torch
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode

    from trainer.contract.shape import shape_of
    from trainer.contract.spec import resolve
    from trainer.model import attention, attention_gradient

    shape = shape_of(resolve({"name": "a", "preset": "rtx4070-d12"}).model)
    chosen = attention_gradient.choose(
        "sdpa", shape.windows[0], shape, torch.bfloat16, torch.device("cuda")
    )
    ways = {
        "chosen": chosen,
        "autograd": partial(attention_gradient.by_autograd, attention.bind("sdpa", None)),
    }
    size = (2, shape.sequence_len, shape.n_head, shape.head_dim)
    drawn = [torch.zeros(size, dtype=torch.bfloat16, device="cuda") for _ in range(4)]
    seen: list[list[Any]] = []

    def described(value: Any) -> Any:
        if isinstance(value, Tensor):
            return [list(value.shape), list(value.stride()), str(value.dtype)]
        return [described(v) for v in value] if isinstance(value, (list, tuple)) else value

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if "attention" in str(function):
                seen.append([str(function), described(args), described(result)])
            return result

    found: dict[str, Any] = {}
    for name, way in ways.items():
        with Record():
            y, back = way(*drawn[:3])
            gradients = back(drawn[3])
        found[name] = [*seen, described([y, *gradients])]
        seen.clear()
    return {**found, "direct": chosen is attention_gradient.flash}


def test_flash_attention_is_called_as_autograd_calls_it(on_card) -> None:
    found = on_card("rtx4070", operators)
    assert found["direct"]
    assert len(found["chosen"]) == 3  # forward, backward, what comes out
    assert found["chosen"] == found["autograd"]
