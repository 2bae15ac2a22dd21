"""What a request body accepts, field by field, from its models: words and bounds, for forms."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

# Of JSON Schema, as HTML names the attribute of an input. A bound that is itself excluded has no
# attribute: the daemon refuses it.
_ATTRIBUTES = {
    "minimum": "min", "exclusiveMinimum": "min", "maximum": "max", "exclusiveMaximum": "max",
    "maxLength": "maxlength",
}  # fmt: skip
Bounds = dict[str, int | float]


def choices(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, list[str]]]:
    """(pointer, accepted values) of each enumerated field of `model`."""
    for name, field in model.model_fields.items():
        for part in _parts(field.annotation):
            if isinstance(part, type) and issubclass(part, BaseModel):
                yield from choices(part, f"{prefix}/{name}")
        words = [
            word
            for part in _parts(field.annotation)
            if get_origin(part) is Literal
            for word in get_args(part)
            if isinstance(word, str)
        ]
        if words:
            yield f"{prefix}/{name}", words


def bounds(model: type[BaseModel]) -> dict[str, Bounds]:
    """{pointer: bounds} of each bounded field; of a list, those of its items."""
    schema = model.model_json_schema()
    found = _bounds(schema, schema.get("$defs", {}), "")
    return {pointer: limits for pointer, limits in found if limits.keys() - {"step"}}


def _bounds(
    schema: dict[str, Any], definitions: dict[str, Any], pointer: str
) -> Iterator[tuple[str, Bounds]]:
    limits: Bounds = {}
    for branch in _branches(schema, definitions):
        limits |= {html: branch[name] for name, html in _ATTRIBUTES.items() if name in branch}
        if branch.get("type") == "integer":
            limits["step"] = 1
        for name, field in branch.get("properties", {}).items():
            yield from _bounds(field, definitions, f"{pointer}/{name}")
    yield pointer, limits


def _branches(schema: dict[str, Any], definitions: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The schema without references, unions and lists: what a single value may be."""
    if "$ref" in schema:
        yield from _branches(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    for branch in schema.get("anyOf", ()):
        yield from _branches(branch, definitions)
    if "items" in schema:
        yield from _branches(schema["items"], definitions)
    elif "$ref" not in schema and "anyOf" not in schema:
        yield schema


def _parts(annotation: Any) -> Iterator[Any]:
    """The members of a union, without Annotated; any other type is its own only member."""
    if annotation is not None and get_origin(annotation) is not Literal and get_args(annotation):
        for part in get_args(annotation):
            yield from _parts(part)
    else:
        yield annotation
