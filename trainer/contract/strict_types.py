"""Strict types: reject "4" or true for a number, 1 or "yes" for true. 4.0 is a whole number, and 4
a float.

class Model(BaseModel):
    _kinds = of_their_kind
"""

from __future__ import annotations

from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationInfo, field_validator


def _require(model: type[BaseModel], value: Any, info: ValidationInfo) -> Any:
    assert info.field_name is not None
    wrong = isinstance(value, str | bool | int | float) and _mistaken(
        value, *_wanted(model, info.field_name)
    )
    if wrong:
        raise ValueError(wrong)
    return value


of_their_kind = field_validator("*", mode="before")(classmethod(_require))


def _mistaken(
    value: str | bool | float, kinds: frozenset[Any], words: frozenset[Any]
) -> str | None:
    """The error for a value of the wrong type, or None. words: literals allowed as well."""
    if type(value) in kinds or value in words:
        return None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    other = "".join(f" or {word}" for word in sorted(words, key=str))
    if kinds & {int, float} and not is_number:
        given = "text" if isinstance(value, str) else "a boolean"
        number = "number" if float in kinds else "whole number"
        return f"this must be a {number}{other}, not {given}"
    if bool in kinds and not kinds & {int, float}:
        return f"this must be true or false{other}"
    return None


@cache
def _wanted(model: type[BaseModel], field: str) -> tuple[frozenset[Any], frozenset[Any]]:
    """(simple types, literal words) that a field accepts."""
    kinds, words = set[Any](), set[Any]()
    open_items = [model.model_fields[field].annotation]
    while open_items:
        item = open_items.pop()
        origin, arguments = get_origin(item), get_args(item)
        if origin in (Union, UnionType):
            open_items += arguments
        elif origin is Annotated:
            open_items.append(arguments[0])
        elif origin is Literal:
            words |= set(arguments)
        else:
            kinds.add(item)
    return frozenset(kinds), frozenset(words)
