"""One name, one meaning: a public class or type alias is defined in one module of both programs."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]


def defined(source: str) -> set[str]:
    """Public names of the classes and type aliases at the top level of a module."""
    names = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
    return {name for name in names if name[:1].isupper() and not name.isupper()}


def test_a_class_name_has_one_meaning() -> None:
    places: dict[str, set[str]] = defaultdict(set)
    for path in sorted([*ROOT.glob("server/**/*.py"), *ROOT.glob("trainer/**/*.py")]):
        for name in defined(path.read_text()):
            places[name].add(str(path.relative_to(ROOT)))
    twice = {name: sorted(where) for name, where in places.items() if len(where) > 1}
    assert twice == {}, "add a prefix"


def test_classes_and_aliases_are_both_found() -> None:
    source = "class Plan: ...\nTokens = list[int]\nLIMIT = 3\nT = int\ncount = 1\n"
    assert defined(source) == {"Plan", "Tokens"}
