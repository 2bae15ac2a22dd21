"""Every leaf of the spec with values at and beyond its edges, taken from the spec's own schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainer.contract.spec import RunSpec

NUMBERS: list[Any] = [
    0, -1, 1, 2, 3, 7, 255, 2**31 - 1, 2**31, 2**53 + 1, 10**9, 10**9 + 1, 10**15, 2**63 - 1,
    -(2**63), 0.5, 1e-12, 5e-324, 1e30, 1e308, -0.0, True, "1", None,
]  # fmt: skip
PATHS: list[Any] = [
    "", " ", "/", "~", "~/x", "~nosuchuser/x", "~nosuchuser", "x", "../x", "/dev/null", "/dev/zero",
    "/proc/self/mem", "/no/such", "/" + "a" * 300, "/" + "a/" * 2000, "/a\0b", "\0",
    "/tmp/\n\x1b[31m",
    "/%2F", "/?x#y", "//", "/..", "ü" * 2000, "/etc/shadow/x", "C:\\x", "file:///etc/passwd",
]  # fmt: skip
PATH_FIELDS = ("data.path", "data.tokenizer.path", "evaluate.core_bundle")
LONG = ["flops", "tokens", "steps", "data_param_ratio"]


def leaves() -> list[tuple[str, dict[str, Any]]]:
    """(dotted place, schema) of every number of the spec."""
    schema = RunSpec.model_json_schema()
    return list(_walk(schema, schema.get("$defs", {}), ""))


def _walk(
    node: dict[str, Any], defs: dict[str, Any], place: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    if "$ref" in node:
        node = defs[node["$ref"].rpartition("/")[2]]
    for key, below in node.get("properties", {}).items():
        yield from _walk(below, defs, f"{place}.{key}" if place else key)
    for choice in [node, *node.get("anyOf", []), *node.get("allOf", [])]:
        if choice is not node and "$ref" in choice:
            yield from _walk(choice, defs, place)
        if choice.get("type") in ("integer", "number"):
            yield place, choice


def edges() -> list[tuple[str, Any]]:
    """(place, value): each number at its own edges and at everybody's, each path of the list."""
    found: list[tuple[str, Any]] = []
    for place, schema in leaves():
        own = [schema[k] for k in ("minimum", "maximum") if k in schema]
        near = [edge + step for edge in own for step in (-1, 0, 1)]
        found += [(place, value) for value in [*near, *NUMBERS]]
    found += [(place, value) for place in PATH_FIELDS for value in PATHS]
    unique = {(place, repr(value)): (place, value) for place, value in found}
    return list(unique.values())


def body_of(name: str, *asked: tuple[str, Any]) -> dict[str, Any]:
    """A body with these values; where a place needs company (a path its source), it is given."""
    body: dict[str, Any] = {"name": name, "start": False}
    for place, value in asked:
        *parents, last = place.split(".")
        here = body
        for parent in parents:
            here = here.setdefault(parent, {})
        if parents == ["horizon"]:
            here.clear()
        here[last] = value
        if place == "data.path":
            here["source"] = "text"
    return body
