"""Numbers for people are formatted in one module of each language."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = "trainer/contract/units.py"
PAGE = "server/web/format.js"
# trainer/interop/nanochat_export_meta.py writes a time for nanochat to read, not for people
MACHINE_TIMES = {"trainer/interop/nanochat_export_meta.py"}

UNIT = re.compile(
    r"\s?(?:[kMGT]?i?B|ms|s|seconds?|min|minutes?|h|hours?|d|days?|W|J|kWh|°C|%|tok(?:ens)?/s"
    r"|[kMGT]?FLOPs?)\b|\s?%"
)
SIZE = re.compile(r"\s?(?:[kMGTP]i?B|[kMGTP]?FLOPs?|kWh|tok/s|tokens/s)\b")
ROUNDED = re.compile(r"\.\d+[fe]$|\.\d+g$|^,$")
SCALES = {60, 1000, 3600, 86_400, 1024, 1_000_000, 10**9, 10**12, 100}

JAVASCRIPT = re.compile(
    r"toFixed\(|toPrecision\(|toExponential\(|toLocaleString\(|toLocaleTimeString|Intl\.(?!ListFormat)"
    r"|getHours\(|\} (?:[kMGT]B|kWh|W|°C|tok/s|tokens per second|FLOP|ms|s|min|h|d)\b"
    r"|/ ?1e[369]\b|/ ?1_?000_?000"
)
# attributes of a drawing and values of an address, which a program reads
JAVASCRIPT_MACHINE = {
    "components/sparkline.js": 2, "pages/compare.js": 2, "charts/scales.js": 1,
}  # fmt: skip


def findings(source: str) -> list[str]:
    """Lines of Python that scale a number, choose a unit or write a clock time by themselves."""
    tree = ast.parse(source)
    return [f"{line}: {why}" for line, why in _found(tree)]


def _found(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("strftime", "ctime"):
            yield node.lineno, node.attr
        if isinstance(node, ast.JoinedStr):
            yield from _in_string(node)


def _in_string(string: ast.JoinedStr) -> Iterator[tuple[int, str]]:
    for part, after in zip(string.values, [*string.values[1:], None], strict=True):
        if not isinstance(part, ast.FormattedValue):
            continue
        spec = _spec(part)
        words = str(after.value) if isinstance(after, ast.Constant) else ""
        is_whole = spec == ","
        if spec.endswith("%"):
            yield part.lineno, "a share as a percentage"
        elif SIZE.match(words) and not spec.endswith("g"):
            yield part.lineno, f"a unit of its own:{words[:8]}"
        elif ROUNDED.search(spec) and not is_whole and UNIT.match(words):
            yield part.lineno, f"rounded before{words[:8]}"
        elif spec and _scales(part.value):
            yield part.lineno, "scaled in the text"


def _spec(part: ast.FormattedValue) -> str:
    spec = part.format_spec
    if not isinstance(spec, ast.JoinedStr):
        return ""
    return "".join(str(v.value) for v in spec.values if isinstance(v, ast.Constant))


def _scales(value: ast.expr) -> bool:
    """`size / 1e9` and the like."""
    return (
        isinstance(value, ast.BinOp)
        and isinstance(value.op, ast.Div | ast.Mult | ast.FloorDiv)
        and any(
            isinstance(side, ast.Constant) and side.value in SCALES
            for side in (value.left, value.right)
        )
    )


def test_python_formats_quantities_in_one_module() -> None:
    files = [p for program in ("trainer", "server") for p in (ROOT / program).rglob("*.py")]
    assert len(files) > 300
    found = {
        name: lines
        for path in files
        if (name := str(path.relative_to(ROOT))) != PYTHON and name not in MACHINE_TIMES
        if (lines := findings(path.read_text(encoding="utf-8")))
    }
    assert found == {}


@pytest.mark.parametrize(
    "line",
    [
        'f"{size / 1e9:.1f} GB"', 'f"{size} MB"', 'f"{x:,.0f} tok/s"', 'f"{wait:.0f} s"',
        'f"{share:.0%}"', 'f"{100 * share:.1f} %"', 'f"{seconds / 60:.0f}"',
        'time.strftime("%F")', 'f"{1000 * took:.0f} ms"',
    ],
)  # fmt: skip
def test_formatting_by_hand_is_found(line: str) -> None:
    assert findings(line)


@pytest.mark.parametrize(
    "line", ['f"step {step:,}"', 'f"loss {loss:.4f}"', 'f"{watts:g} W"', 'f"{x:,} bytes are left"']
)
def test_exact_numbers_and_settings_are_written_in_place(line: str) -> None:
    assert not findings(line)


def binary_sizes(source: str) -> list[int]:
    """Lines with a size as a power of two, `4 << 20` or `2**20`, and no comment that says why."""
    lines = source.splitlines()
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.BinOp) and _is_binary_size(node)
        if "#" not in lines[node.lineno - 1] and not _is_explained(lines, node.lineno - 1)
    ]


def _is_binary_size(node: ast.BinOp) -> bool:
    left, right = node.left, node.right
    match node.op, left, right:
        case ast.LShift(), ast.Constant(), ast.Constant(value=int(power)):
            return power >= 10
        case ast.Pow(), ast.Constant(value=2), ast.Constant(value=int(power)):
            return 10 <= power < 31 and power not in (15, 16)  # the range of int16 is no size
        case ast.Mult(), _, ast.Constant(value=1024):
            return True
    return False


def _is_explained(lines: list[str], at: int) -> bool:
    """True if the comment of a group of constants stands above."""
    while at > 0 and lines[at].strip():
        at -= 1
        if lines[at].lstrip().startswith("#"):
            return True
        if not re.match(r"[A-Z_]+(, [A-Z_]+)* = ", lines[at]):
            return False
    return False


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("MAX_BYTES = 4 << 20", 1), ("SIZE = 64 * 1024 * 1024", 2), ("BLOCK = 2**20", 1),
        ("f(1 << 20)", 1), ("MAX_BYTES = 4_000_000", 0), ("PAGE = 2**12  # of the kernel", 0),
        ("# sizes of old files\nA = 2**20\nB = 2**21", 0), ("kind = first << 4", 0),
    ],
)  # fmt: skip
def test_a_size_as_a_power_of_two_is_found(source: str, found: int) -> None:
    assert len(binary_sizes(source)) == found


def test_sizes_are_decimal_or_say_why_not() -> None:
    files = [p for program in ("trainer", "server") for p in (ROOT / program).rglob("*.py")]
    found = {
        str(path.relative_to(ROOT)): lines
        for path in files
        if (lines := binary_sizes(path.read_text(encoding="utf-8")))
    }
    assert found == {}


def test_the_page_formats_quantities_in_one_module() -> None:
    web = ROOT / "server" / "web"
    files = [p for p in web.rglob("*.js") if "vendor" not in p.parts]
    assert len(files) > 50
    found = {
        name: lines
        for path in files
        if (name := str(path.relative_to(web))) != "format.js"
        if (lines := [m[0] for m in JAVASCRIPT.finditer(path.read_text(encoding="utf-8"))])
    }
    assert {name: len(lines) for name, lines in found.items()} == JAVASCRIPT_MACHINE
