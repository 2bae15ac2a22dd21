"""Pure functions of tensors, compiled once for each kind of call and called without Dynamo.

torch.compile evaluates guards and saves the interpreter's state around each call, and its result
runs several wrappers before the compiler's own code. A step at depth 12 makes 112 such calls, which
took a third of its host time. Here the caller names the kind of a call: one look-up replaces
guards, and arguments reach the compiler's code by one unpacking. That code asserts shapes and
strides itself, so a wrong kind raises and computes nothing wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from typing import Any

from torch import Tensor

Nested = Any  # a tensor, None, or a (named) tuple of these
PreparedCall = Callable[[tuple[Nested, ...]], Nested]
Boxed = Callable[[list[Tensor]], "tuple[Tensor, ...]"]  # empties the list, as inductor's own


class ByShape:
    """`function` of nested tensors, compiled by inductor at the first call of each kind.

    The function returns new tensors: it writes into none of its arguments and returns none of them.
    A kind: what the caller knows to determine which arguments are None, and all shapes, strides and
    dtypes.
    """

    def __init__(self, function: Callable[..., Nested]) -> None:
        self._function = function
        self._made: dict[Hashable, PreparedCall] = {}

    def prepared(self, kind: Hashable, args: tuple[Nested, ...]) -> PreparedCall:
        """The compiled function for calls of this kind; running it never compiles.

        Raises the compiler's errors.
        """
        return self._made.get(kind) or self._made.setdefault(kind, self._make(args))

    def _make(self, args: tuple[Nested, ...]) -> PreparedCall:
        leaves: list[Tensor] = []
        _outline(args, leaves)
        outlines: list[Any] = []

        def flat(*tensors: Tensor) -> list[Tensor]:
            found: list[Tensor] = []
            result = self._function(*_replaced(args, iter(tensors)))
            outlines.append(_outline((result,), found))
            return found

        boxed = _compiled(flat, leaves)
        flatten, filled = _flattener(_outline(args, [])), _filler(outlines[0])
        return lambda args: filled(boxed(flatten(args)))


def _compiled(function: Callable[..., list[Tensor]], leaves: list[Tensor]) -> Boxed:
    """Compile with inductor. The first call runs torch's wrappers, which finish the compilation;
    later ones call the compiler's code directly, if its arguments and results are the same."""
    from torch._functorch import config
    from torch._inductor import standalone_compile
    from torch._inductor.compile_fx import compile_fx_inner
    from torch.fx.experimental.proxy_tensor import make_fx

    inner: list[Any] = []

    def compile_inner(graph: Any, inputs: Any, **options: Any) -> Any:
        inner.append((compile_fx_inner(graph, inputs, **options), len(inputs)))
        return inner[-1][0]

    # the tracer would take a tensor that is passed twice, as the first layer's x and x0, as one
    # argument, and compute every later call as if both were the same
    apart = [leaf.detach() for leaf in leaves]
    graph = make_fx(function, tracing_mode="fake")(*apart)
    with config.patch(enable_autograd_cache=False):  # otherwise nothing inside it is compiled
        whole = standalone_compile(
            graph,
            list(leaves),
            dynamic_shapes="from_example_inputs",
            options={"inner_compile": compile_inner},
        )
    return _Boxed(whole, [made for made, count in inner if count == len(leaves)])


class _Boxed:
    def __init__(self, whole: Callable[..., Any], inner: list[Any]) -> None:
        self._whole, self._inner = whole, inner
        self._direct: Boxed | None = None

    def __call__(self, tensors: list[Tensor]) -> tuple[Tensor, ...]:
        if self._direct is not None:
            return self._direct(tensors)
        found = tuple(self._whole(*tensors))
        if len(self._inner) == 1:
            self._direct = getattr(self._inner[0], "current_callable", None)
        return found


# --- nested tuples -------------------------------------------------------------------------------


def _replaced(value: Nested, tensors: Iterator[Tensor]) -> Nested:
    """`value` with its tensors replaced."""
    if isinstance(value, Tensor):
        return next(tensors)
    if value is None:
        return None
    parts = [_replaced(v, tensors) for v in value]
    return tuple(parts) if type(value) is tuple else type(value)(*parts)


def _outline(values: tuple[Nested, ...], leaves: list[Tensor]) -> tuple[type, list[Any]]:
    """`values` with its tensors, which are appended to `leaves`, replaced by numbers."""
    parts: list[Any] = []
    for value in values:
        if isinstance(value, Tensor):
            parts.append(len(leaves))
            leaves.append(value)
        else:
            parts.append(None if value is None else _outline(value, leaves))
    return type(values), parts


def _flattener(outline: tuple[type, list[Any]]) -> Callable[[tuple[Nested, ...]], list[Tensor]]:
    """Generate a function: nested tensors of this outline -> a list, in one unpacking."""

    def pattern(part: Any) -> str:
        if part is None:
            return "_"
        return (
            f"t{part}" if type(part) is int else f"({''.join(f'{pattern(p)},' for p in part[1])})"
        )

    names = ",".join(f"t{number}" for number in range(_count(outline)))
    return _defined(f"{pattern(outline)} = given\n    return [{names}]", {})


def _filler(outline: tuple[type, list[Any]]) -> Callable[[tuple[Tensor, ...]], Nested]:
    """Generate the inverse of the flattener; the outline is of a 1-tuple, the result."""
    kinds: dict[str, Any] = {}

    def expression(part: Any) -> str:
        if part is None:
            return "None"
        if type(part) is int:
            return f"t{part}"
        inside = ",".join(map(expression, part[1]))
        if part[0] is tuple:
            return f"({inside},)" if part[1] else "()"
        name = f"kind{len(kinds)}"
        kinds[name] = part[0]
        return f"{name}({inside})"

    names = "".join(f"t{number}," for number in range(_count(outline)))
    return _defined(f"({names}) = given\n    return {expression(outline[1][0])}", kinds)


def _count(part: Any) -> int:
    if part is None or type(part) is int:
        return int(part is not None)
    return sum(map(_count, part[1]))


def _defined(body: str, names: dict[str, Any]) -> Callable[[Any], Any]:
    """A function of `given` from source, executed once, as namedtuple does."""
    exec(f"def function(given):\n    {body}", names)
    return names["function"]
