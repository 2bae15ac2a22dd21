"""Pure functions of tensors, compiled for each shape of their arguments and called without Dynamo.

torch.compile evaluates guards and puts the interpreter's state aside around each call. A step at
depth 12 makes 112 calls of this kind, and that was a fifth of the host's time for it. What these
functions do depends on shapes and strides alone, so one look-up by them replaces guards; what the
compiler made asserts both once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

Nested = Any  # a tensor, None, or a (named) tuple of these
Run = Callable[..., tuple[Tensor, ...]]


class ByShape:
    """`function` of nested tensors, compiled by inductor at the first call of each kind.

    The function returns new tensors: it writes into none of its arguments and returns none of them.
    Its arguments keep their dtypes from call to call, unless the first one's changes.
    """

    def __init__(self, function: Callable[..., Nested]) -> None:
        self._function = function
        self._made: dict[Any, tuple[Run, Any]] = {}

    def prepared(self, args: tuple[Nested, ...]) -> Callable[[], Nested]:
        """The call, compiled. Raises what the compiler raises; the call itself does not compile."""
        leaves: list[Tensor] = []
        kind = (_flatten(args, leaves), leaves[0].dtype)
        made = self._made.get(kind)
        if made is None:
            made = self._made[kind] = self._make(args, leaves)
        run, outline = made
        return lambda: _filled(outline, run(*leaves))

    def _make(self, args: tuple[Nested, ...], leaves: list[Tensor]) -> tuple[Run, Any]:
        from torch._inductor import standalone_compile
        from torch.fx.experimental.proxy_tensor import make_fx

        outlines: list[Any] = []

        def flat(*tensors: Tensor) -> list[Tensor]:
            found: list[Tensor] = []
            result = self._function(*_replaced(args, iter(tensors)))
            outlines.append(_outline((result,), found))
            return found

        # a tensor that is passed twice, as the first layer's x and x0, would be one argument to the
        # tracer, and every later call would be computed as if both were the same
        apart = [leaf.detach() for leaf in leaves]
        graph = make_fx(flat, tracing_mode="fake")(*apart)
        run = standalone_compile(graph, list(leaves), dynamic_shapes="from_example_inputs")
        ((_, (outline,)),) = outlines
        return run, outline


def _flatten(values: tuple[Nested, ...], leaves: list[Tensor]) -> tuple[Any, ...]:
    """Append the tensors of `values`; what distinguishes a call from one that needs other code."""
    kind: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            leaves.append(value)
            kind.append(value.shape if value.is_contiguous() else (value.shape, value.stride()))
        else:
            kind.append(None if value is None else _flatten(value, leaves))
    return tuple(kind)


def _replaced(value: Nested, tensors: Iterator[Tensor]) -> Nested:
    """`value` with these tensors in place of its own."""
    if isinstance(value, Tensor):
        return next(tensors)
    return None if value is None else _rebuilt(type(value), [_replaced(v, tensors) for v in value])


def _outline(values: tuple[Nested, ...], leaves: list[Tensor]) -> tuple[type, list[Any]]:
    """`values` with numbers in place of their tensors, which are appended to `leaves`."""
    parts: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            parts.append(len(leaves))
            leaves.append(value)
        else:
            parts.append(None if value is None else _outline(value, leaves))
    return type(values), parts


def _filled(outline: Any, tensors: tuple[Tensor, ...]) -> Nested:
    """The reverse of `_outline`."""
    if type(outline) is int:
        return tensors[outline]
    kind, outlines = outline
    parts = [None if o is None else _filled(o, tensors) for o in outlines]
    return _rebuilt(kind, parts)


def _rebuilt(kind: type, parts: list[Any]) -> Any:
    return kind(parts) if kind is tuple else kind(*parts)
